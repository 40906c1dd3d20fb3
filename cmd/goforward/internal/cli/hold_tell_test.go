package cli

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// A failed attempt is told once, however often it is looked at.
func TestFailureToldOnce(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	gw.Inject(gatewaytest.Fault{Result: 4, Match: func(q gatewaytest.Request) bool { return q.Op == "map" }})
	f, err := forward.New(&forward.Config{Gateway: gw.Addr(), Protocols: []string{"natpmp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
	if err != nil {
		t.Fatal(err)
	}
	for changed := m.Changed(); m.Err() == nil; changed = m.Changed() {
		<-changed
	}
	var stdout, stderr bytes.Buffer
	h := &holding{app: newApp(&stdout, &stderr), wish: &wish{protocols: []backends.Protocol{backends.TCP}}}
	for range 3 {
		if err := h.tellFailure(m); err != nil {
			t.Error(err)
		}
	}
	want := regexp.MustCompile(`^\d\d:\d\d:\d\d error tcp port 8080 \([^\n]+natpmp: [^\n]+; next try at \d\d:\d\d:\d\d\)\n$`)
	if !want.Match(stderr.Bytes()) || stdout.Len() > 0 || !h.failing {
		t.Errorf("%s%s", &stdout, &stderr)
	}
}
