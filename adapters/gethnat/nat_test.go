package gethnat_test

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// natInterface is nat.Interface of go-ethereum, as of version 1.17.
type natInterface interface {
	AddMapping(protocol string, extport, intport int, name string, lifetime time.Duration) (uint16, error)
	DeleteMapping(protocol string, extport, intport int) error
	ExternalIP() (net.IP, error)
	String() string
}

var (
	_ natInterface           = (*gethnat.NAT)(nil)
	_ encoding.TextMarshaler = (*gethnat.NAT)(nil)
)

// What go-ethereum asks for.
const (
	port     = 30303
	name     = "ethereum p2p"
	lifetime = 10 * time.Minute
)

// patience bounds what must happen.
const patience = 20 * time.Second

// start starts a gateway, and a Forwarder that is told of it.
func start(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	nowhere := netip.MustParseAddrPort("127.0.0.1:0")
	config.Gateway, config.Test.SSDP, config.Test.Announce, config.Test.Notify = gw.Addr(), gw.SSDP(), nowhere, nowhere
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// add is AddMapping as go-ethereum calls it, which must succeed.
func add(t *testing.T, n *gethnat.NAT, protocol string, extport int) uint16 {
	t.Helper()
	got, err := n.AddMapping(protocol, extport, port, name, lifetime)
	if err != nil {
		t.Fatalf("AddMapping: %v", err)
	}
	return got
}

// mapRequests are the requests for mappings of a protocol so far, and for their
// deletion.
func mapRequests(gw *gatewaytest.Gateway, p backends.Protocol) int {
	n := 0
	for _, r := range gw.Requests() {
		if (r.Op == "map" || r.Op == "unmap") && r.Protocol == p {
			n++
		}
	}
	return n
}

// The conversation of a server's life, by each protocol.
func TestConversation(t *testing.T) {
	for _, by := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(by, func(t *testing.T) {
			gw, f := start(t, forward.Config{Protocols: []string{by}}, gatewaytest.Config{})
			n := gethnat.New(f)
			wantIP(t, n, gw)
			for _, protocol := range []string{"TCP", "UDP"} {
				if got := add(t, n, protocol, 0); got != port {
					t.Errorf("%s: external port %d, want %d", protocol, got, port)
				}
			}
			table := gw.Table()
			if len(table) != 2 {
				t.Fatalf("the gateway has %v, want two entries", table)
			}
			for i, p := range []backends.Protocol{backends.TCP, backends.UDP} {
				e := table[i]
				if e.Protocol != p || e.External.Port() != port || e.Internal.Port() != port || e.Remaining > lifetime || e.Remaining < lifetime-time.Minute {
					t.Errorf("entry %+v", e)
				}
				if by == "upnp" && e.Description != name {
					t.Errorf("described as %q, want %q", e.Description, name)
				}
			}
			asked := mapRequests(gw, backends.TCP) + mapRequests(gw, backends.UDP)
			for range 3 { // every eight minutes
				wantIP(t, n, gw)
				if tcp, udp := add(t, n, "TCP", port), add(t, n, "UDP", port); tcp != port || udp != port {
					t.Errorf("external ports %d and %d, want %d", tcp, udp, port)
				}
			}
			if again := mapRequests(gw, backends.TCP) + mapRequests(gw, backends.UDP); again != asked {
				t.Errorf("%d more requests for what is held", again-asked)
			}
			if s := n.String(); !strings.HasPrefix(s, "goforward("+by+" 127.0.0.1:") {
				t.Errorf("String: %q", s)
			}
			for _, protocol := range []string{"TCP", "UDP", "UDP"} { // the last is gone already
				if err := n.DeleteMapping(protocol, port, port); err != nil {
					t.Errorf("DeleteMapping %s: %v", protocol, err)
				}
			}
			if table := gw.Table(); len(table) != 0 {
				t.Errorf("the gateway has %v, want nothing", table)
			}
		})
	}
}

func wantIP(t *testing.T, n *gethnat.NAT, gw *gatewaytest.Gateway) {
	t.Helper()
	ip, err := n.ExternalIP()
	if want := net.IP(gw.External().AsSlice()); err != nil || !ip.Equal(want) {
		t.Errorf("ExternalIP: %v, %v, want %v", ip, err, want)
	}
}

