package dialback

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	nonce = "AAECAwQFBgcICQoLDA0ODw"
	want  = "EBESExQVFhcYGRobHB0eHw"
)

func TestIsNonce(t *testing.T) {
	for s, ok := range map[string]bool{
		nonce: true, want: true, "": false, nonce[:21]: false, nonce + "A": false, nonce[:21] + "\n": false,
		"AAECAwQFBgcICQoLDA0OD/": false, nonce[:20] + "==": false, nonce[:21] + "x": false, // bits after the last byte
		"AAAA\nFLUSHALL\nAAAAAAAA": false, nonce[:10] + "\r\n" + nonce[10:20]: false,
	} {
		if IsNonce(s) != ok {
			t.Errorf("IsNonce(%q) is %v", s, !ok)
		}
	}
}

// tcpServer serves one connection on loopback, and returns its endpoint. The channel receives its source.
func tcpServer(t *testing.T, network string, serve func(net.Conn)) (netip.AddrPort, <-chan netip.AddrPort) {
	t.Helper()
	host := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network]
	ln, err := net.Listen(network, host)
	if err != nil {
		t.Skip(err)
	}
	sources, ended := make(chan netip.AddrPort, 1), make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		sources <- netip.MustParseAddrPort(conn.RemoteAddr().String())
		serve(conn)
	}()
	t.Cleanup(func() { _ = ln.Close(); <-ended })
	return netip.MustParseAddrPort(ln.Addr().String()), sources
}

// readAll returns what arrives until the other side ends.
func readAll(c net.Conn) string {
	b, _ := io.ReadAll(c)
	return string(b)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestTCP(t *testing.T) {
	t.Parallel()
	services := []struct {
		name  string
		call  Call
		serve func(c net.Conn, got chan<- string)
		want  Outcome
		bytes string // that the service receives, if it reads until the end
	}{
		{"the right answer", Call{Nonce: nonce, Want: want}, func(c net.Conn, got chan<- string) {
			b := make([]byte, len(Greeting)+NonceLength)
			_, _ = io.ReadFull(c, b)
			_, _ = io.WriteString(c, Greeting+want+" and more")
			got <- string(b) + readAll(c)
		}, Echoed, Greeting + nonce},
		{"the wrong answer", Call{Nonce: nonce, Want: want}, func(c net.Conn, got chan<- string) {
			_, _ = io.WriteString(c, Greeting+nonce)
			got <- readAll(c)
		}, Connected, Greeting + nonce},
		{"half an answer", Call{Nonce: nonce, Want: want}, func(c net.Conn, got chan<- string) {
			_, _ = io.WriteString(c, Greeting+want[:10])
			got <- readAll(c)
		}, Connected, Greeting + nonce},
		{"no answer is expected", Call{Nonce: nonce}, func(c net.Conn, got chan<- string) { got <- readAll(c) }, Connected, Greeting + nonce},
		{"no bytes", Call{}, func(c net.Conn, got chan<- string) {
			_, _ = io.WriteString(c, strings.Repeat("220 banner\r\n", 1000))
			got <- readAll(c)
		}, Connected, ""},
		{"the connection is closed", Call{Nonce: nonce, Want: want}, func(c net.Conn, got chan<- string) {
			_ = c.Close()
			got <- Greeting + nonce
		}, Connected, Greeting + nonce},
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		for _, s := range services {
			t.Run(network+" "+s.name, func(t *testing.T) {
				t.Parallel()
				call, announced, got := s.call, []netip.AddrPort(nil), make(chan string, 1)
				var sources <-chan netip.AddrPort
				call.Protocol = backends.TCP
				call.To, sources = tcpServer(t, network, func(c net.Conn) { s.serve(c, got) })
				limit := time.Minute // none of the others waits for it
				if s.name == "half an answer" {
					limit = 2 * time.Second
				}
				outcome, rtt, err := call.Do(within(t, limit), func(from netip.AddrPort) {
					announced = append(announced, from)
					if len(sources) != 0 {
						t.Error("connected before the announcement")
					}
				})
				if err != nil || outcome != s.want || rtt <= 0 {
					t.Errorf("%v, %v, %v, want %v", outcome, rtt, err, s.want)
				}
				if from := <-sources; !slices.Equal(announced, []netip.AddrPort{from}) {
					t.Errorf("announced %v, came from %v", announced, from)
				}
				if b := <-got; b != s.bytes {
					t.Errorf("sent %q, want %q", b, s.bytes)
				}
			})
		}
	}
}

// TestManyCalls checks that calls at the same time do not take each other's source between the
// announcement and the connection. Without a reservation, two of 300 calls would choose the same one
// in most runs.
func TestManyCalls(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer ln.Close()
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, Greeting+want)
				readAll(c)
			})
		}
	})
	var calls sync.WaitGroup
	for range 300 {
		calls.Go(func() {
			call := Call{Protocol: backends.TCP, To: netip.MustParseAddrPort(ln.Addr().String()), Nonce: nonce, Want: want}
			if outcome, _, err := call.Do(within(t, time.Minute), func(netip.AddrPort) {}); outcome != Echoed || err != nil {
				t.Errorf("%v, %v", outcome, err)
			}
		})
	}
	calls.Wait()
}

