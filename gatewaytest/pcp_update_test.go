package gatewaytest_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	mapUDPforPCP = "02010000 00000bb8 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 11000000 1ae11af4 " +
		"00000000 00000000 0000ffff 00000000"
	// mappingUpdate is RFC 6887's diagram filled in by hand.
	mappingUpdate = "02810000" + "00000bb8" + "00000028" + "000000000000000000000000" + "101112131415161718191a1b" +
		"11000000" + "1ae11af4" + "00000000000000000000ffffcb007163"
)

func TestMappingUpdates(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{MappingUpdates: true}}})
	h := newHost(t, gw)
	h.ask(mapUDPforPCP)
	gw.Restart(gatewaytest.RestartOptions{KeepTable: true, Silent: true})
	gw.Advance(40 * time.Second)
	h.ask(mapUDPforPCP)
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	for range 3 { // at once, after 250 ms and after 500 ms more
		if got := h.receive(); got != mappingUpdate {
			t.Errorf("got  %s\nwant %s", got, mappingUpdate)
		}
	}
	if n := gw.Stats().MappingUpdates; n != 3 {
		t.Errorf("%d updates counted, want 3", n)
	}
}

func TestMappingUpdateOnce(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{UpdateCount: 1, ThirdParty: true}}})
	h := newHost(t, gw)
	gw.UpdateMappings() // nobody to tell
	h.ask(mapTCP)       // NAT-PMP has no such thing
	h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort, m.Options.PreferFailure = 90, 90, true })
	h.pcp(func(m *pcp.MapRequest) { m.Options.ThirdParty, m.ExternalPort = neighbour.Addr(), 91 })
	late := newHost(t, gw)
	late.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 92, 92 })
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	gw.UpdateMappings()
	lost := h.response()
	want(t, lost, pcp.CannotProvideExternal, 30*time.Minute)
	if lost.InternalPort != 90 || lost.Nonce != ours {
		t.Errorf("lost %+v", lost)
	}
	moved := h.response()
	want(t, moved, pcp.Success, 2*time.Hour)
	if moved.Options.ThirdParty != neighbour.Addr() || moved.External.String() != "203.0.113.99" || moved.ExternalPort != 91 {
		t.Errorf("moved %+v", moved)
	}
	if r := late.response(); r.InternalPort != 92 || r.External.String() != "203.0.113.99" {
		t.Errorf("the other client: %+v", r)
	}
	if n := len(gw.Table()); n != 3 {
		t.Errorf("%d entries, want all but the lost one: %v", n, gw.Table())
	}

	gw.SetExternal(netip.IPv4Unspecified())
	gw.UpdateMappings()
	want(t, late.response(), pcp.NetworkFailure, 30*time.Second)
	gw.Down()
	gw.UpdateMappings()
	if n := gw.Stats().MappingUpdates; n != 5 {
		t.Errorf("%d updates counted, want 5", n)
	}
}

func TestPeerUpdate(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{UpdateCount: 1, MappingUpdates: true}}})
	h := newHost(t, gw)
	peer(h, func(m *pcp.PeerRequest) {})
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	const prefix = "02820000" + "00000e10" + "000004d2"
	if got := h.receive(); len(got) != 160 || got[:24] != prefix || got[112:120] != "cb007163" {
		t.Errorf("got %s", got)
	}
}
