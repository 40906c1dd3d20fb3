package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
)

// summary is what matters of a spec: "4 192.0.2.10:80 from 8080 exactly".
func (f *Forwarder) summary(w spec) string {
	fam := "4"
	if f.familyFor(&w) == ipv6 {
		fam = "6"
	}
	s := fmt.Sprint(fam, " ", w.Internal.Addr(), ":", w.Internal.Port())
	if w.External != 0 {
		s += fmt.Sprint(" from ", w.External)
	}
	if w.Exact {
		s += " exactly"
	}
	return s
}

// What is asked for a socket, by the network, where it is bound, the ways out
// and the options.
func TestListenWishes(t *testing.T) {
	const (
		ula    = "fd00::10"
		global = "2001:db8::10"
		none   = ""
	)
	peer4, peer6 := From(netip.MustParseAddrPort("45.45.45.7:0")), From(netip.MustParseAddrPort("[2001:db8::7]:0"))
	for name, test := range map[string]struct {
		network, bound string
		local6         string // of the way to the IPv6 internet
		config         Config
		opts           []Option
		want           string // or "invalid"
	}{
		"both":             {network: "tcp", bound: "[::]:80", local6: global, want: "4 invalid IP:80, 6 invalid IP:80"},
		"no IPv6":          {network: "tcp", bound: "[::]:80", local6: none, want: "4 invalid IP:80"},
		"no global IPv6":   {network: "tcp", bound: "[::]:80", local6: ula, want: "4 invalid IP:80"},
		"only link-local":  {network: "tcp", bound: "[::]:80", local6: "fe80::10%eth0", want: "4 invalid IP:80"},
		"tcp4":             {network: "tcp4", bound: "0.0.0.0:80", local6: global, want: "4 invalid IP:80"},
		"bound to IPv4":    {network: "tcp", bound: "0.0.0.0:80", local6: global, want: "4 invalid IP:80"},
		"tcp6":             {network: "tcp6", bound: "[::]:80", local6: global, want: "6 invalid IP:80"},
		"tcp6 insists":     {network: "tcp6", bound: "[::]:80", local6: none, want: "6 invalid IP:80"},
		"one IPv4 address": {network: "tcp", bound: "192.0.2.10:80", local6: global, want: "4 192.0.2.10:80"},
		"mapped":           {network: "tcp", bound: "[::ffff:192.0.2.10]:80", local6: global, want: "4 192.0.2.10:80"},
		"one IPv6 address": {network: "tcp", bound: "[2001:db8::99]:80", local6: none, want: "6 2001:db8::99:80"},

		"external": {
			network: "tcp", bound: "[::]:80", local6: global, opts: []Option{External(8080), Exact()},
			want: "4 invalid IP:80 from 8080 exactly, 6 invalid IP:80 exactly",
		},
		"from IPv4":     {network: "tcp", bound: "[::]:80", local6: global, opts: []Option{peer4}, want: "4 invalid IP:80"},
		"from IPv6":     {network: "tcp", bound: "[::]:80", local6: none, opts: []Option{peer6}, want: "6 invalid IP:80"},
		"same exactly":  {network: "tcp6", bound: "[::]:80", opts: []Option{External(80), Exact()}, want: "6 invalid IP:80 exactly"},
		"from IPv4 to6": {network: "tcp6", bound: "[::]:80", opts: []Option{peer4}, want: "invalid"},
		"from IPv6 to4": {network: "tcp4", bound: "0.0.0.0:80", local6: global, opts: []Option{peer6}, want: "invalid"},
		"exact pinhole": {network: "tcp6", bound: "[::]:80", opts: []Option{External(8080), Exact()}, want: "invalid"},

		"a test's gateway": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{Gateway: netip.MustParseAddrPort("127.0.0.1:5351")}, want: "4 invalid IP:80",
		},
		"a test's IPv6 gateway": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{Gateway: netip.MustParseAddrPort("[::1]:5351")}, want: "6 invalid IP:80",
		},
		"a test's device": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{UPnPURL: "http://127.0.0.1:5000/"}, want: "4 invalid IP:80",
		},
		"an IPv6 gateway": {
			network: "tcp", bound: "[::]:80", local6: none,
			config: Config{Gateway: netip.MustParseAddrPort("[2001:db8::1]:5351")}, want: "4 invalid IP:80, 6 invalid IP:80",
		},

		"loopback":        {network: "tcp", bound: "127.0.0.1:80", want: "invalid"},
		"loopback's net":  {network: "tcp", bound: "127.8.8.8:80", want: "invalid"},
		"loopback mapped": {network: "tcp", bound: "[::ffff:127.0.0.1]:80", want: "invalid"},
		"IPv6 loopback":   {network: "tcp", bound: "[::1]:80", want: "invalid"},
		"multicast":       {network: "udp", bound: "224.0.0.251:80", want: "invalid"},
		"link-local":      {network: "tcp", bound: "[fe80::10%eth0]:80", want: "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := New(&test.config)
			if err != nil {
				t.Fatal(err)
			}
			f.defaultRoutes[ipv6] = func() (discover.Gateway, error) {
				if test.local6 == none {
					return discover.Gateway{}, discover.ErrNoRoute
				}
				return discover.Gateway{Addr: netip.MustParseAddr("fe80::1%eth0"), Local: netip.MustParseAddr(test.local6)}, nil
			}
			specs, err := f.listenSpecs(backends.TCP, test.network, netip.MustParseAddrPort(test.bound), test.opts)
			if test.want == "invalid" {
				if !errors.Is(err, backends.ErrInvalid) || len(specs) != 0 {
					t.Errorf("%v, %v, want ErrInvalid", specs, err)
				}
				return
			}
			var got []string
			for _, w := range specs {
				got = append(got, f.summary(w))
				if !w.Background || !w.noDefault || w.ipv4 == w.ipv6 {
					t.Errorf("spec %+v", w)
				}
			}
			if s := strings.Join(got, ", "); err != nil || s != test.want {
				t.Errorf("%s, %v, want %s", s, err, test.want)
			}
		})
	}
}

// A mapping can be for ever; a pinhole is renewed each day.
func TestListenPermanent(t *testing.T) {
	f, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for network, want := range map[string]time.Duration{"udp4": backends.Forever, "udp6": 24 * time.Hour} {
		bound := netip.MustParseAddrPort("[::]:80")
		if network == "udp4" {
			bound = netip.MustParseAddrPort("0.0.0.0:80")
		}
		specs, err := f.listenSpecs(backends.UDP, network, bound, []Option{Lifetime(Forever), Description("web")})
		if err != nil || len(specs) != 1 || specs[0].Lifetime != want || specs[0].Description != "web" {
			t.Errorf("%s: %+v, %v", network, specs, err)
		}
	}
}
