package forward_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

var sameAddrs = cmpopts.EquateComparable(backends.Endpoint{})

// A pinhole is at the host's own address.
func TestListenPinhole(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{
		Protocols: []string{"natpmp", "pcp"}, Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.LeadTo(gw.Addr(), gw.Addr6()); err != nil {
		t.Fatal(err)
	}
	for network, want := range map[string][]string{"tcp": {"tcp4", "tcp6"}, "tcp4": {"tcp4"}, "tcp6": {"tcp6"}} {
		t.Run(network, func(t *testing.T) {
			ln := listen(t, f, network, forward.External(8080))
			port := localPort(t, ln.Addr())
			at := map[string]netip.AddrPort{
				"tcp4": netip.AddrPortFrom(gw.External(), 8080), "tcp6": netip.AddrPortFrom(netip.IPv6Loopback(), port),
			}
			var ends []backends.Endpoint
			for _, family := range want {
				ends = append(ends, backends.Endpoint{AddrPort: at[family]})
			}
			if err := ln.Wait(t.Context()); err != nil {
				t.Errorf("Wait: %v", err)
			}
			if diff := cmp.Diff(ends, ln.Externals(), sameAddrs); diff != "" || ln.External() != ends[0] {
				t.Errorf("External %v, Externals (-want +got):\n%s", ln.External(), diff)
			}
			greet(ln)
			for _, family := range want {
				if got, err := read(t, gw, family, at[family]); err != nil || got != "hello" {
					t.Errorf("%s: read %q, %v", family, got, err)
				}
			}
			if len(want) == 2 { // it is the pinhole's where that is all
				if err := ln.Mapping().Close(); err != nil || ln.External().AddrPort != at["tcp6"] {
					t.Errorf("without the mapping: %v, %v", ln.External(), err)
				}
			}
			if err := ln.Close(); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Close: %v; the gateway has %v", err, gw.Table())
			}
			if err := ln.Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
				t.Errorf("Wait after Close: %v", err)
			}
		})
	}
}

// A gateway for IPv6 that is silent keeps nobody from that for IPv4.
func TestListenFamiliesApart(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{
		Protocols: []string{"natpmp", "pcp"}, Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")}, DiscoveryTimeout: time.Minute, RequestTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.LeadTo(gw.Addr(), gw.Addr6()); err != nil {
		t.Fatal(err)
	}
	over6 := func(r gatewaytest.Request) bool { return r.Source.Addr().Is6() }
	gw.Inject(gatewaytest.Fault{Match: over6, Drop: true})
	pc, err := f.ListenPacket(t.Context(), "udp6", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := gw.AwaitRequests(waiting(t), 1, over6); err != nil {
		t.Fatal(err)
	}
	listen(t, f, "tcp4")
}
