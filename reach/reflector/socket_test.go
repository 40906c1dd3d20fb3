package reflector

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// tcpService serves the connections to a port of loopback until the test ends.
func tcpService(t testing.TB, serve func(net.Conn)) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); conns.Wait() })
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}

// udpService serves the datagrams to a port of loopback until the test ends.
func udpService(t testing.TB, serve func(c *net.UDPConn, b []byte, from netip.AddrPort)) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b := make([]byte, 1<<16); ; {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			serve(c, b[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-ended })
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// closedPort returns a port of loopback that refuses everything: a socket has it that is connected to
// another one, so no other program can open it.
func closedPort(t testing.TB, network string) uint16 {
	t.Helper()
	peer := uint16(0)
	if network == "tcp4" {
		peer = tcpService(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	} else {
		peer = udpService(t, func(*net.UDPConn, []byte, netip.AddrPort) {})
	}
	c, err := net.Dial(network, fmt.Sprintf("127.0.0.1:%d", peer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

var (
	isPort   = regexp.MustCompile(`"port":\d+`)
	isSource = regexp.MustCompile(`"from":"127\.0\.0\.1:\d+"`)
)

// TestSameBytes checks with real sockets that a stranger gets the same bytes about a port whose
// service is absent or another one.
func TestSameBytes(t *testing.T) {
	t.Parallel()
	answer := func(text string) func(*net.UDPConn, []byte, netip.AddrPort) {
		return func(c *net.UDPConn, _ []byte, from netip.AddrPort) { _, _ = c.WriteToUDPAddrPort([]byte(text), from) }
	}
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text); _, _ = io.Copy(io.Discard, c) }
	}
	var requests sync.WaitGroup
	defer requests.Wait()
	for protocol, ports := range map[string]map[string]uint16{
		"tcp": {
			"closed":       closedPort(t, "tcp4"),
			"banner":       tcpService(t, say("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")),
			"long banner":  tcpService(t, say(strings.Repeat("x", 1<<16))),
			"silent":       tcpService(t, say("")),
			"wrong answer": tcpService(t, say(dialback.Greeting+nonce)),
			"half":         tcpService(t, say(dialback.Greeting+want[:21])),
			"redirect":     tcpService(t, say("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n")),
			"echo":         tcpService(t, func(c net.Conn) { _, _ = io.Copy(c, c) }),
			"hangs up":     tcpService(t, func(net.Conn) {}),
			"resets":       tcpService(t, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }),
		},
		"udp": {
			"closed":       closedPort(t, "udp4"),
			"silent":       udpService(t, func(*net.UDPConn, []byte, netip.AddrPort) {}),
			"wrong answer": udpService(t, answer(dialback.Greeting+nonce)),
			"half":         udpService(t, answer(dialback.Greeting+want[:21])),
			"longer":       udpService(t, answer(dialback.Greeting+want+"x")),
			"huge":         udpService(t, answer(strings.Repeat("x", 60000))),
			"empty":        udpService(t, answer("")),
			"echo":         udpService(t, func(c *net.UDPConn, b []byte, from netip.AddrPort) { _, _ = c.WriteToUDPAddrPort(b, from) }),
		},
	} {
		head := `"protocol":"` + protocol + `","port":0,"address":"127.0.0.1",`
		expected := `{"state":"dialing",` + head + `"from":""}` + "\n" + `{"state":"done",` + head + `"result":"silent"}` + "\n"
		for name, port := range ports {
			probes := []string{probeOf(protocol, port)}
			if protocol == "tcp" {
				probes = append(probes, fmt.Sprintf(`{"protocol":"tcp","port":%d}`, port), fmt.Sprintf(`{"protocol":"tcp","port":%d,"nonce":%q}`, port, nonce))
			}
			for _, probe := range probes {
				h := newHandler(t, loopback, nil) // its own limits
				h.window = 2 * time.Second
				at := start(t, h)
				requests.Go(func() {
					status, reply := exchange(t, at, whole(body(probe)))
					got := isSource.ReplaceAllString(isPort.ReplaceAllString(reply.String(), `"port":0`), `"from":""`)
					if status != http.StatusOK || got != expected {
						t.Errorf("%s %s: %d %q, want %q", protocol, name, status, got, expected)
					}
				})
			}
		}
	}
}

// TestFewerBytesOut checks at the ports of the victim that a request causes fewer bytes than it has, in the
// shortest form that is valid, and that these bytes are the greeting and the nonce.
func TestFewerBytesOut(t *testing.T) {
	for name, n := range map[string]int{"one probe": 1, "the most probes": dialback.MaxProbes} {
		for _, protocol := range []string{"tcp", "udp"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Parallel()
				h := newHandler(t, loopback, nil)
				at := start(t, h)
				var mu sync.Mutex
				var got bytes.Buffer
				var probes []string
				for range n {
					port := uint16(0)
					if protocol == "tcp" {
						port = tcpService(t, func(c net.Conn) {
							b, _ := io.ReadAll(c)
							mu.Lock()
							defer mu.Unlock()
							got.Write(b)
						})
					} else {
						port = udpService(t, func(c *net.UDPConn, b []byte, from netip.AddrPort) {
							_, _ = c.WriteToUDPAddrPort(bytes.Repeat([]byte("answer"), 100), from) // causes nothing
							mu.Lock()
							defer mu.Unlock()
							got.Write(b)
						})
					}
					probes = append(probes, probeOf(protocol, port))
				}
				text := body(probes...)
				request := strings.ReplaceAll(whole(text), ": ", ":") // not shorter
				if status, reply := exchange(t, at, request); status != http.StatusOK || strings.Count(reply.String(), "silent") != n {
					t.Fatalf("%d %s", status, reply)
				}
				mu.Lock()
				defer mu.Unlock()
				out := strings.Repeat(dialback.Greeting+nonce, n*map[string]int{"tcp": 1, "udp": 3}[protocol])
				if got.String() != out {
					t.Errorf("the ports got %q, want %q", &got, out)
				}
				if got.Len() >= len(text) || len(text) >= len(request) {
					t.Errorf("%d bytes out, for %d bytes in a body and %d in a request", got.Len(), len(text), len(request))
				}
				t.Logf("%d bytes in, %d of them in the body; %d bytes out", len(request), len(text), got.Len())
			})
		}
	}
}

