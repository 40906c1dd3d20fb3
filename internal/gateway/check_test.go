package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
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

// fakeTable is a UPnP backend whose lookups return err.
type fakeTable struct {
	backends.Backend
	err error
}

func (f *fakeTable) LookUp(context.Context, backends.Mapping) error { return f.err }

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

// TestLookUpInTable checks that a table counts only for the mappings that it has listed, and that
// a table that does not list the first mapping is not used any more.
func TestLookUpInTable(t *testing.T) {
	var m backends.Mapping
	o, b, table, fake := joinWithTable(t)
	first, second := &entry{}, &entry{}
	if err := o.lookUpIn(table, first, m); err != nil {
		t.Error(err)
	}
	fake.err = backends.ErrNoMapping
	if err := o.lookUpIn(table, first, m); !errors.Is(err, backends.ErrNoMapping) {
		t.Errorf("a listed mapping: %v", err)
	}
	if err := o.lookUpIn(table, second, m); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("a mapping that was not listed: %v", err)
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
