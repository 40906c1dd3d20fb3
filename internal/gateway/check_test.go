package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// quietSink is a Sink without an effect.
type quietSink struct{}

func (quietSink) HandleChanged(*Handle, Kind, []backends.Mapping, []backends.Mapping, string, time.Time) {
}
func (quietSink) CombineErrors([]error, netip.Addr, *Spec) error { return backends.ErrNoReply }
func (quietSink) RecordsChanged()                                {}
func (quietSink) Handler() slog.Handler                          { return slog.DiscardHandler }

// TestTableOfDuringJoin checks, with the race detector, that a round of checks can look for a
// table while another Forwarder joins the owner.
func TestTableOfDuringJoin(t *testing.T) {
	registry := NewRegistry(Jitter)
	key := Key{Gateway: netip.MustParseAddrPort("127.0.0.1:9"), Local: netip.MustParseAddr("127.0.0.1")}
	first, err := registry.Join(key, []BackendConfig{{Protocol: "natpmp"}}, quietSink{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Discard()
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		for i := range 20 {
			c, err := registry.Join(key, []BackendConfig{{Protocol: "pcp", Nonce: fmt.Sprint(i)}}, quietSink{})
			if err != nil {
				t.Error(err)
				return
			}
			c.Discard()
		}
	}()
	for isOver := false; !isOver; {
		select {
		case <-joined:
			isOver = true
		default:
		}
		if table := first.owner.tableOf(first.backends[0]); table != nil {
			t.Fatalf("found %v", table)
		}
	}
}

// fakeTable is a UPnP backend whose lookups return err, or ErrNoMapping for some external ports.
type fakeTable struct {
	backends.Backend
	err    error
	absent []uint16
}

func (f *fakeTable) LookUp(_ context.Context, m backends.Mapping) error {
	if slices.Contains(f.absent, m.External.Port()) {
		return backends.ErrNoMapping
	}
	return f.err
}

// joinWithTable returns an owner of a NAT-PMP backend and of a UPnP backend with a fakeTable.
func joinWithTable(t *testing.T) (o *Owner, b, table *Backend, fake *fakeTable) {
	t.Helper()
	key := Key{Gateway: netip.MustParseAddrPort("127.0.0.1:9"), Local: netip.MustParseAddr("127.0.0.1")}
	c, err := NewRegistry(Jitter).Join(key, []BackendConfig{{Protocol: "natpmp"}, {Protocol: "upnp"}}, quietSink{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Discard)
	b, table = c.backends[0], c.backends[1]
	fake = &fakeTable{Backend: table.Backend}
	table.Backend, table.probe, table.probeErr = fake, func(context.Context) error { return nil }, nil
	return c.owner, b, table, fake
}

// silentBackend is a backend without replies to renewals.
type silentBackend struct{ backends.Backend }

func (silentBackend) Renew(context.Context, backends.Mapping, backends.Request) (backends.Mapping, error) {
	return backends.Mapping{}, backends.ErrNoReply
}

// addActive adds an active entry for a port, and a handle that holds it. It runs on the loop.
func addActive(o *Owner, b *Backend, port uint16) (*entry, *Handle) {
	s := &Spec{Protocols: []backends.Protocol{backends.TCP}, Internal: netip.AddrPortFrom(netip.Addr{}, port), Lifetime: time.Hour}
	h := NewHandle(quietSink{}, s, nil)
	h.client.Store(o.clients[0])
	m := &backends.Mapping{External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), port), Lifetime: time.Hour, Granted: time.Now()}
	return o.groupOf(s).add(&entry{
		backend: b, Member: s.Members()[0], state: active, spec: s, granted: m, holders: []*Handle{h},
	}), h
}

