package forward_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// One handle closes while another acquires the same mapping. Whichever request the
// gateway is still answering, the mapping exists afterwards, until the second handle
// closes too.
func TestSharedCloseWhileJoining(t *testing.T) {
	for name, test := range map[string]struct {
		held       []string // the calls that the gateway answers late
		closeFirst bool
	}{
		"the second handle is being granted": {[]string{"map", "renew"}, false},
		"the first handle is being deleted":  {[]string{"unmap"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				a, b := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
				defer a.Close()
				defer b.Close()
				first, err := a.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				answer := make(chan struct{})
				m.set(func() {
					m.fail = func(op string, _ backends.Protocol, _ uint16) error {
						if slices.Contains(test.held, op) {
							<-answer
						}
						return nil
					}
				})
				var second *forward.Mapping
				joined, closed := make(chan error, 1), make(chan error, 1)
				join := func() {
					var err error
					second, err = b.Enable(t.Context(), forward.TCP(8080))
					joined <- err
				}
				steps := []func(){join, func() { closed <- first.Close() }}
				if test.closeFirst {
					slices.Reverse(steps)
				}
				for _, step := range steps {
					go step()
					synctest.Wait()
				}
				close(answer)
				if err := errors.Join(<-joined, <-closed); err != nil {
					t.Fatal(err)
				}
				if live := m.live(); len(live) != 1 || second.External().AddrPort != live[0].External {
					t.Errorf("the second handle has %v, the gateway has %v; want one mapping", second, live)
				}
				if err := second.Close(); err != nil || len(m.live()) != 0 {
					t.Errorf("after the last Close (%v) the gateway has %v", err, m.live())
				}
			})
		})
	}
}
