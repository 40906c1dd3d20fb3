package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/freeport"
)

// hasTable reports whether Listeners works on this system.
const hasTable = runtime.GOOS == "linux" || runtime.GOOS == "windows"

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// freeTarget returns a target at addr whose port no socket of this host has. On Linux, a zero addr
// means a loopback address of IPv4 that only this test process uses.
func freeTarget(t testing.TB, p backends.Protocol, addr netip.Addr) Target {
	t.Helper()
	for range 100 {
		at, err := freeport.UDP()
		if err != nil {
			t.Fatal(err)
		}
		if addr.IsValid() {
			at = netip.AddrPortFrom(addr, at.Port())
		}
		if rows, err := readTable(p, at.Port()); err == nil && len(rows) > 0 {
			continue
		}
		if used, err := isUsed(p, at); err != nil {
			t.Skipf("%v", err)
		} else if !used {
			return Target{Protocol: p, Internal: at, External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), at.Port())}
		}
	}
	t.Fatal("no free port")
	return Target{}
}

// listen opens a socket that waits at an address until the end of the test. network is tcp4, tcp6,
// udp4, udp6, or without a digit if the unspecified address of IPv6 is to include IPv4.
func listen(t testing.TB, network string, at netip.AddrPort) {
	t.Helper()
	var lc net.ListenConfig
	if strings.HasPrefix(network, "udp") {
		conn, err := lc.ListenPacket(t.Context(), network, at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return
	}
	ln, err := lc.Listen(t.Context(), network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
}

// TestListeners checks that the sockets of this host are found, with their addresses.
func TestListeners(t *testing.T) {
	t.Parallel()
	if !hasTable {
		if addrs, err := Listeners(backends.TCP, 80); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v, %v", addrs, err)
		}
		return
	}
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		for network, addr := range map[string]netip.Addr{"4": loopback4, "6": loopback6} {
			target := freeTarget(t, p, addr)
			if addrs, err := Listeners(p, target.Internal.Port()); err != nil || len(addrs) > 0 {
				t.Errorf("%v, no socket: %v, %v", p, addrs, err)
			}
			listen(t, p.String()+network, target.Internal)
			if addrs, err := Listeners(p, target.Internal.Port()); err != nil || !slices.Equal(addrs, []netip.Addr{addr}) {
				t.Errorf("%v%s: %v, %v; want %v", p, network, addrs, err, addr)
			}
		}
	}
	if addrs, err := Listeners(backends.SCTP, 80); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SCTP: %v, %v", addrs, err)
	}
}

// TestListenersConnected checks that connected sockets do not count: they receive from one peer
// only.
func TestListenersConnected(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only the table of Linux shows whether a UDP socket is connected")
	}
	target := freeTarget(t, backends.UDP, loopback4)
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(target.Internal), net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback4, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if addrs, err := Listeners(backends.UDP, target.Internal.Port()); err != nil || len(addrs) > 0 {
		t.Errorf("%v, %v", addrs, err)
	}
}

// TestIsUsed checks that a socket of IPv6 alone does not count for IPv4.
func TestIsUsed(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := freeTarget(t, p, loopback6)
		listen(t, p.String()+"6", netip.AddrPortFrom(netip.IPv6Unspecified(), target.Internal.Port()))
		for addr, want := range map[netip.Addr]bool{netip.IPv6Unspecified(): true, netip.IPv4Unspecified(): false} {
			if used, err := isUsed(p, netip.AddrPortFrom(addr, target.Internal.Port())); used != want || err != nil {
				t.Errorf("%v, %v: %v, %v", p, addr, used, err)
			}
		}
		if used := isUsedAtAll(target); !used {
			t.Errorf("%v: the port is not used", p)
		}
		if target := freeTarget(t, p, loopback6); isUsedAtAll(target) {
			t.Errorf("%v: the port %v is used", p, target.Internal)
		}
	}
	if used, err := isUsed(backends.TCP, netip.MustParseAddrPort("192.0.2.1:80")); used || err == nil {
		t.Errorf("an address of another host: %v, %v", used, err)
	}
}

// fakeCatcher is a Catcher without a socket.
type fakeCatcher struct {
	Catcher
	owner Owner
	blind error
}

func (f fakeCatcher) Owner() Owner                         { return f.owner }
func (f fakeCatcher) Observing() error                     { return f.blind }
func (f fakeCatcher) Visited() (time.Time, netip.AddrPort) { return time.Time{}, netip.AddrPort{} }

