package attack_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/attack"
)

// startWithExternalAddr starts a gateway that reports the given external address in
// all protocols.
func startWithExternalAddr(t *testing.T, address netip.Addr) *gatewaytest.Gateway {
	t.Helper()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{
		External: func(netip.Addr) string { return address.String() },
	}}}})
	a16 := address.As16()
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Service != "upnp" && r.Service != "ssdp" }, Corrupt: func(b []byte) []byte {
		switch {
		case len(b) == 12 && b[1] == 128 && address.Is4():
			copy(b[8:], a16[12:]) // RFC 6886, section 3.2
		case len(b) >= 60 && b[0] == 2 && b[1] == 129:
			copy(b[44:], a16[:]) // RFC 6887, section 11.1
		}
		return b
	}})
	return gw
}

// TestImpossibleAddress checks that an external address that no host can have is
// ignored. A program that announced it would send its peers to themselves, or to
// all hosts of their network.
func TestImpossibleAddress(t *testing.T) {
	for _, text := range []string{
		"0.0.0.0", "127.0.0.1", "127.8.8.8", "224.0.0.1", "239.255.255.250", "255.255.255.255", "::1", "ff02::1", "::",
	} {
		t.Run(text, func(t *testing.T) {
			address := netip.MustParseAddr(text)
			gw := startWithExternalAddr(t, address)
			if address.Is4() {
				reported := naiveExchange(t, gw.Addr(), []byte{0, 0})
				if got := netip.AddrFrom4([4]byte(reported[8:12])); attack.CheckAddr(got) == nil {
					t.Fatalf("the naive client has address %v: the attack has no effect", got)
				}
			}
			all := newClients(t, gw)
			all["upnp"] = newBackend(t, gw.SSDP())
			for name, b := range all {
				if name == "natpmp" && !address.Is4() {
					continue
				}
				if addr, err := b.ExternalAddr(t.Context()); err != nil || attack.CheckAddr(addr) != nil {
					t.Errorf("%s: ExternalAddr: %v, %v", name, addr, err)
				}
				m, err := b.Map(t.Context(), webRequest)
				if err != nil || m.External.Port() != 8080 {
					t.Errorf("%s: Map: %v, %v", name, m.External, err)
				} else if err := attack.Check(m, webRequest); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
					t.Errorf("%s: Unmap: %v, the gateway has %v", name, err, gw.Table())
				}
			}
		})
	}
}

// TestZonedAddress checks that an IPv6 address with a zone is ignored. The text
// after the percent sign is arbitrary, and users pass addresses on to scripts and
// terminals.
func TestZonedAddress(t *testing.T) {
	for _, zone := range []string{"eth0", ";id", "\u009b2J", "$(id)"} {
		reported := "fe80::1%" + zone
		if a, err := netip.ParseAddr(reported); err != nil || a.Zone() != zone {
			t.Fatalf("the naive client reads %q, %v: the attack has no effect", a, err)
		}
		gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{
			External: func(netip.Addr) string { return reported },
		}}}})
		b := newBackend(t, gw.SSDP())
		addr, err := b.ExternalAddr(t.Context())
		if err != nil || attack.CheckAddr(addr) != nil {
			t.Errorf("ExternalAddr: %q, %v", addr, err)
		}
		if m, err := b.Map(t.Context(), webRequest); err != nil || attack.Check(m, webRequest) != nil {
			t.Errorf("Map: %v, %v", attack.Check(m, webRequest), err)
		}
	}
}

// TestOtherPortGranted checks a gateway that grants another port, because an
// attacker has the requested one. The library reports the port that was granted. If
// the request is exact, it deletes the mapping.
func TestOtherPortGranted(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	otherEntry := gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.AddrPortFrom(attacker, 8080),
		External: netip.AddrPortFrom(gw.External(), 8080),
	}
	if err := gw.AddMapping(otherEntry); err != nil {
		t.Fatal(err)
	}
	if got := naiveMap(t, gw.Addr()); got == 8080 {
		t.Fatal("the gateway granted the port of another host: the attack has no effect")
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true, KeepEpoch: true})
	if err := gw.AddMapping(otherEntry); err != nil && !errors.Is(err, backends.ErrConflict) {
		t.Fatal(err)
	}
	all := newClients(t, gw)
	all["upnp"] = newBackend(t, gw.SSDP())
	for name, b := range all {
		m, err := b.Map(t.Context(), webRequest)
		if err == nil && (m.External.Port() == 8080 || !hasMapping(gw, m)) {
			t.Errorf("%s: granted %v, the gateway has %v", name, m.External, gw.Table())
		}
		if err == nil {
			err = b.Unmap(t.Context(), m)
		}
		if err != nil && !errors.Is(err, backends.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
		exact := webRequest
		exact.Exact = true
		if _, err := b.Map(t.Context(), exact); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("%s: exact Map: %v, want ErrConflict", name, err)
		}
		if n := len(gw.Table()); n != 1 || gw.Table()[0].Internal != otherEntry.Internal {
			t.Errorf("%s: the gateway has %v, want only the other host's entry", name, gw.Table())
		}
	}
}

