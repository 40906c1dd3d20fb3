package gatewaytest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

// serveEcho starts a server on a free port that answers one byte on each connection with
// the same byte.
func serveEcho(t *testing.T, network, address string) uint16 {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1)
			if _, err := c.Read(b); err == nil {
				_, _ = c.Write(b)
			}
			_ = c.Close()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// checkReach checks that one byte can be exchanged over TCP, or that the connection is
// refused if admitted is false.
func checkReach(t *testing.T, gw *gatewaytest.Gateway, from, to string, admitted bool) {
	t.Helper()
	c, err := gw.DialFrom(testContext(t), netip.MustParseAddrPort(from), "tcp", to)
	if !admitted {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to %s: %v, want connection refused", from, to, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s to %s: %v", from, to, err)
		return
	}
	defer c.Close()
	b := []byte{42}
	_ = c.SetDeadline(time.Now().Add(testTimeout))
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(b); n != 1 || b[0] != 42 {
		t.Errorf("%s to %s: read %d bytes, %v", from, to, n, err)
	}
}

// listenTCP opens a listener on the LAN.
func listenTCP(t *testing.T) (net.Listener, uint16) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln, ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// listenUDP opens a UDP socket on the LAN.
func listenUDP(t *testing.T) (net.PacketConn, uint16) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	if err := pc.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return pc, pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// mapPort maps an internal port to external port 8080 for the given number of seconds. 0
// seconds delete the mapping.
func (h host) mapPort(op byte, internal uint16, seconds uint32) {
	h.t.Helper()
	external := 8080
	if seconds == 0 {
		external = 0
	}
	got := h.request(fmt.Sprintf("00%02x0000%04x%04x%08x", op, internal, external, seconds))
	if got[4:8] != "0000" {
		h.t.Fatalf("mapping %d: %s", internal, got)
	}
}

// dial connects an outside host to external port 8080.
func dial(t *testing.T, gw *gatewaytest.Gateway, network string) net.Conn {
	t.Helper()
	c, err := gw.Dial(testContext(t), network, "45.45.45.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return c
}

// checkRefused checks that a connection to external TCP port 8080 is refused.
func checkRefused(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	c, err := gw.Dial(testContext(t), "tcp", "45.45.45.1:8080")
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialing: %v, want connection refused", err)
	}
}

func TestOutsideTCP(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	h := newHost(t, gw)
	ln, port := listenTCP(t)

	checkRefused(t, gw)
	h.mapPort(2, port, 7200)
	conn := dial(t, gw, "tcp")
	inner, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if got := conn.RemoteAddr().String(); got != "45.45.45.1:8080" {
		t.Errorf("remote address %v", got)
	}
	if a := conn.LocalAddr().(*net.TCPAddr).AddrPort(); a.Addr() != netip.MustParseAddr("45.45.45.100") || a.Port() == 0 {
		t.Errorf("local address %v", a)
	}

	// Transfer one megabyte in each direction at the same time, and end each direction
	// with a half-close.
	inbound, outbound := randomBytes(1<<20, 1), randomBytes(1<<20, 2)
	var wg sync.WaitGroup
	transfer := func(c net.Conn, send, want []byte) {
		wg.Go(func() {
			if _, err := c.Write(send); err != nil {
				t.Error(err)
			}
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes and error %v, want %d bytes", len(got), err, len(want))
			}
		})
	}
	transfer(conn, inbound, outbound)
	transfer(inner, outbound, inbound)
	wg.Wait()
	if s := gw.Stats(); s.BytesIn != 1<<20 || s.BytesOut != 1<<20 || s.Connections != 1 || s.Refused != 1 {
		t.Errorf("stats %+v", s)
	}

	h.mapPort(2, port, 0)
	checkRefused(t, gw)
}