// TestMeasureListening checks which sockets of other programs receive what arrives at a target.
func TestMeasureListening(t *testing.T) {
	t.Parallel()
	if !hasTable {
		t.Skip("no table of sockets")
	}
	other4 := netip.AddrFrom4([4]byte{127, 0, 0, 2})
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		n := p.String()
		for _, tt := range []struct {
			name     string
			network  string // empty: no socket
			bound    netip.Addr
			internal netip.Addr
			want     Verdict
			detail   string // with PORT
		}{
			{"no socket", "", netip.Addr{}, loopback4, Unreachable, "no program on this host listens on " + n + " port PORT"},
			{"the address", n + "4", loopback4, loopback4, Reachable, "a program listens on " + n + " port PORT"},
			{"all addresses", n + "4", any4, loopback4, Reachable, "a program listens on " + n + " port PORT"},
			{"another address", n + "4", other4, loopback4, Unreachable, "the program on " + n + " port PORT listens only on 127.0.0.2, which other hosts cannot reach"},
			{"IPv6, the address", n + "6", loopback6, loopback6, Reachable, "a program listens on " + n + " port PORT"},
			{"IPv6, all addresses", n + "6", any6, loopback6, Reachable, "a program listens on " + n + " port PORT"},
			{"both families, IPv6 target", n, any6, loopback6, Reachable, "a program listens on " + n + " port PORT"},
			{"both families, IPv4 target", n, any6, loopback4, Reachable, "a program listens on " + n + " port PORT"},
			{"IPv6 only, IPv4 target", n + "6", any6, loopback4, Unreachable, "the program on " + n + " port PORT listens on ::, but connections arrive at 127.0.0.1"},
			{"IPv4 only, IPv6 target", n + "4", any4, loopback6, Unreachable, "the program on " + n + " port PORT listens on 0.0.0.0, but connections arrive at ::1"},
		} {
			t.Run(n+", "+tt.name, func(t *testing.T) {
				target := freeTarget(t, p, tt.internal)
				if tt.network != "" {
					listen(t, tt.network, netip.AddrPortFrom(tt.bound, target.Internal.Port()))
				}
				port := netip.AddrPortFrom(loopback4, target.Internal.Port()).String()[len("127.0.0.1:"):]
				for _, owner := range []Owner{OwnerNone, OwnerOther} {
					e := measureListening(target, fakeCatcher{owner: owner, blind: errors.New("not used")})
					if want := strings.ReplaceAll(tt.detail, "PORT", port); e.Verdict != tt.want || e.Detail != want || e.Err != nil {
						t.Errorf("owner %d: %v, %q, %v; want %v, %q", owner, e.Verdict, e.Detail, e.Err, tt.want, want)
					}
					if e.Method != MethodListening || e.Level != LevelListening || e.Protocol != p || e.External != target.External || e.At.IsZero() {
						t.Errorf("owner %d: %+v", owner, e)
					}
				}
			})
		}
	}
}

// TestMeasureListeningLAN checks a program that listens on an address that other hosts reach, but
// not on the one to which the gateway forwards.
func TestMeasureListeningLAN(t *testing.T) {
	t.Parallel()
	if !hasTable {
		t.Skip("no table of sockets")
	}
	lan := lanAddr(t)
	target := freeTarget(t, backends.TCP, lan)
	listen(t, "tcp4", netip.AddrPortFrom(loopback4, target.Internal.Port()))
	e := measureListening(target, fakeCatcher{owner: OwnerOther})
	if e.Verdict != Unreachable || !strings.Contains(e.Detail, "listens only on 127.0.0.1, which other hosts cannot reach") {
		t.Errorf("%v, %q", e.Verdict, e.Detail)
	}
	target = freeTarget(t, backends.TCP, loopback4)
	listen(t, "tcp4", netip.AddrPortFrom(lan, target.Internal.Port()))
	e = measureListening(target, fakeCatcher{owner: OwnerOther})
	if e.Verdict != Unreachable || !strings.Contains(e.Detail, "listens on "+lan.String()+", but connections arrive at 127.0.0.1") {
		t.Errorf("%v, %q", e.Verdict, e.Detail)
	}
}

// lanAddr returns an IPv4 address of this host that is not a loopback address.
func lanAddr(t *testing.T) netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && addr.Unmap().Is4() && !addr.Unmap().IsLoopback() {
				return addr.Unmap()
			}
		}
	}
	t.Skip("this host has no address besides loopback addresses")
	return netip.Addr{}
}

// TestMeasureListeningOwner checks the cases that need no table.
func TestMeasureListeningOwner(t *testing.T) {
	t.Parallel()
	target := freeTarget(t, backends.TCP, loopback4)
	if e := measureListening(target, fakeCatcher{owner: OwnerProgram}); e.Verdict != Reachable || !strings.HasPrefix(e.Detail, "this program listens on tcp port ") {
		t.Errorf("the program itself: %+v", e)
	}
	blind := errors.New("another host")
	target.Internal = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), target.Internal.Port())
	if e := measureListening(target, fakeCatcher{owner: OwnerNone, blind: blind}); e.Verdict != Unknown || !errors.Is(e.Err, blind) || e.Detail != blind.Error() {
		t.Errorf("another host: %+v", e)
	}
}

// TestMeasureListeningTemporary checks that the socket of this package is not taken for a program.
func TestMeasureListeningTemporary(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := freeTarget(t, p, loopback4)
		port, err := Open(context.Background(), target)
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		e := measureListening(target, port)
		if port.Owner() != OwnerTemporary || e.Verdict != Unreachable || !strings.HasPrefix(e.Detail, "no program on this host listens on ") {
			t.Errorf("%v: owner %d, %+v", p, port.Owner(), e)
		}
		if !hasTable {
			continue
		}
		listen(t, p.String()+"4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2}), target.Internal.Port()))
		e = measureListening(target, port)
		if e.Verdict != Unreachable || !strings.Contains(e.Detail, "listens only on 127.0.0.2") {
			t.Errorf("%v: owner %d, %+v", p, port.Owner(), e)
		}
	}
}