// TestRedirect checks that a service that answers with a redirect causes no other connection.
func TestRedirect(t *testing.T) {
	t.Parallel()
	victim := tcpService(t, func(net.Conn) { t.Error("the reflector followed a redirect") })
	got := make(chan string, 1)
	port := tcpService(t, func(c net.Conn) {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n", victim)
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	h := newHandler(t, loopback, nil)
	h.window = 2 * time.Second
	if status, reply := exchange(t, start(t, h), whole(body(tcpProbe(port)))); status != http.StatusOK || !strings.Contains(reply.String(), "silent") {
		t.Errorf("%d %s", status, reply)
	}
	select {
	case b := <-got:
		if b != dialback.Greeting+nonce {
			t.Errorf("sent %q", b)
		}
	case <-time.After(time.Minute):
		t.Error("the reflector has not connected")
	}
}

// TestEchoes checks the whole exchange with real sockets.
func TestEchoes(t *testing.T) {
	sources := make(chan netip.AddrPort, 2)
	tcp := tcpService(t, func(c net.Conn) {
		sources <- netip.MustParseAddrPort(c.RemoteAddr().String())
		_, _ = io.CopyN(io.Discard, c, 28)
		_, _ = io.WriteString(c, dialback.Greeting+want)
	})
	udp := udpService(t, func(c *net.UDPConn, _ []byte, from netip.AddrPort) {
		sources <- from
		_, _ = c.WriteToUDPAddrPort([]byte(dialback.Greeting+want), from)
	})
	at := start(t, newHandler(t, loopback, nil))
	for _, probe := range []string{tcpProbe(tcp), probeOf("udp", udp)} {
		status, reply := exchange(t, at, whole(body(probe)))
		got := lines(t, reply)
		if status != http.StatusOK || len(got) != 2 || got[0].From != <-sources || got[1].Result != dialback.Echoed || got[1].RTT <= 0 {
			t.Errorf("%d %+v", status, got)
		}
	}
}

// TestManyRequests checks the reflector with real connections of very many hosts, which a proxy
// reports: all get a reply, and no memory, goroutine or file remains. With GOFORWARD_CHECKS=all,
// there are 100000.
func TestManyRequests(t *testing.T) {
	n := 3000
	if os.Getenv("GOFORWARD_CHECKS") == "all" {
		n = 100_000
	}
	config := loopback
	config.TrustProxy = prefixes("127.0.0.1/32")
	h := newHandler(t, config, echo)
	at := start(t, h)
	text := body(tcpProbe(80))
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var next atomic.Int64
	var before uint64
	statuses := map[int]int{}
	var mu sync.Mutex
	var measure sync.Once
	var clients sync.WaitGroup
	goroutines := runtime.NumGoroutine()
	for range 8 {
		clients.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				if i > n/2 {
					measure.Do(func() { before = heap() })
				}
				status, _ := exchange(t, at, strings.Replace(whole(text), "Host: x", "Host: x\r\nX-Forwarded-For: "+address(i), 1))
				mu.Lock()
				statuses[status]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	after := heap()
	if statuses[http.StatusOK]+statuses[http.StatusServiceUnavailable] != n || statuses[http.StatusOK] < 10 {
		t.Errorf("statuses: %v", statuses)
	}
	if kept := h.limits.len(); kept != min(n, maxClients) || h.limits.running != 0 {
		t.Errorf("%d prefixes are remembered, %d probes are running", kept, h.limits.running)
	}
	if s := h.Stats(); s.Requests != uint64(n) || s.Busy+s.Echoed != s.Requests { //nolint:gosec // positive
		t.Errorf("%+v", s)
	}
	t.Logf("statuses %v, heap %d KiB, then %d KiB, goroutines %d, then %d", statuses, before>>10, after>>10, goroutines, runtime.NumGoroutine())
	if after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
}