// TestLookUpAllInTable checks that a mapping that a table has never listed is missing only if the
// table has lost a mapping that it did list.
func TestLookUpAllInTable(t *testing.T) {
	o, b, table, fake := joinWithTable(t)
	b.Backend = silentBackend{b.Backend}
	entries := map[uint16]*entry{}
	o.loop.Do(func() {
		for port, listing := range map[uint16]listing{8080: listed, 8081: notLookedUp, 8082: notLookedUp} {
			entries[port], _ = addActive(o, b, port)
			entries[port].listing = listing
		}
	})
	isLost := func(port uint16) (lost bool) {
		o.loop.Do(func() { lost = entries[port].lost })
		return lost
	}
	fake.absent = []uint16{8081}
	if o.lookUpAll(b, table) || isLost(8080) || isLost(8081) {
		t.Error("a mapping that was never listed is lost")
	}
	fake.absent = []uint16{8080, 8081, 8082}
	if !o.lookUpAll(b, table) || !isLost(8080) || !isLost(8082) {
		t.Error("mappings are not lost, although the table has lost one that it listed")
	}
	if isLost(8081) {
		t.Error("a mapping that the table does not list is lost")
	}
}

// TestLookUpInTable checks that a table counts only for the mappings that it has listed, and that
// a table that does not list the first mapping is not used any more.
func TestLookUpInTable(t *testing.T) {
	var m backends.Mapping
	o, b, table, fake := joinWithTable(t)
	first := &entry{}
	if err := o.lookUpIn(table, first, m); err != nil {
		t.Error(err)
	}
	fake.err = backends.ErrNoMapping
	if err := o.lookUpIn(table, first, m); !errors.Is(err, backends.ErrNoMapping) {
		t.Errorf("a listed mapping: %v", err)
	}
	if o.tableOf(b) != table {
		t.Error("a table that listed a mapping is not used")
	}

	o, b, table, fake = joinWithTable(t)
	fake.err = backends.ErrNoMapping
	if err := o.lookUpIn(table, &entry{}, m); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("the first mapping: %v", err)
	}
	if o.tableOf(b) != nil {
		t.Error("a table that hides mappings is used")
	}
}

// TestTableSearch checks that a gateway without a table is searched for one at once, and then about
// once in an hour.
func TestTableSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, b, table, _ := joinWithTable(t)
		searches := 0
		table.probeErr = errNotProbed
		table.probe = func(context.Context) error {
			searches++
			return backends.ErrNoReply
		}
		for minute := range 150 {
			if o.tableOf(b) != nil {
				t.Fatal("a table was found")
			}
			if want := 1 + minute/61; searches != want {
				t.Fatalf("%d searches after %d minutes, want %d", searches, minute, want)
			}
			time.Sleep(time.Minute)
		}
	})
}

// TestIsCheckable checks which entries a round may check.
func TestIsCheckable(t *testing.T) {
	for name, test := range map[string]struct {
		change func(e *entry, h *Handle)
		want   bool
	}{
		"active":                       {func(*entry, *Handle) {}, true},
		"no holder":                    {func(e *entry, _ *Handle) { e.holders = nil }, false},
		"being deleted":                {func(e *entry, _ *Handle) { e.state = pendingDelete }, false},
		"not kept alive":               {func(e *entry, _ *Handle) { e.spec.Once = true }, false},
		"requested soon":               {func(e *entry, _ *Handle) { e.doubtful = true }, false},
		"refused":                      {func(e *entry, _ *Handle) { e.doubtful, e.err = true, backends.ErrNotAuthorized }, false},
		"without a reply":              {func(e *entry, _ *Handle) { e.doubtful, e.err = true, backends.ErrNoReply }, true},
		"moved to another gateway":     {func(_ *entry, h *Handle) { h.client.Store(nil) }, false},
		"gateway of no route":          {func(_ *entry, h *Handle) { h.Client().unusable = true }, false},
		"another holder that is moved": {func(e *entry, h *Handle) { e.holders = append([]*Handle{NewHandle(quietSink{}, e.spec, nil)}, h) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			o, b, _, _ := joinWithTable(t)
			o.loop.Do(func() {
				e, h := addActive(o, b, 8080)
				test.change(e, h)
				if got := o.nextToCheck(b) == e; got != test.want {
					t.Errorf("a round checks the entry: %v, want %v", got, test.want)
				}
			})
		})
	}
}