// hasMapping reports whether the gateway forwards the mapping m.
func hasMapping(gw *gatewaytest.Gateway, m backends.Mapping) bool {
	for _, e := range gw.Table() {
		if e.External == m.External && e.Internal == m.Internal && e.Protocol == m.Protocol {
			return true
		}
	}
	return false
}

// naiveRenewal returns the delay after which a naive client renews: half of the
// granted seconds.
func naiveRenewal(seconds uint32) time.Duration {
	return time.Duration(int32(seconds)) * time.Second / 2 //nolint:gosec // the mistake of the naive client
}

// TestZeroLifetime checks that a success with lifetime 0 is not treated as a
// mapping, and does not cause renewals without pause.
func TestZeroLifetime(t *testing.T) {
	if d := naiveRenewal(0); d > 0 {
		t.Fatalf("the naive client waits for %v: the attack has no effect", d)
	}
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "map" && r.Service != "upnp" }, Reply: func(request []byte) [][]byte {
		return [][]byte{setLifetime(forge(request), 0)}
	}})
	checkNoLeaks(t, func() {
		for name, b := range newClients(t, gw) {
			if m, err := b.Map(t.Context(), webRequest); !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%s: Map: %+v, %v, want ErrMalformed", name, m, err)
			}
			_ = b.Close()
		}
		f := newForwarder(t, gw, forward.Config{Protocols: []string{"natpmp", "pcp"}})
		if m, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("Enable: %v, %v, want ErrMalformed", m, err)
		}
		_ = f.Close()
	})
	if n := len(gw.Requests()); n > 60 {
		t.Errorf("the gateway received %d requests", n)
	}
	// If the gateway supports UPnP too, the mapping is still created.
	f := newForwarder(t, gw, forward.Config{})
	if m, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil || m.Backend() != upnp.Name {
		t.Errorf("Enable: %v, %v, want a mapping by UPnP", m, err)
	}
}

// TestHugeLifetime checks that a mapping with a lifetime of 136 years is renewed
// within a day.
func TestHugeLifetime(t *testing.T) {
	if d := naiveRenewal(1<<32 - 1); d >= 0 {
		t.Fatalf("the naive client waits for %v: the attack has no effect", d)
	}
	gw := startWithLifetime(t, 1<<32-1)
	for _, name := range []string{"natpmp", "upnp"} { // in PCP, this lifetime means infinite
		f := newForwarder(t, gw, forward.Config{Protocols: []string{name}})
		begin := time.Now()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil || !m.Expires().After(begin) {
			t.Fatalf("%s: %v, %v", name, m, err)
		}
		if next := m.Status().NextAttempt.Sub(begin); next <= 0 || next > 24*time.Hour {
			t.Errorf("%s: renewed in %v", name, next)
		}
		if err := f.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	f := newForwarder(t, gw, forward.Config{Protocols: []string{"pcp"}})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || !m.Expires().IsZero() || time.Until(m.Status().NextAttempt) <= 0 || time.Until(m.Status().NextAttempt) > time.Hour {
		t.Errorf("%v, %v: checked in %v", m, err, time.Until(m.Status().NextAttempt))
	}
}

// startWithLifetime starts a gateway that writes a lifetime into each success: RFC
// 6886, section 3.3, and RFC 6887, section 7.2. UPnP reports it as the lease, if
// requested.
func startWithLifetime(t *testing.T, seconds uint32) *gatewaytest.Gateway {
	t.Helper()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		Leases: quirks.Leases{Reported: time.Duration(seconds) * time.Second},
	}}})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "map" && r.Service != "upnp" }, Corrupt: func(b []byte) []byte {
		return setLifetime(b, seconds)
	}})
	return gw
}

// setLifetime writes the number of seconds into a response that grants a mapping.
func setLifetime(b []byte, seconds uint32) []byte {
	switch {
	case len(b) == 16 && b[0] == 0:
		binary.BigEndian.PutUint32(b[12:], seconds)
	case len(b) >= 60 && b[0] == 2:
		binary.BigEndian.PutUint32(b[4:], seconds)
	}
	return b
}
