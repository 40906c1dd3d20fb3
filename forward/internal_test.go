package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/state"
)

// uncomparableBackend is a backend that cannot be the key of a map.
type uncomparableBackend struct {
	backends.Backend
	_ []int
}

func TestConfigInvalid(t *testing.T) {
	for name, config := range map[string]*Config{
		"negative discovery timeout": {DiscoveryTimeout: -1},
		"negative request timeout":   {RequestTimeout: -1},
		"negative lifetime":          {Lifetime: -1},
		"unknown protocol":           {Protocols: []string{"natpmp", "smoke"}},
		"no address":                 {Gateway: netip.AddrPortFrom(netip.Addr{}, 5351)},
		"unspecified":                {Gateway: netip.MustParseAddrPort("0.0.0.0:5351")},
		"two address families":       {Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Source: netip.MustParseAddr("2001:db8::1")},
		"nil backend":                {Backends: []backends.Backend{nil}},
		"incomparable value":         {Backends: []backends.Backend{uncomparableBackend{}}},
	} {
		if _, err := New(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for name, config := range map[string]*Config{"nil": nil, "zero": {}} {
		f, err := New(config)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.config.DiscoveryTimeout != DefaultDiscoveryTimeout || f.config.RequestTimeout != DefaultRequestTimeout || f.config.Lifetime != DefaultLifetime || len(f.config.Protocols) == 0 {
			t.Errorf("%s: config %+v", name, f.config)
		}
		_ = f.Close()
	}
}

// TestRecordObsolete checks that a record of the state file is forgotten only if the
// gateway can no longer have the mapping.
func TestRecordObsolete(t *testing.T) {
	for name, c := range map[string]struct {
		ago, lifetime time.Duration
		want          bool
	}{
		"active":                       {time.Minute, time.Hour, false},
		"expired five minutes ago":     {65 * time.Minute, time.Hour, false},
		"expired":                      {2 * time.Hour, time.Hour, true},
		"forever":                      {24 * time.Hour, backends.Forever, false},
		"forever, granted 60 days ago": {60 * 24 * time.Hour, backends.Forever, true},
	} {
		r := state.Record{Mapping: backends.Mapping{Granted: time.Now().Add(-c.ago), Lifetime: c.lifetime}}
		if got := isObsolete(r); got != c.want {
			t.Errorf("%s: obsolete %v, want %v", name, got, c.want)
		}
	}
}

// specText returns the tested fields of a spec, as "4 192.0.2.10:80 from 8080 exactly".
func (f *Forwarder) specText(s spec) string {
	familyName := "4"
	if f.familyFor(&s) == ipv6 {
		familyName = "6"
	}
	text := fmt.Sprint(familyName, " ", s.Internal.Addr(), ":", s.Internal.Port())
	if s.External != 0 {
		text += fmt.Sprint(" from ", s.External)
	}
	if s.Exact {
		text += " exactly"
	}
	return text
}

// TestListenSpecs checks what a socket requests, depending on the network, the bound
// address, the routes and the options.
func TestListenSpecs(t *testing.T) {
	const (
		ula    = "fd00::10"
		global = "2001:db8::10"
		none   = ""
	)
	peer4, peer6 := From(netip.MustParseAddrPort("45.45.45.7:0")), From(netip.MustParseAddrPort("[2001:db8::7]:0"))
	for name, test := range map[string]struct {
		network, bound string
		local6         string // local address of the IPv6 default route
		config         Config
		opts           []Option
		want           string // or "invalid"
	}{
		"both":              {network: "tcp", bound: "[::]:80", local6: global, want: "4 invalid IP:80, 6 invalid IP:80"},
		"no IPv6":           {network: "tcp", bound: "[::]:80", local6: none, want: "4 invalid IP:80"},
		"no global IPv6":    {network: "tcp", bound: "[::]:80", local6: ula, want: "4 invalid IP:80"},
		"only link-local":   {network: "tcp", bound: "[::]:80", local6: "fe80::10%eth0", want: "4 invalid IP:80"},
		"tcp4":              {network: "tcp4", bound: "0.0.0.0:80", local6: global, want: "4 invalid IP:80"},
		"bound to IPv4":     {network: "tcp", bound: "0.0.0.0:80", local6: global, want: "4 invalid IP:80"},
		"tcp6":              {network: "tcp6", bound: "[::]:80", local6: global, want: "6 invalid IP:80"},
		"tcp6 without IPv6": {network: "tcp6", bound: "[::]:80", local6: none, want: "6 invalid IP:80"},
		"one IPv4 address":  {network: "tcp", bound: "192.0.2.10:80", local6: global, want: "4 192.0.2.10:80"},
		"mapped":            {network: "tcp", bound: "[::ffff:192.0.2.10]:80", local6: global, want: "4 192.0.2.10:80"},
		"one IPv6 address":  {network: "tcp", bound: "[2001:db8::99]:80", local6: none, want: "6 2001:db8::99:80"},

		"external": {
			network: "tcp", bound: "[::]:80", local6: global, opts: []Option{External(8080), Exact()},
			want: "4 invalid IP:80 from 8080 exactly, 6 invalid IP:80 exactly",
		},
		"from IPv4":       {network: "tcp", bound: "[::]:80", local6: global, opts: []Option{peer4}, want: "4 invalid IP:80"},
		"from IPv6":       {network: "tcp", bound: "[::]:80", local6: none, opts: []Option{peer6}, want: "6 invalid IP:80"},
		"same exactly":    {network: "tcp6", bound: "[::]:80", opts: []Option{External(80), Exact()}, want: "6 invalid IP:80 exactly"},
		"from IPv4, tcp6": {network: "tcp6", bound: "[::]:80", opts: []Option{peer4}, want: "invalid"},
		"from IPv6, tcp4": {network: "tcp4", bound: "0.0.0.0:80", local6: global, opts: []Option{peer6}, want: "invalid"},
		"exact pinhole":   {network: "tcp6", bound: "[::]:80", opts: []Option{External(8080), Exact()}, want: "invalid"},

		"loopback gateway": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{Gateway: netip.MustParseAddrPort("127.0.0.1:5351")}, want: "4 invalid IP:80",
		},
		"IPv6 loopback gateway": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{Gateway: netip.MustParseAddrPort("[::1]:5351")}, want: "6 invalid IP:80",
		},
		"loopback device": {
			network: "tcp", bound: "[::]:80", local6: global,
			config: Config{UPnPURL: "http://127.0.0.1:5000/"}, want: "4 invalid IP:80",
		},
		"named IPv6 gateway": {
			network: "tcp", bound: "[::]:80", local6: none,
			config: Config{Gateway: netip.MustParseAddrPort("[2001:db8::1]:5351")}, want: "4 invalid IP:80, 6 invalid IP:80",
		},

		"loopback":         {network: "tcp", bound: "127.0.0.1:80", want: "invalid"},
		"loopback network": {network: "tcp", bound: "127.8.8.8:80", want: "invalid"},
		"loopback mapped":  {network: "tcp", bound: "[::ffff:127.0.0.1]:80", want: "invalid"},
		"IPv6 loopback":    {network: "tcp", bound: "[::1]:80", want: "invalid"},
		"multicast":        {network: "udp", bound: "224.0.0.251:80", want: "invalid"},
		"link-local":       {network: "tcp", bound: "[fe80::10%eth0]:80", want: "invalid"},
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
			for _, s := range specs {
				got = append(got, f.specText(s))
				if !s.Background || !s.noDefault || s.ipv4 == s.ipv6 {
					t.Errorf("spec %+v", s)
				}
			}
			if text := strings.Join(got, ", "); err != nil || text != test.want {
				t.Errorf("%s, %v, want %s", text, err, test.want)
			}
		})
	}
}

