package upnp_test

import (
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestVerifyEntry checks that the backend looks for the entry after a success.
func TestVerifyEntry(t *testing.T) {
	type router = quirks.UPnP
	type rules = quirks.Rules
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		router router
		want   error
	}{
		"not listed":                                 {router{Rules: rules{Unlisted: true}}, backends.ErrNoResources},
		"listed for another client":                  {router{Rules: rules{ListedClient: netip.MustParseAddr("192.168.77.9")}}, backends.ErrNoResources},
		"no GetSpecificPortMappingEntry":             {router{Listing: listing{NoSpecific: true}}, nil},
		"GetSpecificPortMappingEntry fails with 402": {router{Listing: listing{Absent: 402}}, nil},
		"GetSpecificPortMappingEntry fails with 501": {router{Listing: listing{Absent: 501}}, nil},
		"not listed, and 402 for all absent entries": {router{Rules: rules{Unlisted: true}, Listing: listing{Absent: 402}}, nil},
		"listed, but not forwarding":                 {router{Rules: rules{NoTraffic: true}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, b := startBackend(t, tt.router)
			m, err := b.Map(t.Context(), exactRequest(8080, 9000))
			if tt.want != nil {
				wantError(t, err, tt.want, 0)
				return
			}
			if err != nil || m.External.Port() != 9000 || m.Lifetime != request(1, 1).Lifetime {
				t.Errorf("mapped %v for %v, %v", m.External, m.Lifetime, err)
			}
		})
	}
}

// TestVerifyConflict checks that ErrConflict is returned if another program got the
// port in the meantime.
func TestVerifyConflict(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Corrupt: func(reply []byte) []byte {
		gw.RemoveMapping(backends.TCP, 9000)
		if err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:9999"), External: netip.AddrPortFrom(gw.External(), 9000),
		}); err != nil {
			t.Error(err)
		}
		return reply
	}})
	_, err := b.Map(t.Context(), exactRequest(8080, 9000))
	wantError(t, err, backends.ErrConflict, 0)
}

// TestExternalAddrForms checks that a missing external address is unknown and does
// not prevent mappings, and that a private one is returned.
func TestExternalAddrForms(t *testing.T) {
	for reported, want := range map[string]string{
		"": "", "0.0.0.0": "", "unknown": "", " 45.45.45.1 ": "45.45.45.1", "192.168.0.2": "192.168.0.2", "100.64.0.9": "100.64.0.9",
	} {
		t.Run(reported, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Status: quirks.Status{External: func(netip.Addr) string { return reported }}})
			wanted, _ := netip.ParseAddr(want)
			if got, err := b.ExternalAddr(t.Context()); err != nil || got != wanted {
				t.Errorf("ExternalAddr: %v, %v; want %v", got, err, wanted)
			}
			if m := mustMap(t, gw, b, request(8080, 9000)); m.External != netip.AddrPortFrom(wanted, 9000) {
				t.Errorf("mapped %v", m.External)
			}
		})
	}
}

// TestConnectionStates checks that a device that reports no state, or one other
// than Connected, is used if there is no better one.
func TestConnectionStates(t *testing.T) {
	t.Parallel()
	needHosts(t)
	nowhere := func(netip.Addr) string { return "" }
	var ssdp []netip.AddrPort
	want := map[netip.Addr]string{}
	for _, tt := range []struct {
		status quirks.Status
		reason string
	}{
		{quirks.Status{}, "connected, with a public address"},
		{quirks.Status{Connection: "up"}, "connected, with a public address, but answered later"},
		{quirks.Status{External: nowhere}, "connected, without a public address"},
		{quirks.Status{Unsupported: true}, "does not report whether it is connected"},
		{quirks.Status{Connection: "Disconnected"}, "not connected: Disconnected"},
	} {
		gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: tt.status}}})
		ssdp = append(ssdp, gw.SSDP())
		want[gw.Addr().Addr()] = tt.reason
		if tt.status.Connection != "" || tt.status.Unsupported {
			mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000))
		}
	}
	b, err := upnp.New(upnp.Config{Gateway: host(), SSDP: ssdp, Wait: searchWait})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	all, err := b.Gateways(t.Context())
	if err != nil || len(all) != len(want) {
		t.Fatalf("found %d, %v", len(all), err)
	}
	for i, g := range all {
		reason := want[g.Device.Host]
		if i < 2 { // either can be the first to respond
			reason = []string{"connected, with a public address", "connected, with a public address, but answered later"}[i]
		}
		if g.Reason != reason {
			t.Errorf("gateway %d: %q, want %q", i, g.Reason, reason)
		}
	}
}
