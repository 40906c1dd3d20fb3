package forward_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
)

// eventsOf records the events of each mapping as "kind port".
type eventsOf struct {
	mu   sync.Mutex
	seen map[*forward.Mapping][]string
}

func (r *eventsOf) record(e forward.Event) {
	var port uint16
	if len(e.Grants) > 0 {
		port = e.Grants[0].External.Port()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[e.Mapping] = append(r.seen[e.Mapping], fmt.Sprint(e.Kind, " ", port))
}

func (r *eventsOf) of(m *forward.Mapping) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen[m])
}

// If two handles hold one port, and a renewal is granted another external port,
// both handles report that port, and each gets an event.
func TestSharedPortChanges(t *testing.T) {
	for name, two := range map[string]bool{"one Forwarder": false, "two Forwarders": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gateway, events := newMemory(), &eventsOf{seen: map[*forward.Mapping][]string{}}
				config := forward.Config{OnEvent: events.record}
				f := forwarder(t, config, gateway)
				defer f.Close()
				g := f
				if two {
					g = forwarder(t, config, gateway)
					defer g.Close()
				}
				renewed, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				other, err := g.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				gateway.set(func() { gateway.taken[8080] = true })
				if err := renewed.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for name, m := range map[string]*forward.Mapping{"renewed": renewed, "other": other} {
					if got := m.External().Port(); got != 8081 {
						t.Errorf("the gateway forwards port 8081; the %s handle reports port %d", name, got)
					}
					if got, want := events.of(m), []string{"mapped 8080", "changed 8081"}; !slices.Equal(got, want) {
						t.Errorf("the %s handle got the events %q, want %q", name, got, want)
					}
				}
			})
		})
	}
}
