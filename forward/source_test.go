package forward_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// A source address that this host does not have is refused, however public it looks:
// no mapping is reported for it, and the gateway is not asked.
func TestSourceElsewhere(t *testing.T) {
	elsewhere := netip.MustParseAddr("45.45.45.99")
	gw, f := start(t, forward.Config{Source: elsewhere}, gatewaytest.Config{})
	if m, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Enable: %v, %v, want ErrInvalid", m, err)
	}
	if addr, err := f.ExternalIP(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("ExternalIP: %v, %v, want ErrInvalid", addr, err)
	}
	if addr, err := f.LocalIP(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("LocalIP: %v, %v, want ErrInvalid", addr, err)
	}
	if _, err := f.Gateway(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Probe: %v, want ErrInvalid", err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
	if err != nil {
		t.Fatal(err)
	}
	for m.Err() == nil {
		changed := m.Changed()
		if m.Err() != nil {
			break
		}
		select {
		case <-changed:
		case <-waiting(t).Done():
			t.Fatal("no attempt fails")
		}
	}
	if !errors.Is(m.Err(), backends.ErrInvalid) || m.External().AddrPort != (netip.AddrPort{}) {
		t.Errorf("in the background: %v, %v, want ErrInvalid", m, m.Err())
	}
	if n := len(gw.Requests()); n != 0 {
		t.Errorf("the gateway was asked %d times", n)
	}
}
