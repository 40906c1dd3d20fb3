package forward_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// A request without a reply is to be deleted when another port is tried. If the first port
// is granted after all, it stays.
func TestGrantAfterNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		answer := func(first, others error) {
			m.set(func() {
				m.fail = func(op string, _ backends.Protocol, wish uint16) error {
					switch {
					case op == "unmap":
						return nil
					case wish == 8080:
						return first
					}
					return others
				}
			})
		}
		answer(backends.ErrNoReply, nil)
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.UDP(8080), forward.SamePort(), forward.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		answer(backends.ErrConflict, backends.ErrNoReply)
		time.Sleep(2 * time.Second)
		answer(nil, backends.ErrNoReply)
		time.Sleep(time.Second)
		live := m.live()
		_ = m.calls()
		if len(live) != 1 || live[0].External.Port() != 8080 {
			t.Fatalf("granted %v", live)
		}
		time.Sleep(10 * time.Minute)
		for _, call := range m.calls() {
			if strings.HasPrefix(call, "unmap") && strings.Contains(call, "8080") {
				t.Errorf("deleted after it was granted: %s", call)
			}
		}
	})
}
