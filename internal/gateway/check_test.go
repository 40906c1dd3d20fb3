package gateway

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
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
