package upnp_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var loopback6 = netip.IPv6Loopback()

// open6 starts a gateway with an IPv6 firewall, and a backend that finds it with
// IPv6. It skips the test if the machine has no IPv6.
func open6(t *testing.T, router quirks.UPnP) (*gatewaytest.Gateway, *upnp.Backend) {
	t.Helper()
	_, ok := countConns(t, netip.AddrPortFrom(loopback6, 0))
	if !ok {
		t.Skip("SKIPPED: this machine has no [::1], pinholes are not tested")
	}
	gw := start(t, gatewaytest.Config{Listen6: netip.AddrPortFrom(loopback6, 0), Quirks: quirks.Quirks{UPnP: router}})
	return gw, newBackend(t, gw, upnp.Config{Gateway: loopback6, SSDP: []netip.AddrPort{gw.UPnP().SSDP6()}})
}

// pinhole returns the gateway's pinhole for a port.
func pinhole(gw *gatewaytest.Gateway, port uint16) (gatewaytest.Entry, bool) {
	for _, e := range gw.Table() {
		if e.Internal == netip.AddrPortFrom(loopback6, port) {
			return e, true
		}
	}
	return gatewaytest.Entry{}, false
}

func TestPinhole(t *testing.T) {
	t.Parallel()
	gw, b := open6(t, quirks.UPnP{})
	r := request(8080, 0)
	r.Remote = netip.MustParseAddrPort("[2001:db8::7]:99")
	m, err := b.Map(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	here := netip.AddrPortFrom(loopback6, 8080)
	if m.Internal != here || m.External != here || m.Lifetime != time.Hour || m.Remote != r.Remote || m.Backend != upnp.Name {
		t.Errorf("opened %+v", m)
	}
	e, _ := pinhole(gw, 8080)
	if f := e.Filters; len(f) != 1 || f[0].Prefix != netip.MustParsePrefix("2001:db8::7/128") || f[0].Port != 99 {
		t.Errorf("the gateway admits %v", e.Filters)
	}

	gw.Advance(30 * time.Minute)
	r.Lifetime = 2 * time.Hour
	renewed, err := b.Renew(t.Context(), m, r)
	if e, _ := pinhole(gw, 8080); err != nil || renewed.Lifetime != r.Lifetime || e.Remaining != r.Lifetime || renewed.External != here {
		t.Errorf("renewed %+v, %v; the gateway has %v remaining", renewed, err, e.Remaining)
	}
	if len(gw.Table()) != 1 {
		t.Errorf("the gateway has %v", gw.Table())
	}
	if addr, err := b.ExternalAddr(t.Context()); err != nil || addr != loopback6 {
		t.Errorf("ExternalAddr: %v, %v", addr, err)
	}
	for range 2 {
		if err := b.Unmap(t.Context(), renewed); err != nil || len(gw.Table()) != 0 {
			t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
		}
	}
}

// TestPinholeOverIPv4 checks that pinholes are opened through a device that is reached
// over IPv4: at the gateway's IPv4 address, at another one, and at a URL.
func TestPinholeOverIPv4(t *testing.T) {
	t.Parallel()
	_, _ = open6(t, quirks.UPnP{})
	explicit, unspecified := request(8080, 0), request(8080, 0)
	explicit.Internal = netip.AddrPortFrom(loopback6, 8080)
	for name, tt := range map[string]struct {
		config  func(gw *gatewaytest.Gateway) upnp.Config
		request backends.Request
		isKnown bool // the device belongs to the gateway
	}{
		"the gateway's IPv4 address": {func(gw *gatewaytest.Gateway) upnp.Config {
			return upnp.Config{Gateway: loopback6, Gateway4: gw.Addr().Addr(), Source: loopback6, Only: true}
		}, unspecified, true},
		"another IPv4 address": {func(*gatewaytest.Gateway) upnp.Config {
			return upnp.Config{Gateway: loopback6, Source: loopback6, Wait: searchWait}
		}, unspecified, false},
		"a URL": {func(gw *gatewaytest.Gateway) upnp.Config {
			return upnp.Config{Gateway: loopback6, URL: gw.UPnP().DescriptionURL()}
		}, explicit, true},
		"a URL, and the family of Source": {func(gw *gatewaytest.Gateway) upnp.Config {
			return upnp.Config{Source: loopback6, URL: gw.UPnP().DescriptionURL()}
		}, unspecified, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Listen6: netip.AddrPortFrom(loopback6, 0), Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{IPv4Only: true}}}})
			config := tt.config(gw)
			config.SSDP = []netip.AddrPort{gw.SSDP()}
			b, err := upnp.New(config)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			m, err := b.Map(t.Context(), tt.request)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := pinhole(gw, 8080); !ok || m.Internal.Addr() != loopback6 || m.External != m.Internal || m.Gateway.Addr() != gw.Addr().Addr() {
				t.Errorf("opened %+v; the gateway has %v", m, gw.Table())
			}
			if m, err = b.Renew(t.Context(), m, tt.request); err != nil {
				t.Fatal(err)
			}
			if other := b.OtherDevice(); other.IsValid() == tt.isKnown {
				t.Errorf("the other device is %v", other)
			}
			if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestPinholeOverIPv6First checks that the gateway's device is reached over IPv6 if it
