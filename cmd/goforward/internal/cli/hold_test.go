package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestHoldUnmaps checks that the end of the context deletes the mapping. TestMain checks that
// no goroutine is left.
func TestHoldUnmaps(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	ctx, interrupt := context.WithCancel(t.Context())
	r, w := io.Pipe()
	var stderr bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		defer func() { _ = w.Close() }()
		ended <- Run(ctx, []string{"map", "8080", "--hold", "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String()}, w, &stderr)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || line != "45.45.45.1:8080\n" {
		t.Errorf("first line %q, error %v", line, err)
	}
	interrupt()
	if code := <-ended; code != exitDone || !strings.Contains(stderr.String(), " unmapped tcp 45.45.45.1:8080") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if n := len(gw.Table()); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
}

// TestHoldReportsFailureOnce checks that a failed attempt is reported once, even if it is
// checked several times.
func TestHoldReportsFailureOnce(t *testing.T) {
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
	h := &heldMapping{
		session: &holdSession{app: newApp(&stdout, &stderr)},
		spec:    &spec{protocols: []backends.Protocol{backends.TCP}, internal: 8080, count: 1},
	}
	for range 3 {
		if err := h.printFailure(m); err != nil {
			t.Error(err)
		}
	}
	want := regexp.MustCompile(`^\d\d:\d\d:\d\d error tcp port 8080 \([^\n]+natpmp: [^\n]+; next try at \d\d:\d\d:\d\d\)\n$`)
	if !want.Match(stderr.Bytes()) || stdout.Len() > 0 || !h.failing {
		t.Errorf("unexpected output:\n%s%s", &stdout, &stderr)
	}
}

// closedPipe is a stdout whose reader has exited.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// TestHoldWithoutReader checks that map --hold deletes its mapping if its output cannot be
// written.
func TestHoldWithoutReader(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	var stderr bytes.Buffer
	args := []string{"map", "8080", "--hold", "-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if code := Run(context.Background(), args, closedPipe{}, &stderr); code != 1 {
		t.Errorf("exit code %d\n%s", code, stderr.String())
	}
	if remaining := gw.Table(); len(remaining) != 0 {
		t.Errorf("the gateway still has %v", remaining)
	}
}

// TestHoldEnds checks that the end of one mapping does not keep back the events of another.
func TestHoldEnds(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	f, err := forward.New(&forward.Config{Gateway: gw.Addr(), Protocols: []string{"natpmp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &holdSession{app: newApp(io.Discard, io.Discard), flags: &holdFlags{}, changed: make(chan struct{}, 1), granted: make([][]backends.Mapping, 2)}
	s.app.settings.gateway = gw.Addr()
	for _, port := range []uint16{8080, 8081} {
		m, err := f.Enable(t.Context(), forward.TCP(port))
		if err != nil {
			t.Fatal(err)
		}
		s.mappings = append(s.mappings, &heldMapping{
			session: s, spec: &spec{protocols: []backends.Protocol{backends.TCP}, internal: port, count: 1},
			mapping: m, events: make(chan forward.Event), ended: make(chan struct{}),
		})
	}
	go func() { // as the Forwarder does: one event after another
		first, second := s.mappings[0], s.mappings[1]
		e := forward.Event{Kind: forward.EventMapped, Mapping: first.mapping, Grants: first.mapping.Grants()}
		first.onEvent(e)
		<-first.ended
		first.onEvent(e)
		second.onEvent(forward.Event{Kind: forward.EventMapped, Mapping: second.mapping, Grants: second.mapping.Grants()})
	}()
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := s.follow(ctx, untilInterrupt); err != nil {
		t.Error(err)
	}
}

// TestHoldFailsPartly checks that map --hold names a mapping that remains on the gateway, after
// another mapping was refused.
func TestHoldFailsPartly(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	gw.Inject(gatewaytest.Fault{Result: 2, Match: func(q gatewaytest.Request) bool { return q.Op == "map" && q.Protocol == backends.UDP }})
	gw.Inject(gatewaytest.Fault{Result: 2, Match: func(q gatewaytest.Request) bool { return q.Op == "unmap" }})
	got := run(t, nil, "map", "8080", "8081/udp", "--hold", "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp")
	if got.code != exitRefused || !strings.Contains(got.stderr, "deleting the other mappings\nnot unmapped: tcp port 8080 remains on the gateway until ") {
		t.Errorf("exit code %d\n%s", got.code, got.stderr)
	}
}
