package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/backends"
)

// rootPort returns a target with a port that this goroutine may not open until the end of the
// test. It is not to run in parallel, and the test must not change to another goroutine.
func rootPort(t *testing.T, p backends.Protocol) Target {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	withoutRoot(t)
	for port := first - 1; port > 0; port-- {
		if rows, err := readTable(p, uint16(port)); err == nil && len(rows) == 0 {
			return Target{Protocol: p, Internal: netip.AddrPortFrom(loopback4, uint16(port))}
		}
	}
	t.Skip("every port is free to all users")
	return Target{}
}

// withoutRoot takes the right to open all ports away from the thread of this goroutine, until the
// end of the test.
func withoutRoot(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&head, &all[0]); err != nil {
		t.Fatal(err)
	}
	less := all
	less[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	if err := unix.Capset(&head, &less[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&head, &all[0]); err != nil {
			t.Error(err)
			return // the thread ends with this goroutine
		}
		runtime.UnlockOSThread()
	})
}

// TestPortRoot checks a port that only root may open: what arrives cannot be observed, but the
// table of sockets still shows that no program listens.
func TestPortRoot(t *testing.T) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		t.Run(p.String(), func(t *testing.T) {
			target := rootPort(t, p)
			port := openPort(t, target, OwnerNone)
			if err := port.Observing(); err == nil || !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("observing: %v", err)
			}
			if e := measureListening(target, port); e.Verdict != Unreachable || !strings.HasPrefix(e.Detail, "no program on this host listens on ") {
				t.Errorf("%+v", e)
			}
		})
	}
}

// TestReceivesRoot checks that an IPv6 socket at a port that only root may open is not taken for
// one that receives IPv4.
func TestReceivesRoot(t *testing.T) {
	target := rootPort(t, backends.TCP)
	received, err := receives([]netip.Addr{netip.IPv6Unspecified()}, target)
	if received || err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("%v, %v", received, err)
	}
}

// TestPortMeasured checks that the socket of a measurement does not count as a program, neither in
// this measurement nor in another one.
func TestPortMeasured(t *testing.T) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := Target{Protocol: p, Internal: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0)}
		first, err := openAny(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		target = first.target
		first.Close()
		if first, err = Open(t.Context(), target); err != nil || first.Owner() != OwnerTemporary {
			t.Fatalf("%v, %v", first.Owner(), err)
		}
		for name, open := range map[string]func(context.Context, Target) (*Port, error){"Open": Open, "Watch": Watch} {
			second, err := open(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(second.Observing(), errMeasured) {
				t.Errorf("%s, %v: %v, want errMeasured", name, p, second.Observing())
			}
			if e := measureListening(target, second); e.Verdict != Unknown {
				t.Errorf("%s, %v: a program listens: %v, want unknown", name, p, e.Verdict)
			}
			second.Close()
		}
		if addrs, err := Listeners(p, target.Internal.Port()); err != nil || len(addrs) > 0 {
			t.Errorf("%v: Listeners returns %v, %v, want none", p, addrs, err)
		}
		first.Close()
		again, err := Open(t.Context(), target)
		if err != nil || again.Owner() != OwnerTemporary {
			t.Errorf("after Close: %v, %v", again.Owner(), err)
		}
		again.Close()
	}
}

// TestHairpinHops checks that the packets of hairpin do not get far if the router reports the address
// of another host.
func TestHairpinHops(t *testing.T) {
	d, err := hairpinDialer()
	if err != nil {
		t.Fatal(err)
	}
	nd := net.Dialer{Control: d.control}
	conn, err := nd.DialContext(t.Context(), "udp4", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var hops int
	if controlErr := raw.Control(func(fd uintptr) { hops, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL) }); controlErr != nil || err != nil || hops != 2 {
		t.Errorf("%d hops, %v, %v, want 2", hops, controlErr, err)
	}
}
