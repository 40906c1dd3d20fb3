package libp2pnat

import (
	"net/netip"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

const certhash = "/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ"

// TestRewrite checks the announced address of many listen addresses. It compares their texts.
func TestRewrite(t *testing.T) {
	const external = "45.45.45.1:40001"
	for listen, want := range map[string]string{
		"/ip4/0.0.0.0/tcp/4001":                                 "/ip4/45.45.45.1/tcp/40001",
		"/ip4/0.0.0.0/tcp/4001/ws":                              "/ip4/45.45.45.1/tcp/40001/ws",
		"/ip4/0.0.0.0/tcp/443/tls/sni/example.org/ws":           "/ip4/45.45.45.1/tcp/40001/tls/sni/example.org/ws",
		"/ip4/0.0.0.0/udp/4001/quic-v1":                         "/ip4/45.45.45.1/udp/40001/quic-v1",
		"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport":            "/ip4/45.45.45.1/udp/40001/quic-v1/webtransport",
		"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport" + certhash: "/ip4/45.45.45.1/udp/40001/quic-v1/webtransport" + certhash,
		"/ip4/0.0.0.0/udp/4001/webrtc-direct" + certhash:        "/ip4/45.45.45.1/udp/40001/webrtc-direct" + certhash,
		"/ip4/192.168.1.5/tcp/65535":                            "/ip4/45.45.45.1/tcp/40001",
		"/ip4/10.0.0.5/udp/1/quic-v1":                           "/ip4/45.45.45.1/udp/40001/quic-v1",
		"/ip4/45.45.45.7/tcp/4001":                              "/ip4/45.45.45.1/tcp/40001",
		"/ip4/127.0.0.1/tcp/4001":                               "",
		"/ip4/127.1.2.3/udp/4001/quic-v1":                       "",
		"/ip4/169.254.1.1/tcp/4001":                             "",
		"/ip4/224.0.0.1/udp/4001/quic-v1":                       "",
		"/ip4/255.255.255.255/udp/4001/quic-v1":                 "",
		"/ip4/0.0.0.0/tcp/0":                                    "",
		"/ip4/0.0.0.0/sctp/4001":                                "",
		"/ip4/0.0.0.0":                                          "",
		"/ip6/::/tcp/4001":                                      "",
		"/ip6/2001:db8::1/udp/4001/quic-v1":                     "",
		"/ip6zone/eth0/ip6/fe80::1/tcp/4001":                    "",
		"/dns4/example.org/tcp/4001":                            "",
		"/unix/run/socket":                                      "",
		"/p2p-circuit":                                          "",
		"/tcp/4001":                                             "",
		"/memory/1234":                                          "",
	} {
		got := rewrite(ma.StringCast(listen), netip.MustParseAddrPort(external))
		switch {
		case want == "" && got != nil:
			t.Errorf("%s is rewritten to %v, want nothing", listen, got)
		case want != "" && got.String() != want:
			t.Errorf("%s is rewritten to %v, want %s", listen, got, want)
		}
	}
	if got := rewrite(nil, netip.MustParseAddrPort(external)); got != nil {
		t.Errorf("no address is rewritten to %v, want nothing", got)
	}
}

// rewrite replaces the endpoint of a listen address, as GetMapping does.
func rewrite(listen ma.Multiaddr, external netip.AddrPort) ma.Multiaddr {
	e, suffix, ok := parseListenAddr(listen)
	if !ok {
		return nil
	}
	return e.externalMultiaddr(external, suffix)
}

// TestExternalMultiaddr checks the announced address of several external endpoints, and that
// incomplete endpoints are not announced.
func TestExternalMultiaddr(t *testing.T) {
	listen := ma.StringCast("/ip4/0.0.0.0/udp/4001/quic-v1")
	for external, want := range map[netip.AddrPort]string{
		{}: "",
		netip.MustParseAddrPort("45.45.45.1:4001"):          "/ip4/45.45.45.1/udp/4001/quic-v1",
		netip.MustParseAddrPort("[::ffff:45.45.45.1]:4001"): "/ip4/45.45.45.1/udp/4001/quic-v1",
		netip.MustParseAddrPort("[2001:db8::1]:4001"):       "/ip6/2001:db8::1/udp/4001/quic-v1",
		netip.MustParseAddrPort("10.66.66.1:4001"):          "/ip4/10.66.66.1/udp/4001/quic-v1",
		netip.MustParseAddrPort("100.64.0.1:4001"):          "/ip4/100.64.0.1/udp/4001/quic-v1",
		netip.MustParseAddrPort("0.0.0.0:4001"):             "",
		netip.MustParseAddrPort("[::]:4001"):                "",
		netip.MustParseAddrPort("45.45.45.1:0"):             "",
		netip.AddrPortFrom(netip.Addr{}, 4001):              "", // the gateway does not report its external address
	} {
		got := rewrite(listen, external)
		if want == "" && got != nil || want != "" && got.String() != want {
			t.Errorf("%v is announced as %v, want %q", external, got, want)
		}
	}
}

// TestSharedEndpoints checks that listen addresses on one port share an endpoint, and that
// others have different endpoints.
func TestSharedEndpoints(t *testing.T) {
	seen := map[internalAddr]string{}
	for _, group := range [][]string{
		{"/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/udp/4001/quic-v1/webtransport", "/ip4/0.0.0.0/udp/4001/webrtc-direct"},
		{"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/tcp/4001/ws"},
		{"/ip4/0.0.0.0/tcp/4002"},
		{"/ip4/192.168.1.5/tcp/4001"},
	} {
		first, _, _ := parseListenAddr(ma.StringCast(group[0]))
		if other, ok := seen[first]; ok {
			t.Errorf("%s and %s share an endpoint", group[0], other)
		}
		seen[first] = group[0]
		for _, s := range group[1:] {
			if e, _, ok := parseListenAddr(ma.StringCast(s)); !ok || e != first {
				t.Errorf("%s has endpoint %v, %t, want %v", s, e, ok, first)
			}
		}
	}
}

// FuzzRewrite checks that only the address and port of a listen address change.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{
		"/ip4/0.0.0.0/tcp/4001", "/ip4/192.168.1.5/udp/4001/quic-v1/webtransport" + certhash,
		"/ip6/::/tcp/4001", "/ip4/0.0.0.0/tcp/0", "/dns4/example.org/tcp/4001", "/p2p-circuit",
	} {
		b := ma.StringCast(s).Bytes()
		for i := range len(b) + 1 {
			f.Add(b[:i])
		}
	}
	external := netip.MustParseAddrPort("45.45.45.1:40001")
	f.Fuzz(func(t *testing.T, b []byte) {
		listen, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			return
		}
		got := rewrite(listen, external)
		if got == nil {
			return
		}
		if got[0].String() != "/ip4/45.45.45.1" || got[1].Value() != "40001" || got[1].Code() != listen[1].Code() ||
			!got[2:].Equal(listen[2:]) {
			t.Errorf("%v is rewritten to %v", listen, got)
		}
	})
}
