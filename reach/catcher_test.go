package reach

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// openPort opens a Catcher, and closes it at the end of the test.
func openPort(t testing.TB, target Target, owner Owner) *Port {
	t.Helper()
	p, err := Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	if p.Owner() != owner {
		t.Fatalf("owner %d, want %d; %v", p.Owner(), owner, p.Observing())
	}
	return p
}

// dial connects to the internal endpoint of a target from a port of the loopback address.
func dial(t testing.TB, target Target) net.Conn {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), target.Protocol.String(), target.Internal.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// localOf returns the local endpoint of a connection.
func localOf(t testing.TB, conn net.Conn) netip.AddrPort {
	t.Helper()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

// TestPortTemporary checks that the socket at a free port catches what has the nonce, answers it,
// and closes everything else.
func TestPortTemporary(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		for name, addr := range map[string]netip.Addr{"IPv4": {}, "IPv6": loopback6} {
			t.Run(p.String()+", "+name, func(t *testing.T) {
				t.Parallel()
				target := freeTarget(t, p, addr)
				port := openPort(t, target, OwnerTemporary)
				if err := port.Observing(); err != nil {
					t.Fatal(err)
				}
				arrivals, stop := port.Expect(Expectation{First: greeting + "nonce", Answer: []byte("answer")})
				defer stop()
				wrong := dial(t, target)
				if _, err := io.WriteString(wrong, greeting+"other"); err != nil {
					t.Fatal(err)
				}
				if p == backends.TCP {
					if answer, _ := io.ReadAll(wrong); len(answer) > 0 {
						t.Errorf("a wrong nonce received %q", answer)
					}
				}
				for {
					right := dial(t, target)
					if _, err := io.WriteString(right, greeting+"nonce"); err != nil {
						t.Fatal(err)
					}
					answer := make([]byte, 100)
					n, err := right.Read(answer)
					if p == backends.TCP && n == 0 && len(arrivals) == 0 {
						continue // this process was too slow to send in time
					}
					if err != nil || string(answer[:n]) != "answer" {
						t.Errorf("answer %q, %v", answer[:n], err)
					}
					if a := <-arrivals; a.From != localOf(t, right) || a.InTable || a.At.IsZero() {
						t.Errorf("%+v, want from %v", a, right.LocalAddr())
					}
					break
				}
				if at, from := port.Visited(); !at.IsZero() || from.IsValid() {
					t.Errorf("visited at %v from %v", at, from)
				}
				if err := port.Observing(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestPortSend checks that a temporary UDP socket sends from the internal port, and that no other
// socket sends.
func TestPortSend(t *testing.T) {
	t.Parallel()
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback4.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	to := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	target := freeTarget(t, backends.UDP, loopback4)
	if err := openPort(t, target, OwnerTemporary).Send([]byte("hello"), to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, from, err := peer.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "hello" || from != target.Internal {
		t.Errorf("%q from %v, %v", b[:n], from, err)
	}
	if err := openPort(t, freeTarget(t, backends.TCP, loopback4), OwnerTemporary).Send([]byte("hello"), to); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("TCP: %v", err)
	}
}

// TestPortClose checks that Close ends everything while connections are open and while something is
// expected, that it is idempotent, and that the port is free afterwards. goleak finds goroutines
// that remain.
func TestPortClose(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := freeTarget(t, p, netip.Addr{})
		ctx, cancel := context.WithCancel(t.Context())
		port, err := Open(ctx, target)
		if err != nil {
			t.Fatal(err)
		}
		cancel() // only Close ends the Catcher
		examined := make(chan netip.Addr, 10)
		arrivals, stop := port.Expect(Expectation{First: greeting + "nonce", From: func(a netip.Addr) bool {
			examined <- a
			return true
		}})
		defer stop()
		conn := dial(t, target)
		if _, err := io.WriteString(conn, greeting+"non"); err != nil { // it may still become the nonce
			t.Fatal(err)
		}
		<-examined
		port.Close()
		port.Close()
		if p == backends.TCP {
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("read %d, %v from a closed port", n, err)
			}
		}
		select {
		case a := <-arrivals:
			t.Errorf("%v: %+v", p, a)
		default:
		}
		if used, err := isUsed(p, target.Internal); used || err != nil {
			t.Errorf("%v: the port is in use after Close, %v", p, err)
		}
	}
}

// TestPortOther checks that the connection to another program is recognized by its source port in
// the table of sockets, and that the program receives it with no byte added or lost.
func TestPortOther(t *testing.T) {
	t.Parallel()
	if !hasTable {
		t.Skip("no table of sockets")
	}
	for _, tt := range []struct {
		name, network   string
		bound, internal netip.Addr
	}{
		{"the address", "tcp4", loopback4, loopback4},
		{"all addresses", "tcp4", netip.IPv4Unspecified(), loopback4},
		{"both families", "tcp", netip.IPv6Unspecified(), loopback4},
		{"IPv6", "tcp6", loopback6, loopback6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := freeTarget(t, backends.TCP, tt.internal)
			var lc net.ListenConfig
			ln, err := lc.Listen(t.Context(), tt.network, netip.AddrPortFrom(tt.bound, target.Internal.Port()).String())
			if err != nil {
				t.Skip(err)
			}
			defer ln.Close()
			port := openPort(t, target, OwnerOther)
			if err := port.Observing(); err != nil {
				t.Fatal(err)
			}
			old := dial(t, target) // a connection that is older than the expectation is not the expected one
			older, stopOlder := port.Expect(Expectation{First: greeting + "nonce", Source: fromPort(localOf(t, old).Port())})
			defer stopOlder()
			local, err := freePort(t.Context(), tt.internal)
			if err != nil {
				t.Fatal(err)
			}
			arrivals, stop := port.Expect(Expectation{First: greeting + "nonce", Source: fromPort(local)})
			defer stop()
			never, stopNever := port.Expect(Expectation{Source: fromPort(local), From: func(netip.Addr) bool { return false }})
			defer stopNever()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: tt.internal.AsSlice(), Port: int(local)}}
			conn, err := d.DialContext(t.Context(), "tcp", target.Internal.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if a := <-arrivals; !a.InTable || a.From != localOf(t, conn) || a.At.IsZero() {
				t.Errorf("%+v, want %v", a, conn.LocalAddr())
			}
			for range 3 { // further readings of the table
				for _, remote := range port.connections() {
					port.queue.Seen(remote)
				}
			}
			select {
			case a := <-older:
				t.Errorf("a connection that is older than the expectation: %+v", a)
			case a := <-never:
				t.Errorf("a source that is not expected: %+v", a)
			default:
			}
			for _, c := range []net.Conn{old, conn} {
				_ = c.Close()
				accepted, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(accepted); err != nil || len(b) > 0 {
					t.Errorf("the program received %q, %v", b, err)
				}
				_ = accepted.Close()
			}
		})
	}
}

// TestPortOtherConnections checks that only connections to the internal address count.
func TestPortOtherConnections(t *testing.T) {
	t.Parallel()
	if !hasTable {
		t.Skip("no table of sockets")
	}
	target := freeTarget(t, backends.TCP, loopback4)
	listen(t, "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), target.Internal.Port()))
	port := openPort(t, target, OwnerOther)
	elsewhere := target
	elsewhere.Internal = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2}), target.Internal.Port())
	dial(t, elsewhere)
	conn := dial(t, target)
	if got, want := port.connections(), []netip.AddrPort{localOf(t, conn)}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestPortOtherUDP checks that the socket of another program is left alone: what arrives there
// cannot be observed.
func TestPortOtherUDP(t *testing.T) {
	t.Parallel()
	target := freeTarget(t, backends.UDP, loopback4)
	listen(t, "udp4", target.Internal)
	port := openPort(t, target, OwnerOther)
	if port.Observing() == nil {
		t.Error("what arrives at the socket of another program is observed")
	}
	if err := port.Send([]byte("hello"), target.Internal); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Send: %v", err)
	}
}