// TestListenForever checks that a mapping of a socket can last forever, and that a
// pinhole is renewed each day.
func TestListenForever(t *testing.T) {
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

// TestHintsFor checks which choices apply to a gateway.
func TestHintsFor(t *testing.T) {
	gw, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f := &Forwarder{config: Config{Choices: []Choice{
		{Gateway: netip.AddrPortFrom(gw, 0), Protocol: "pcp"},
		{Gateway: netip.AddrPortFrom(gw, 5351), Interface: "eth0", Protocol: "upnp", URL: "http://192.0.2.1/"},
		{Gateway: netip.AddrPortFrom(gw, 0), Interface: "eth1", Protocol: "natpmp"},
		{Gateway: netip.AddrPortFrom(gw, 1), Protocol: "natpmp"},
		{Gateway: netip.AddrPortFrom(other, 0), Protocol: "natpmp"},
	}}}
	got := f.hintsFor(gatewayPath{gateway: netip.AddrPortFrom(gw, 0), iface: "eth0"})
	if want := []gateway.Hint{{Protocol: "pcp"}, {Protocol: "upnp", URL: "http://192.0.2.1/"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestBeginVerification checks that a program that is busy between two connections counts as
// waiting for them, and one that does not come back does not.
func TestBeginVerification(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s socketState
		c := socketCatcher{socketState: &s}
		begun := time.Now()
		time.AfterFunc(acceptGap/2, s.begin)
		end := s.beginVerification(t.Context())
		if err := c.Observing(); err != nil || time.Since(begun) > acceptGap {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		s.end()
		if err := c.Observing(); err != nil {
			t.Errorf("just after the program got a connection: %v", err)
		}
		time.Sleep(acceptGap)
		if err := c.Observing(); err == nil {
			t.Error("a program that no longer waits is observed")
		}
		end()
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		begun = time.Now()
		s.beginVerification(cancelled)()
		if took := time.Since(begun); took != 0 {
			t.Errorf("it took %v after the end of the context", took)
		}
	})
}
