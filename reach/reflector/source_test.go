package reflector

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// TestSecondAddress checks that the reflector connects from another address than the one to which
// the request went, if there is one and the operator has named none.
func TestSecondAddress(t *testing.T) {
	const asked, second, named = "45.45.45.2", "45.45.45.3", "127.0.0.1"
	for _, tt := range []struct {
		name, local, requester, want string
		named                        bool
	}{
		{"another address", asked + ":80", requester, second, false},
		{"an IPv4-mapped address", "[::ffff:45.45.45.2]:80", requester, second, false},
		{"no other address", "45.45.45.9:80", requester, "", false},
		{"the operator's address", asked + ":80", requester, named, true},
		{"another family", asked + ":80", "2606:4700::9", "", false},
		{"unknown", "", requester, "", false},
	} {
		var got netip.Addr
		config := Config{}
		if tt.named {
			config.DialFrom = []netip.Addr{netip.MustParseAddr(named)}
		}
		h := newHandler(t, config, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			got = c.From
			return echo(c, ctx, announce)
		})
		h.second = func(of netip.Addr) netip.Addr {
			if of == netip.MustParseAddr(asked) {
				return netip.MustParseAddr(second)
			}
			return netip.Addr{}
		}
		r := from(post(body(tcpProbe(80))), tt.requester)
		if tt.local != "" {
			local := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.local))
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(local)))
		}
		serve(h, r)
		if want, _ := netip.ParseAddr(tt.want); got != want {
			t.Errorf("%s: from %v, want %v", tt.name, got, want)
		}
	}
}

// TestOtherAddress checks which of the addresses of an interface is another public one.
func TestOtherAddress(t *testing.T) {
	all := func(addrs ...string) (out []net.Addr) {
		for _, a := range addrs {
			ip, network, err := net.ParseCIDR(a)
			if err != nil {
				t.Fatal(err)
			}
			network.IP = ip
			out = append(out, network)
		}
		return out
	}
	for _, tt := range []struct {
		name, first, want string
		addrs             []net.Addr
		hasFirst          bool
	}{
		{"two", "45.45.45.2", "45.45.45.3", all("45.45.45.2/24", "45.45.45.3/24"), true},
		{"two, the other is first", "45.45.45.3", "45.45.45.2", all("45.45.45.2/24", "45.45.45.3/24"), true},
		{"one", "45.45.45.2", "", all("45.45.45.2/24"), true},
		{"a private one", "45.45.45.2", "", all("45.45.45.2/24", "10.0.0.1/8", "169.254.1.1/16"), true},
		{"another family", "45.45.45.2", "", all("45.45.45.2/24", "2606:4700::2/64"), true},
		{"IPv6", "2606:4700::2", "2606:4700::3", all("fe80::1/64", "45.45.45.2/24", "2606:4700::2/64", "fd00::1/64", "2606:4700::3/64"), true},
		{"another interface", "45.45.45.2", "45.45.45.3", all("45.45.45.3/24"), false},
	} {
		got, hasFirst := otherOf(tt.addrs, netip.MustParseAddr(tt.first))
		if want, _ := netip.ParseAddr(tt.want); got != want || hasFirst != tt.hasFirst {
			t.Errorf("%s: %v, %v", tt.name, got, hasFirst)
		}
	}
	for _, local := range []string{"127.0.0.1", "::1", "10.255.255.254"} {
		if got := secondAddr(netip.MustParseAddr(local)); got.IsValid() {
			t.Errorf("%s has the second address %v", local, got)
		}
	}
}
