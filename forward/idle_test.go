package forward_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// An idle Forwarder with one NAT-PMP mapping and OnEvent needs five goroutines at most.
func TestIdleGoroutines(t *testing.T) {
	const most = 5
	mapped := make(chan struct{})
	_, f := start(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: func(forward.Event) { close(mapped) }}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	<-mapped
	ours := func() (stacks []string) {
		buf := make([]byte, 1<<20)
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "goforward/") && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "gatewaytest") {
				stacks = append(stacks, stack)
			}
		}
		return stacks
	}
	for range 1000 { // the dispatcher and the op end in a moment
		if len(ours()) <= most {
			break
		}
		runtime.Gosched()
	}
	if stacks := ours(); len(stacks) > most {
		t.Errorf("%d goroutines, want at most %d:\n%s", len(stacks), most, strings.Join(stacks, "\n\n"))
	} else {
		t.Logf("%d goroutines", len(stacks))
	}
}