// closedPort returns a port of 127.0.0.1 that refuses everything: a socket has it that is connected
// to another one, so no other program can open it.
func closedPort(t *testing.T, network string) uint16 {
	t.Helper()
	var peer string
	if network == "tcp4" {
		ln, err := net.Listen(network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		peer = ln.Addr().String()
	} else {
		peer = udpServer(t, func(*net.UDPConn, []byte, netip.AddrPort) {}).String()
	}
	c, err := net.Dial(network, peer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// TestTCPRefused checks that a closed port is refused, with an explicit source, and also if the
// address is IPv4-mapped.
func TestTCPRefused(t *testing.T) {
	port := closedPort(t, "tcp4")
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1"} {
		call := Call{Protocol: backends.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(host), port), From: netip.MustParseAddr("127.0.0.2"), Nonce: nonce, Want: want}
		var announced netip.AddrPort
		outcome, _, err := call.Do(within(t, time.Minute), func(from netip.AddrPort) { announced = from })
		if outcome != Refused || err != nil || announced.Addr() != call.From {
			t.Errorf("%v, %v from %v", outcome, err, announced)
		}
	}
}

// udpServer serves datagrams on loopback until the test ends.
func udpServer(t *testing.T, serve func(c *net.UDPConn, b []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b := make([]byte, 100); ; {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			serve(c, b[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-ended })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestUDP checks that a call ends with the right answer, after answers that do not count, and
// otherwise sends three datagrams of 28 bytes.
func TestUDP(t *testing.T) {
	t.Parallel()
	for _, echoes := range []bool{true, false} {
		var announced netip.AddrPort
		type datagram struct {
			text string
			from netip.AddrPort
		}
		got := make(chan datagram, 10)
		call := Call{Protocol: backends.UDP, Nonce: nonce, Want: want}
		call.To = udpServer(t, func(c *net.UDPConn, b []byte, from netip.AddrPort) {
			got <- datagram{string(b), from}
			for _, answer := range []string{Greeting + nonce, Greeting + want + " ", strings.Repeat("x", 1000), ""} {
				_, _ = c.WriteToUDPAddrPort([]byte(answer), from)
			}
			if echoes && len(got) == 2 {
				_, _ = c.WriteToUDPAddrPort([]byte(Greeting+want), from)
			}
		})
		outcome, rtt, err := call.Do(within(t, 4*time.Second), func(from netip.AddrPort) { announced = from })
		n, expected := 3, Sent
		if echoes {
			n, expected = 2, Echoed
		}
		if outcome != expected || err != nil || (rtt > 0) != echoes {
			t.Errorf("%v, %v, %v, want %v", outcome, rtt, err, expected)
		}
		if len(got) != n {
			t.Errorf("%d datagrams, want %d", len(got), n)
		}
		for len(got) > 0 {
			if d := <-got; d.text != Greeting+nonce || len(d.text) != 28 || d.from != announced {
				t.Errorf("sent %q from %v, announced %v", d.text, d.from, announced)
			}
		}
	}
}

// TestUDPRefused checks that ICMP errors are reported.
func TestUDPRefused(t *testing.T) {
	t.Parallel()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), closedPort(t, "udp4"))
	call := Call{Protocol: backends.UDP, To: to, Nonce: nonce}
	if outcome, _, err := call.Do(within(t, time.Minute), nil); outcome != Refused || err != nil {
		t.Errorf("%v, %v", outcome, err)
	}
}

// TestInvalid checks that nothing is announced or sent for a call that is not possible.
func TestInvalid(t *testing.T) {
	to := netip.MustParseAddrPort("127.0.0.1:9")
	for name, call := range map[string]Call{
		"no port":                 {Protocol: backends.TCP, To: netip.MustParseAddrPort("127.0.0.1:0")},
		"no address":              {Protocol: backends.TCP},
		"a nonce of other bytes":  {Protocol: backends.TCP, To: to, Nonce: "EHLO x\r\nMAIL FROM:<a@b"},
		"want of other bytes":     {Protocol: backends.TCP, To: to, Nonce: nonce, Want: "x"},
		"want without nonce":      {Protocol: backends.TCP, To: to, Want: want},
		"want is the nonce":       {Protocol: backends.TCP, To: to, Nonce: nonce, Want: nonce},
		"UDP without a nonce":     {Protocol: backends.UDP, To: to},
		"another protocol":        {Protocol: backends.SCTP, To: to, Nonce: nonce},
		"no protocol":             {To: to},
		"a source of other hosts": {Protocol: backends.TCP, To: to, From: netip.MustParseAddr("192.0.2.1")},
		"the same for UDP":        {Protocol: backends.UDP, To: to, Nonce: nonce, From: netip.MustParseAddr("192.0.2.1")},
	} {
		outcome, _, err := call.Do(within(t, time.Minute), func(netip.AddrPort) { t.Errorf("%s: announced", name) })
		isOwn := call.From.IsValid() || call.Protocol != backends.TCP && call.Protocol != backends.UDP
		if outcome != "" || err == nil || !isOwn && !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, %v", name, outcome, err)
		}
	}
}

// TestNoRoute checks that the error does not name UDP, by which the source of a TCP connection is found.
func TestNoRoute(t *testing.T) {
	call := Call{Protocol: backends.TCP, To: netip.MustParseAddrPort("[fe80::1%no-interface]:9")}
	outcome, _, err := call.Do(within(t, time.Minute), func(netip.AddrPort) { t.Error("announced") })
	if outcome != "" || err == nil || strings.Contains(err.Error(), "udp") || !strings.Contains(err.Error(), "no route to fe80::1%no-interface: ") {
		t.Errorf("%v, %v", outcome, err)
	}
}

// TestCancel checks that a call ends at once with its context, at any point, and does not report
// an outcome that was not observed.
func TestCancel(t *testing.T) {
	t.Parallel()
	tcp, _ := tcpServer(t, "tcp4", func(c net.Conn) { readAll(c) })
	silent := udpServer(t, func(*net.UDPConn, []byte, netip.AddrPort) {})
	for name, call := range map[string]Call{
		"TCP": {Protocol: backends.TCP, To: tcp, Nonce: nonce, Want: want},
		"UDP": {Protocol: backends.UDP, To: silent, Nonce: nonce, Want: want},
	} {
		ctx, cancel := context.WithCancelCause(within(t, time.Hour))
		cause := errors.New("the client is gone")
		if outcome, _, err := call.Do(ctx, func(netip.AddrPort) { cancel(cause) }); outcome != "" || !errors.Is(err, cause) {
			t.Errorf("%s, before it is sent: %v, %v", name, outcome, err)
		}
	}
	for _, call := range []Call{{Nonce: nonce, Want: want}, {Nonce: nonce}, {}} {
		ctx, cancel := context.WithCancelCause(within(t, time.Hour))
		cause := errors.New("the client is gone")
		call.Protocol = backends.TCP
		call.To, _ = tcpServer(t, "tcp4", func(c net.Conn) { cancel(cause); readAll(c) })
		if outcome, _, err := call.Do(ctx, nil); outcome != "" || !errors.Is(err, cause) {
			t.Errorf("%+v, connected: %v, %v", call, outcome, err)
		}
	}
	ctx, cancel := context.WithCancelCause(within(t, time.Hour))
	cause := errors.New("the client is gone")
	to := udpServer(t, func(*net.UDPConn, []byte, netip.AddrPort) { cancel(cause) })
	if outcome, _, err := (Call{Protocol: backends.UDP, To: to, Nonce: nonce, Want: want}).Do(ctx, nil); outcome != "" || !errors.Is(err, cause) {
		t.Errorf("UDP, sent: %v, %v", outcome, err)
	}
}