// responds over both families, because it may open pinholes only for the sender.
func TestPinholeOverIPv6First(t *testing.T) {
	t.Parallel()
	gw, _ := open6(t, quirks.UPnP{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Service == "ssdp" && q.Source.Addr().Is6() }, Delay: 200 * time.Millisecond})
	b := newBackend(t, gw, upnp.Config{Gateway: loopback6, Gateway4: gw.Addr().Addr(), Source: loopback6, SSDP: []netip.AddrPort{gw.SSDP(), gw.UPnP().SSDP6()}})
	if m, err := b.Map(t.Context(), request(8080, 0)); err != nil || m.Gateway.Addr() != loopback6 {
		t.Errorf("opened %+v, %v", m, err)
	}
}

// TestPinholeLost checks that a renewal opens a lost pinhole again, and that
// closing a lost one succeeds, for every code that devices use for it.
func TestPinholeLost(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]quirks.UPnP{
		"704": {}, "402": {Firewall: quirks.Firewall{Absent: 402}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := open6(t, router)
			m, err := b.Map(t.Context(), request(8080, 8080))
			if err != nil {
				t.Fatal(err)
			}
			gw.Restart(gatewaytest.RestartOptions{Silent: true})
			m, err = b.Renew(t.Context(), m, request(8080, 8080))
			if _, ok := pinhole(gw, 8080); err != nil || !ok {
				t.Errorf("Renew: %v, the gateway has %v", err, gw.Table())
			}
			gw.Restart(gatewaytest.RestartOptions{Silent: true})
			if err := b.Unmap(t.Context(), m); err != nil {
				t.Errorf("Unmap: %v", err)
			}
		})
	}
}

// TestPinholeMoved checks that pinholes are renewed after the gateway changed its
// port.
func TestPinholeMoved(t *testing.T) {
	t.Parallel()
	gw, b := open6(t, quirks.UPnP{MovePort: true})
	m, err := b.Map(t.Context(), request(8080, 0))
	if err != nil {
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true, KeepTable: true})
	if _, err := b.Renew(t.Context(), m, request(8080, 0)); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Renew: %v, the gateway has %v", err, gw.Table())
	}
}

