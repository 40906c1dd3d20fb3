package forward_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// What remains at a gateway that was left is logged, and Close does not report it: also if
// its deletion is in flight, or failed just now.
func TestCloseAfterMove(t *testing.T) {
	for name, fails := range map[string]time.Duration{"failed": 0, "in flight": time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before, now := newMemory(), newMemory()
				f, err := forward.New(nil)
				if err != nil {
					t.Fatal(err)
				}
				gateway := netip.MustParseAddr("192.0.2.1")
				f.SetRoute(gateway, here, before)
				mapping := enable8080(t, f)
				before.set(func() {
					before.fail = func(string, backends.Protocol, uint16) error {
						time.Sleep(fails)
						return backends.ErrNoReply
					}
				})
				f.SetRoute(gateway, netip.MustParseAddr("192.0.2.11"), now)
				f.NetworkChanged()
				for mapping.Err() != nil || len(now.live()) == 0 || !mapping.External().IsValid() {
					<-mapping.Changed()
				}
				if err := f.Close(); err != nil {
					t.Error("Close:", err)
				}
				if live := now.live(); len(live) > 0 {
					t.Errorf("the gateway has %v", live)
				}
				time.Sleep(2 * time.Minute)
			})
		})
	}
}