func TestExternalIPPoll(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	wantIP(t, n, gw)
	add(t, n, "TCP", 0)
	gw.ResetStats()
	gw.SetExternal(netip.MustParseAddr("45.45.45.77"))
	wantIP(t, n, gw)
	if asked := gw.Stats().Requests["natpmp external address"]; asked != 1 {
		t.Errorf("a poll cost %d questions, want 1", asked)
	}
}

// An address that another NAT stands before is told to nobody.
func TestExternalIPPrivate(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	for _, addr := range []string{"10.66.66.1", "192.168.1.2", "100.64.0.1"} {
		gw.SetExternal(netip.MustParseAddr(addr))
		if ip, err := n.ExternalIP(); !errors.Is(err, backends.ErrPrivateWAN) || ip != nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("ExternalIP: %v, %v, want ErrPrivateWAN of %s", ip, err, addr)
		}
	}
}

// What is wished for is got where it is free, and else another port that works.
func TestWish(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	if got := add(t, n, "tcp", 40000); got != 40000 {
		t.Errorf("external port %d, want 40000", got)
	}
	take(t, gw, backends.UDP)
	got := add(t, n, "Udp", 0)
	if got == port || got == 0 {
		t.Errorf("external port %d, which is taken", got)
	}
	if again := add(t, n, "UDP", int(got)); again != got {
		t.Errorf("external port %d, then %d", got, again)
	}
	if again := add(t, n, "UDP", 40001); again != got {
		t.Errorf("external port %d, then %d, by a wish that came late", got, again)
	}
	if err := n.DeleteMapping("UDP", 40001, port); err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 2 || table[0].External.Port() != 40000 || table[1].Service != "admin" {
		t.Errorf("the gateway has %+v", table)
	}
}

// take gives the port to another host, for good.
func take(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: p, External: netip.AddrPortFrom(gw.External(), port), Internal: netip.MustParseAddrPort("127.0.0.9:80"), Static: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Nothing is sent for what makes no sense.
func TestInvalid(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	for _, c := range []struct {
		protocol         string
		extport, intport int
	}{
		{"", 0, port},
		{"SCTP", 0, port},
		{"6", 0, port},
		{"tcp4", 0, port},
		{"TCP ", 0, port},
		{"TCP", 0, 0},
		{"TCP", 0, -1},
		{"TCP", 0, 65536},
		{"TCP", 0, 65536 + port},
		{"UDP", -1, port},
		{"UDP", 65536, port},
	} {
		if got, err := n.AddMapping(c.protocol, c.extport, c.intport, name, lifetime); got != 0 || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("AddMapping %+v: %d, %v, want ErrInvalid", c, got, err)
		}
		if err := n.DeleteMapping(c.protocol, c.extport, c.intport); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("DeleteMapping %+v: %v, want ErrInvalid", c, err)
		}
	}
	if got, err := n.AddMapping("TCP", 0, port, name, -time.Second); got != 0 || !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("a negative lifetime: %d, %v, want ErrInvalid", got, err)
	}
	if sent := len(gw.Requests()); sent != 0 {
		t.Errorf("%d requests were sent", sent)
	}
}

func TestDefaultLifetime(t *testing.T) {
	gw, f := start(t, forward.Config{Lifetime: 30 * time.Minute}, gatewaytest.Config{})
	n := gethnat.New(f)
	if _, err := n.AddMapping("TCP", 0, port, "", 0); err != nil {
		t.Fatal(err)
	}
	if table := gw.Table(); len(table) != 1 || table[0].Remaining <= 29*time.Minute || table[0].Remaining > 30*time.Minute {
		t.Errorf("the gateway has %+v", table)
	}
	if got, err := n.AddMapping("TCP", 0, port, "", -1); got != 0 || !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("a negative lifetime for what is held: %d, %v, want ErrInvalid", got, err)
	}
}

// A configuration is written with what go-ethereum can read.
func TestText(t *testing.T) {
	n := gethnat.New(nil) // which sends nothing
	if text, err := n.MarshalText(); err != nil || string(text) != "any" {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	if s := fmt.Sprint(n); s != "goforward" {
		t.Errorf("printed as %q", s)
	}
}