// TestPortOtherAddress checks that a program at another address does not keep Open from the
// internal address.
func TestPortOtherAddress(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := freeTarget(t, p, loopback4)
		listen(t, p.String()+"4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2}), target.Internal.Port()))
		if err := openPort(t, target, OwnerTemporary).Observing(); err != nil {
			t.Error(err)
		}
		target = freeTarget(t, p, loopback4)
		listen(t, p.String()+"6", netip.AddrPortFrom(netip.IPv6Unspecified(), target.Internal.Port()))
		if err := openPort(t, target, OwnerTemporary).Observing(); err != nil {
			t.Error(err)
		}
	}
}

// TestPortBound checks a port that another program has bound without listening on it.
func TestPortBound(t *testing.T) {
	t.Parallel()
	target := freeTarget(t, backends.UDP, loopback4)
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(target.Internal), net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback4, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := openPort(t, target, OwnerOther)
	if port.Observing() == nil {
		t.Error("what arrives at the socket of another program is observed")
	}
	if isMarked(target.Protocol, target.Internal) {
		t.Error("the socket of another program is marked as one of a measurement")
	}
}

// TestPortNotHere checks targets whose port cannot be observed by this host.
func TestPortNotHere(t *testing.T) {
	t.Parallel()
	target := freeTarget(t, backends.TCP, loopback4)
	target.Internal = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), target.Internal.Port())
	if err := openPort(t, target, OwnerNone).Observing(); err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("another host: %v", err)
	}
	target = freeTarget(t, backends.TCP, loopback4)
	target.Protocol = backends.SCTP
	if err := openPort(t, target, OwnerNone).Observing(); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("SCTP: %v", err)
	}
	for _, internal := range []netip.AddrPort{{}, netip.AddrPortFrom(loopback4, 0)} {
		if port, err := Open(t.Context(), Target{Protocol: backends.TCP, Internal: internal}); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%v: %+v, %v", internal, port, err)
		}
	}
}

// TestPortTooMany checks that a Catcher says so if it closed a connection without a look at it.
func TestPortTooMany(t *testing.T) {
	t.Parallel()
	target := freeTarget(t, backends.TCP, netip.Addr{})
	port := openPort(t, target, OwnerTemporary)
	if _, err := dial(t, target).Read(make([]byte, 1)); err == nil {
		t.Error("a connection is open although nothing is expected")
	}
	_, stop := port.Expect(Expectation{First: greeting + "nonce", From: func(a netip.Addr) bool { return !a.IsLoopback() }})
	defer stop()
	for range maxExamined {
		port.slots <- struct{}{}
	}
	if _, err := dial(t, target).Read(make([]byte, 1)); err == nil {
		t.Error("a connection from a source that is not expected is open")
	}
	if err := port.Observing(); err != nil {
		t.Errorf("connections that need not be examined: %v", err)
	}
	_, stop = port.Expect(Expectation{First: greeting + "nonce"})
	defer stop()
	if _, err := dial(t, target).Read(make([]byte, 1)); err == nil {
		t.Error("more connections than the maximum are open")
	}
	if port.Observing() == nil {
		t.Error("a connection was closed, and everything is observed")
	}
}
