package forward_test

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
)

// Shutdown waits for every Close of a mapping that is under way: if it returns nil,
// the gateway has nothing left.
func TestShutdownAwaitsClose(t *testing.T) {
	// More threads than processors: any of them may be preempted anywhere.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const (
		lasts    = 8 * time.Second
		mappings = 4
	)
	rounds := 0
	for begin := time.Now(); time.Since(begin) < lasts; rounds++ {
		gateway := newMemory()
		f := forwarder(t, forward.Config{}, gateway)
		var held []*forward.Mapping
		for port := range uint16(mappings) {
			m, err := f.Enable(t.Context(), forward.TCP(8080+port))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, m)
		}
		var closing sync.WaitGroup
		begun := make(chan struct{})
		for _, m := range held {
			closing.Go(func() {
				<-begun
				if err := m.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		close(begun)
		err := f.Shutdown(t.Context())
		left := gateway.live()
		closing.Wait()
		if err != nil {
			t.Fatalf("Shutdown: %v", err)
		}
		if len(left) > 0 {
			t.Fatalf("round %d: Shutdown returned nil, and the gateway still has %d mapping(s), the first at %v", rounds, len(left), left[0].External)
		}
	}
	t.Logf("%d rounds", rounds)
}
