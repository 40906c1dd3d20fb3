package ssdp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/freeport"
)

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.IPv6Loopback()
)

// device is a socket on loopback, with its address.
func device(t *testing.T, addr netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, addrOf(t, conn)
}

func addrOf(t *testing.T, conn *net.UDPConn) netip.AddrPort {
	t.Helper()
	udp, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		t.Fatalf("local address %v", conn.LocalAddr())
	}
	return udp.AddrPort()
}

// serveDevice answers each search with respond until the socket is closed.
func serveDevice(conn *net.UDPConn, respond func(search string, from netip.AddrPort)) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		respond(string(buf[:n]), from)
	}
}

// soon ends a test that would wait for ever.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Answers stream from both families and from ports that were not asked; of what
// else comes nothing is seen. One destination has nobody who listens.
func TestLoopback(t *testing.T) {
	closed, gone := device(t, loopback4)
	_ = closed.Close()
	four, at4 := device(t, loopback4)
	other, _ := device(t, loopback4) // answers go out of here
	go serveDevice(four, func(search string, from netip.AddrPort) {
		if !strings.HasPrefix(search, "M-SEARCH * HTTP/1.1\r\nHOST: "+at4.String()+"\r\n") || from.Port() == Port {
			t.Errorf("from %v: %q", from, search)
		}
		for _, s := range []string{"", "\x00\xff\x00", crlf(alive), search, strings.Repeat("x", 9000), crlf(plain), crlf(plain)} {
			_, _ = other.WriteToUDPAddrPort([]byte(s), from)
		}
	})
	to := []netip.AddrPort{gone, at4}
	want := map[netip.Addr]bool{loopback4: true}
	if six, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback6, 0))); err != nil {
		t.Logf("IPv6 NOT TESTED: %v", err)
	} else {
		defer func() { _ = six.Close() }()
		to = append(to, addrOf(t, six))
		want[loopback6] = true
		go serveDevice(six, func(_ string, from netip.AddrPort) {
			_, _ = six.WriteToUDPAddrPort([]byte(crlf(plain)), from)
		})
	}
	for a, err := range (Search{To: to}).Responses(soon(t)) {
		if err != nil || !want[a.From.Addr()] {
			t.Fatalf("%+v, %v", a, err)
		}
		if a.From.Addr() == loopback4 && a.From != addrOf(t, other) {
			t.Errorf("from %v, want %v", a.From, other.LocalAddr())
		}
		delete(want, a.From.Addr())
		a.From = netip.AddrPort{}
		equal(t, a, plainAnswer())
		if len(want) == 0 {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("no answer from %v", want)
	}
}

// A source that this host does not have keeps its family from searching.
func TestSource(t *testing.T) {
	conn, at := device(t, loopback4)
	go serveDevice(conn, func(_ string, from netip.AddrPort) {
		_, _ = conn.WriteToUDPAddrPort([]byte(answer("http://"+from.Addr().String())), from)
	})
	s := Search{To: []netip.AddrPort{at}, Source: loopback4}
	for a, err := range s.Responses(soon(t)) {
		if err != nil || a.Location != "http://127.0.0.1" {
			t.Errorf("%+v, %v", a, err)
		}
		break
	}
	s.Source = netip.MustParseAddr("192.0.2.1")
	count := 0
	for _, err := range s.Responses(soon(t)) {
		if count++; err == nil {
			t.Error("searched from an address of somebody else")
		}
	}
	if count != 1 {
		t.Errorf("told %d times", count)
	}
}

// Notices come one at a time, and nothing else does.
func TestListen(t *testing.T) {
	at, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}
	l := Listener{Addr: at}
	conns, err := l.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sender, from := device(t, loopback4)
	for _, s := range []string{
		"", "\xff\x00", crlf(plain), "M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\n\r\n",
		strings.Repeat("x", 9000), crlf(alive), crlf(byebye), crlf(update),
	} {
		if _, err := sender.WriteToUDPAddrPort([]byte(s), at); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(soon(t))
	var got []NotificationKind
	err = l.serve(ctx, conns, func(n Notification) {
		if n.From != from || n.UDN() != "uuid:00000000-0000-0000-0000-000000000001" {
			t.Errorf("%+v", n)
		}
		if got = append(got, n.Kind); len(got) == 3 {
			cancel(enough)
		}
	})
	if !errors.Is(err, enough) {
		t.Errorf("%v, want the cause", err)
	}
	equal(t, got, []NotificationKind{Alive, ByeBye, Update})
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatalf("the socket is still there: %v", err)
	}
	_ = again.Close()
}

func TestListenFails(t *testing.T) {
	_, taken := device(t, loopback4)
	never := func(Notification) { t.Error("a notice") }
	for name, l := range map[string]Listener{
		"taken":        {Addr: taken},
		"no interface": {Interface: "none such"},
		"not ours":     {Addr: netip.MustParseAddrPort("192.0.2.1:1900")},
	} {
		if err := l.Listen(soon(t), never); err == nil || !strings.HasPrefix(err.Error(), "ssdp: listen: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cause := errors.New("over")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := (Listener{Addr: taken}).Listen(ctx, never); !errors.Is(err, cause) {
		t.Errorf("%v, want the cause", err)
	}
}

// Notices that a slow notify has no room for are lost; the reader goes on.
func TestQueue(t *testing.T) {
	notices := make(chan Notification, maxQueue)
	for range 2 * maxQueue {
		queue(notices, []byte(alive), gateway)
	}
	if n := <-notices; len(notices) != maxQueue-1 || n.From != gateway {
		t.Errorf("%d left after %+v", len(notices), n)
	}
}