// TestPinholeIDsReassigned checks renewals after a restart, when the gateway
// assigns IDs again, so that an old ID can name another pinhole.
func TestPinholeIDsReassigned(t *testing.T) {
	t.Parallel()
	gw, b := open6(t, quirks.UPnP{})
	mappings := map[uint16]backends.Mapping{}
	for _, port := range []uint16{8080, 9090} {
		m, err := b.Map(t.Context(), request(port, 0))
		if err != nil {
			t.Fatal(err)
		}
		mappings[port] = m
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	for _, port := range []uint16{9090, 8080} { // in another order than before
		m, err := b.Renew(t.Context(), mappings[port], request(port, 0))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := pinhole(gw, port); !ok {
			t.Errorf("%d was renewed, but the gateway has %v", port, gw.Table())
		}
		mappings[port] = m
	}
	if err := b.Unmap(t.Context(), mappings[8080]); err != nil {
		t.Fatal(err)
	}
	if _, ok := pinhole(gw, 9090); !ok || len(gw.Table()) != 1 {
		t.Errorf("8080 was closed, but the gateway has %v", gw.Table())
	}
}

// TestFirewallDisabled checks that all ports count as open if the firewall is
// disabled.
func TestFirewallDisabled(t *testing.T) {
	t.Parallel()
	_, b := open6(t, quirks.UPnP{Firewall: quirks.Firewall{Disabled: true}})
	m, err := b.Map(t.Context(), request(8080, 0))
	if err != nil || m.External != netip.AddrPortFrom(loopback6, 8080) || m.Lifetime != time.Hour {
		t.Fatalf("opened %+v, %v", m, err)
	}
	if m, err = b.Renew(t.Context(), m, request(8080, 0)); err != nil {
		t.Errorf("Renew: %v", err)
	}
	if err := b.Unmap(t.Context(), m); err != nil {
		t.Errorf("Unmap: %v", err)
	}
}

// TestPinholeRefused checks requests that the gateway refuses or that the protocol
// does not support.
func TestPinholeRefused(t *testing.T) {
	t.Parallel()
	type firewall = quirks.Firewall
	forever, shortest, longest := request(8080, 0), request(8080, 0), request(8080, 0)
	forever.Lifetime, shortest.Lifetime, longest.Lifetime = backends.Forever, time.Millisecond, 40*time.Hour
	other, icmp := request(8080, 0), request(8080, 0)
	other.Internal = netip.MustParseAddrPort("[2001:db8::8]:8080")
	icmp.Protocol = 58
	for name, tt := range map[string]struct {
		router  quirks.UPnP
		request backends.Request
		want    error
		code    upnp.FaultCode
		lease   time.Duration
	}{
		"not allowed":             {quirks.UPnP{Firewall: firewall{NotAllowed: true}}, request(8080, 0), backends.ErrNotAuthorized, 703, 0},
		"switched off":            {quirks.UPnP{Rules: quirks.Rules{SwitchedOff: true}}, request(8080, 0), backends.ErrNotAuthorized, 606, 0},
		"below 1024":              {quirks.UPnP{Rules: quirks.Rules{LowPorts: 606}}, request(80, 0), backends.ErrNotAuthorized, 606, 0},
		"another host":            {quirks.UPnP{}, other, backends.ErrNotAuthorized, 606, 0},
		"unsupported protocol":    {quirks.UPnP{}, icmp, backends.ErrUnsupported, 705, 0},
		"another port, exact":     {quirks.UPnP{}, exactRequest(8080, 9000), backends.ErrUnsupported, 0, 0},
		"the same port, exact":    {quirks.UPnP{}, exactRequest(8080, 8080), nil, 0, time.Hour},
		"another port, not exact": {quirks.UPnP{}, request(8080, 9000), nil, 0, time.Hour},
		"forever":                 {quirks.UPnP{}, forever, backends.ErrUnsupported, 0, 0},
		"very short":              {quirks.UPnP{}, shortest, nil, 0, time.Second},
		"very long":               {quirks.UPnP{}, longest, nil, 0, 24 * time.Hour},
		"default lifetime":        {quirks.UPnP{}, backends.Request{Protocol: backends.UDP, Internal: request(8080, 0).Internal}, nil, 0, upnp.DefaultLifetime},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := open6(t, tt.router)
			m, err := b.Map(t.Context(), tt.request)
			if tt.want != nil {
				wantError(t, err, tt.want, tt.code)
				return
			}
			if e, _ := pinhole(gw, 8080); err != nil || m.Lifetime != tt.lease || e.Remaining != tt.lease || m.External.Port() != 8080 {
				t.Errorf("opened %+v, %v; the gateway has %+v", m, err, e)
			}
		})
	}
}

// TestPinholesNotListed checks that List and EntryAt are unsupported: firewalls
// have no table.
func TestPinholesNotListed(t *testing.T) {
	t.Parallel()
	_, b := open6(t, quirks.UPnP{})
	_, err := listedPorts(t, b)
	wantError(t, err, backends.ErrUnsupported, 0)
	_, err = b.EntryAt(t.Context(), 0)
	wantError(t, err, backends.ErrUnsupported, 0)
}

// TestFirewallGateways checks the reasons that Gateways reports for firewalls.
// Version 1 has no firewall service.
func TestFirewallGateways(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		router quirks.UPnP
		reason string
	}{
		"open":        {quirks.UPnP{}, "opens pinholes, and this host's default gateway"},
		"not allowed": {quirks.UPnP{Firewall: quirks.Firewall{NotAllowed: true}}, "pinholes switched off, and this host's default gateway"},
		"version 1":   {quirks.UPnP{Version: 1}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, _ := open6(t, tt.router)
			b := newBackend(t, gw, upnp.Config{Gateway: loopback6, SSDP: []netip.AddrPort{gw.UPnP().SSDP6()}, Wait: searchWait / 2})
			all, err := b.Gateways(t.Context())
			if tt.reason == "" {
				wantError(t, err, backends.ErrNoReply, 0)
				return
			}
			if err != nil || len(all) != 1 || all[0].Reason != tt.reason || all[0].Device.Local != loopback6 {
				t.Errorf("found %+v, %v", all, err)
			}
		})
	}
}