// randomBytes returns n pseudorandom bytes.
func randomBytes(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestConnectionsOutliveMappings(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	ln, port := listenTCP(t)
	newHost(t, gw).mapPort(2, port, 7200)
	conn := dial(t, gw, "tcp4")
	inner, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()

	ping := func() {
		t.Helper()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(inner, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	gw.Advance(2 * time.Hour)
	checkRefused(t, gw)
	ping()
	gw.Restart(gatewaytest.RestartOptions{})
	ping()
	gw.Restart(gatewaytest.RestartOptions{Disconnect: true})
	if _, err := inner.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading: %v, want net.ErrClosed", err)
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	ln, port := listenTCP(t)
	_ = ln.Close()
	newHost(t, gw).mapPort(2, port, 7200)
	checkRefused(t, gw) // the internal host refuses the connection

	if _, err := gw.Dial(testContext(t), "tcp", "45.45.45.9:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dialing another address: %v", err)
	}
	for _, address := range []string{"", "example.com:80", "45.45.45.1", "45.45.45.1:0", "45.45.45.1:http"} {
		var want *net.AddrError
		if _, err := gw.Dial(testContext(t), "tcp", address); !errors.As(err, &want) {
			t.Errorf("%q: %v", address, err)
		}
	}
	var unknown net.UnknownNetworkError
	if _, err := gw.Dial(testContext(t), "sctp", "45.45.45.1:80"); !errors.As(err, &unknown) {
		t.Errorf("sctp: %v", err)
	}
	if _, err := gw.ListenPacket("tcp", ""); !errors.As(err, &unknown) {
		t.Errorf("listening for tcp packets: %v", err)
	}
	if _, err := gw.ListenPacket("udp", "45.45.45.1:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("listening on the gateway's address: %v", err)
	}

	ln, port = listenTCP(t)
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), External: externalPort(81),
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gw.Dial(ctx, "tcp", "45.45.45.1:81"); err == nil {
		t.Error("dialed with a canceled context")
	}
	_ = gw.Close()
	if _, err := gw.Dial(testContext(t), "tcp", "45.45.45.1:81"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dialing after Close: %v", err)
	}
	if _, err := gw.ListenPacket("udp", ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listening after Close: %v", err)
	}
	if err := gw.Up(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("up after Close: %v", err)
	}
	if err := gw.Close(); err != nil {
		t.Error(err)
	}
	gw.Down()
	gw.Announce()
	_ = ln
}

func TestOutsideFilters(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	_, port := listenTCP(t)
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, External: externalPort(8080),
		Internal: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
		Filters:  []pcp.Filter{{Prefix: netip.MustParsePrefix("45.45.45.8/31"), Port: 7}, {Prefix: netip.MustParsePrefix("45.45.46.0/24")}},
	}); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]bool{
		"45.45.45.9:7": true, "45.45.45.9:8": false, "45.45.45.10:7": false, "45.45.46.3:1": true, "45.45.47.3:1": false,
	} {
		c, err := gw.DialFrom(testContext(t), netip.MustParseAddrPort(from), "tcp", "45.45.45.1:8080")
		if err == nil {
			if c.LocalAddr().String() != from {
				t.Errorf("from %v, want %v", c.LocalAddr(), from)
			}
			_ = c.Close()
		}
		if want != (err == nil) {
			t.Errorf("from %s: %v", from, err)
		}
	}
}

func TestOutsideUDP(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	h := newHost(t, gw)
	service, port := listenUDP(t)
	conn := dial(t, gw, "udp")
	other, err := gw.ListenPacket("udp", "45.45.45.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := gw.ListenPacket("udp", "45.45.45.2:5000"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second socket on the address: %v", err)
	}
	external := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("45.45.45.1:8080"))

	write := func(text string) {
		t.Helper()
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(want string) net.Addr {
		t.Helper()
		b := make([]byte, 100)
		n, from, err := service.ReadFrom(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("got %q, %v, want %q", b[:n], err, want)
		}
		return from
	}
	write("lost: no mapping yet")
	h.mapPort(1, port, 7200)
	write("first")
	first := receive("first")
	if _, err := other.WriteTo([]byte("second"), external); err != nil {
		t.Fatal(err)
	}
	second := receive("second")

	// Replies in the reverse order reach the right sockets.
	for text, to := range map[string]net.Addr{"two": second, "one": first} {
		if _, err := service.WriteTo([]byte(text), to); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "one" {
		t.Errorf("got %q, %v, want one", b[:n], err)
	}
	n, from, err := other.ReadFrom(b)
	if err != nil || string(b[:n]) != "two" || from.String() != external.String() {
		t.Errorf("got %q, %v, %v, want two from %v", b[:n], from, err, external)
	}

	// A datagram from another socket on the inside is ignored.
	otherSocket, _ := listenUDP(t)
	if _, err := otherSocket.WriteTo([]byte("from another socket"), first); err != nil {
		t.Fatal(err)
	}
	h.mapPort(1, port, 0)
	write("lost: deleted")
	if _, err := service.WriteTo([]byte("late reply"), first); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "late reply" {
		t.Errorf("got %q, %v, want the late reply", b[:n], err)
	}
	h.mapPort(1, port, 7200)
	write("again")
	receive("again")
	if s := gw.Stats(); s.Datagrams != 3 || s.Lost != 2 || s.BytesIn != int64(len("firstsecondagain")) || s.BytesOut != int64(len("onetwolate reply")) {
		t.Errorf("stats %+v", s)
	}

	if err := conn.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteTo(b, external); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after Close: %v", err)
	}
	if _, _, err := other.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
	if err := other.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing twice: %v", err)
	}
}

func TestCloseUnblocks(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	_, port := listenTCP(t)
	newHost(t, gw).mapPort(2, port, 7200)
	tcp := dial(t, gw, "tcp")
	udp := dial(t, gw, "udp")
	var wg sync.WaitGroup
	for _, c := range []net.Conn{tcp, udp} {
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read: %v, want net.ErrClosed", err)
			}
		})
	}
	wg.Go(func() {
		if _, err := gw.AwaitRequests(testContext(t), 99, nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("await: %v, want net.ErrClosed", err)
		}
	})
	if err := gw.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}
