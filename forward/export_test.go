package forward

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/discover"
)

// LeadTo makes the kernel's ways to the internet lead to gateways, also to such
// as do not have the protocols' own ports; a family without one has no way out.
func (f *Forwarder) LeadTo(gateways ...netip.AddrPort) error {
	none := func() (discover.Gateway, error) { return discover.Gateway{}, discover.ErrNoRoute }
	f.routes = [2]func() (discover.Gateway, error){none, none}
	for _, gw := range gateways {
		local := gw.Addr() // on loopback
		if key := (wayKey{gateway: netip.AddrPortFrom(gw.Addr(), 0), source: local}); f.ways[key] == nil {
			w, err := f.open(wayKey{gateway: gw, source: local})
			if err != nil {
				return err
			}
			f.ways[key] = w
		}
		f.routes[familyOf(local)] = func() (discover.Gateway, error) {
			return discover.Gateway{Addr: gw.Addr(), Local: local}, nil
		}
	}
	return nil
}

// Crash ends a Forwarder as the end of its process does: nothing is taken away.
func (f *Forwarder) Crash() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.ledger.mu.Lock()
	file := f.ledger.file
	f.ledger.file = nil // nothing more is written
	f.ledger.mu.Unlock()
	f.cancel(ErrClosed)
	f.calls.Wait()
	for _, m := range f.matching(nil) {
		m.abandon()
	}
	f.work.Wait()
	if file != nil {
		_ = file.Close()
	}
	close(f.ended)
	for _, w := range f.ways {
		_ = w.close()
	}
}

// SetWantedWithin shortens, for a test, what an earlier run's mappings wait.
func SetWantedWithin(t *testing.T, d time.Duration) {
	before := wantedWithin
	wantedWithin = d
	t.Cleanup(func() { wantedWithin = before })
}
