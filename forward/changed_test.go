package forward_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Changed is closed whenever something changes that the other methods return.
func TestChangedClosed(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, g *memory, m *forward.Mapping){
		"renewal": func(*testing.T, *memory, *forward.Mapping) { time.Sleep(45 * time.Minute) },
		"Refresh": func(t *testing.T, _ *memory, m *forward.Mapping) {
			time.Sleep(time.Minute)
			if err := m.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"Refresh to another lifetime": func(t *testing.T, _ *memory, m *forward.Mapping) {
			if err := m.Refresh(t.Context(), forward.Lifetime(4*time.Hour)); err != nil {
				t.Error(err)
			}
		},
		"announcement by the gateway": func(_ *testing.T, g *memory, _ *forward.Mapping) {
			time.Sleep(time.Minute)
			g.changes <- backends.Change{Kind: backends.Announced, Reason: "test"}
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newMemory()
				f := forwarder(t, forward.Config{}, g)
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				changed, before, expires := m.Changed(), told(m), m.Expires()
				change(t, g, m)
				synctest.Wait()
				if m.Expires().Equal(expires) {
					t.Fatalf("Expires is still %v: the mapping was not requested again", expires)
				}
				select {
				case <-changed:
				default:
					t.Errorf("Changed is still open, want it closed. Before:\n%s\nAfter:\n%s", before, told(m))
				}
			})
		})
	}
}

// told is what the methods of a mapping return.
func told(m *forward.Mapping) string {
	return fmt.Sprintf("\texternal %v, expires %v, next try %v, error %v",
		m.External(), m.Expires().Format(time.TimeOnly), m.Status().NextAttempt.Format(time.TimeOnly), m.Err())
}
