package reflector

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// pipes is a listener without sockets, so that it works with virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects from an address.
func (p *pipes) dial(addr string) net.Conn {
	client, server := net.Pipe()
	p.conns <- &pipe{server, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 40000))}
	return client
}

type pipe struct {
	net.Conn
	from net.Addr
}

func (p *pipe) RemoteAddr() net.Addr { return p.from }

// run serves on pipes. The returned function ends that and returns the error of Serve.
func run(t *testing.T, h *Handler, config *tls.Config) (*pipes, func() error) {
	t.Helper()
	p, ended := newPipes(), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- h.Serve(ctx, p, config) }()
	return p, func() error { cancel(); return <-ended }
}

// whole is a request with a body.
func whole(body string) string { return head(body) + body }

// head is the header of a request with a body.
func head(body string) string {
	return fmt.Sprintf("POST /v1/probe HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
}

// trickle sends a text, one byte each second, until the connection ends.
func trickle(c net.Conn, text string) {
	for i := range len(text) {
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// TestSlowClients checks that connections of slow clients are closed, and that nothing remains of them.
func TestSlowClients(t *testing.T) {
	text := body(tcpProbe(80))
	for name, c := range map[string]struct {
		client func(net.Conn)
		tls    bool
		limit  time.Duration
		status string
	}{
		"sends nothing":  {func(net.Conn) {}, false, 5 * time.Second, ""},
		"slow header":    {func(c net.Conn) { trickle(c, head(text)) }, false, 6 * time.Second, ""},
		"endless header": {func(c net.Conn) { trickle(c, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 1000)) }, false, 6 * time.Second, ""},
		"slow body":      {func(c net.Conn) { _, _ = io.WriteString(c, head(text)); trickle(c, text) }, false, 11 * time.Second, "408"},
		"no body":        {func(c net.Conn) { _, _ = io.WriteString(c, head(text)) }, false, 11 * time.Second, "408"},
		"slow body of a 404": {func(c net.Conn) {
			_, _ = io.WriteString(c, strings.Replace(head(text), "probe", "x", 1))
			trickle(c, text)
		}, false, 11 * time.Second, "404"},
		"no TLS handshake":            {func(net.Conn) {}, true, 5 * time.Second, ""},
		"slow TLS handshake":          {func(c net.Conn) { trickle(c, "\x16\x03\x01\x02\x00"+strings.Repeat("\x00", 512)) }, true, 6 * time.Second, ""},
		"a second request, pipelined": {func(c net.Conn) { _, _ = io.WriteString(c, head(text)+text+"GET / HTTP/1.1\r\n") }, false, 11 * time.Second, "200"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var config *tls.Config
			if c.tls {
				config = &tls.Config{Certificates: certificate(t)} //nolint:gosec // the default minimum is fine
			}
			h := newHandler(t, Config{}, noAnswer)
			p, end := run(t, h, config)
			conn, begun := p.dial(requester), time.Now()
			var clients sync.WaitGroup
			clients.Go(func() { c.client(conn) })
			reply, _ := io.ReadAll(conn)
			if took := time.Since(begun); took > c.limit {
				t.Errorf("%s: closed after %v", name, took)
			}
			if c.status != "" && !strings.HasPrefix(string(reply), "HTTP/1.1 "+c.status) {
				t.Errorf("%s: %q", name, reply)
			}
			conn.Close()
			clients.Wait()
			if err := end(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if h.limits.running != 0 {
				t.Errorf("%s: %d probes are still running", name, h.limits.running)
			}
		})
	}
}

// TestClientNeverReads checks that a client that does not read its reply is cut, at the
// announcement, which is not followed by a call, and at the result.
func TestClientNeverReads(t *testing.T) {
	for _, reads := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			h := newHandler(t, Config{}, func(_ dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
				announce(source)
				if isSent(ctx) {
					calls++
				}
				return dialback.Refused, 0, nil
			})
			p, end := run(t, h, nil)
			conn := p.dial(requester)
			text := body(tcpProbe(80))
			_, _ = io.WriteString(conn, head(text)+text)
			r := bufio.NewReader(conn)
			for i := 0; reads > 0 && i < 100; i++ {
				if line, err := r.ReadString('\n'); err != nil || strings.Contains(line, "dialing") {
					break
				}
			}
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if h.limits.running != 0 || calls != reads {
				t.Errorf("after %d lines: %d probes are still running, %d calls", reads, h.limits.running, calls)
			}
			if b, _ := io.ReadAll(conn); strings.Contains(string(b), dialback.StateDone) {
				t.Errorf("the connection was not cut: %q", b)
			}
			conn.Close()
			if err := end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestServeEnds checks that Serve lets a running request end, and cuts the slowest client, which
// would take 14.8 s.
func TestServeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begins, ends atomic.Int32
		h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			begins.Add(1)
			defer ends.Add(1)
			defer time.Sleep(2 * time.Second)
			return noAnswer(c, ctx, announce)
		})
		p, end := run(t, h, nil)
		conn, slow := p.dial(requester), p.dial(other)
		text := body(tcpProbe(80))
		_, _ = io.WriteString(conn, head(text)+text)
		var clients sync.WaitGroup
		clients.Go(func() {
			_, _ = io.WriteString(slow, head(text))
			time.Sleep(4900 * time.Millisecond)
			_, _ = io.WriteString(slow, text)
			time.Sleep(4900 * time.Millisecond)
			_, _ = io.Copy(io.Discard, slow)
		})
		replies := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(conn)
			replies <- b
		}()
		time.Sleep(time.Second)
		begun := time.Now()
		if err := end(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 11*time.Second || begins.Load() != 2 || ends.Load() != 2 {
			t.Errorf("Serve ended after %v, and %d of %d calls", took, ends.Load(), begins.Load())
		}
		if b := <-replies; !strings.Contains(string(b), `"result":"silent"`) {
			t.Errorf("the reply is %q", b)
		}
		conn.Close()
		slow.Close()
		clients.Wait()
	})
}

// TestServe checks that a request that takes long, but not too long, gets a complete reply.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
			time.Sleep(time.Second)
			return noAnswer(c, ctx, announce)
		})
		p, end := run(t, h, nil)
		conn, text := p.dial(requester), body(tcpProbe(80))
		var clients sync.WaitGroup
		clients.Go(func() {
			_, _ = io.WriteString(conn, head(text))
			time.Sleep(4 * time.Second)
			_, _ = io.WriteString(conn, text)
		})
		begun := time.Now()
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		reply, err := io.ReadAll(response.Body)
		if err != nil || !strings.HasSuffix(string(reply), `"silent"}`+"\n") || time.Since(begun) != 10*time.Second {
			t.Errorf("after %v: %v, %s", time.Since(begun), err, reply)
		}
		conn.Close()
		clients.Wait()
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestDisconnect checks that the end of the connection ends the calls.
func TestDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{}, noAnswer)
		p, end := run(t, h, nil)
		conn, text := p.dial(requester), body(tcpProbe(80))
		_, _ = io.WriteString(conn, whole(text))
		_, _ = bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		h.limits.mu.Lock()
		running := h.limits.running
		h.limits.mu.Unlock()
		if running != 0 {
			t.Errorf("%d probes are still running", running)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// TestServeFails checks that errors of the listener and of the TLS configuration are returned, and
// that the listener is closed.
func TestServeFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := newHandler(t, Config{}, nil).Serve(t.Context(), ln, nil); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	p := newPipes()
	if err := newHandler(t, Config{}, nil).Serve(t.Context(), p, &tls.Config{}); err == nil { //nolint:gosec // it is not used
		t.Error("served without a certificate")
	}
	if _, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestManyConnections checks the number of connections of one prefix and in total.
func TestManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, Config{TrustProxy: prefixes("10.0.0.1/32")}, echo)
		p, end := run(t, h, nil)
		var all []net.Conn
		isOpen := func(addr string) bool {
			c := p.dial(addr)
			all = append(all, c)
			synctest.Wait()
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			return errors.Is(err, os.ErrDeadlineExceeded)
		}
		for i := range connsPerPeer {
			if !isOpen(requester) {
				t.Fatalf("connection %d was closed", i)
			}
		}
		if isOpen(requester) {
			t.Error("one connection too many")
		}
		all[0].Close()
		synctest.Wait()
		if !isOpen(requester) {
			t.Error("a closed connection still counts")
		}
		for i := connsPerPeer; i < maxConns; i++ {
			if !isOpen("10.0.0.1") {
				t.Fatalf("connection %d, of the proxy, was closed", i)
			}
		}
		for _, addr := range []string{other, "10.0.0.1"} {
			if isOpen(addr) {
				t.Errorf("one connection too many, from %s", addr)
			}
		}
		for _, c := range all {
			c.Close()
		}
		if err := end(); err != nil {
			t.Error(err)
		}
	})
}

// certificate returns a certificate for 127.0.0.1.
func certificate(t *testing.T) []tls.Certificate {
	t.Helper()
	certificateOnce.Do(func() {
		srv := httptest.NewUnstartedServer(nil)
		srv.StartTLS()
		testCertificate = srv.TLS.Certificates
		srv.Close()
	})
	return testCertificate
}

var (
	certificateOnce sync.Once
	testCertificate []tls.Certificate
)

// TestTLS checks the reply over HTTPS, and that HTTP/2, in which one connection can have many requests, is not
// offered.
func TestTLS(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHandler(t, loopback, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- h.Serve(ctx, ln, &tls.Config{Certificates: certificate(t), NextProtos: []string{"h2", "http/1.1"}}) //nolint:gosec // the default minimum is fine
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}) //nolint:gosec // a test
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, "GET /v1/ip HTTP/1.1\r\nHost: x\r\n\r\n")
	reply, err := io.ReadAll(conn)
	if p := conn.ConnectionState().NegotiatedProtocol; p == "h2" || err != nil || !strings.HasSuffix(string(reply), `{"address":"127.0.0.1"}`+"\n") {
		t.Errorf("protocol %q, %v: %q", p, err, reply)
	}
	conn.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// exchange sends the bytes of a request on a new connection, and returns the status and the body of
// the reply. Several goroutines may call it at once.
func exchange(t testing.TB, to, request string) (int, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	status, err := func() (int, error) {
		conn, err := net.Dial("tcp", to)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, request); err != nil {
			return 0, err
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		_, err = b.ReadFrom(response.Body)
		return response.StatusCode, err
	}()
	if err != nil {
		t.Error(err)
	}
	return status, &b
}

// TestAbsoluteURL checks that the reflector is no proxy: the URL and the Host of a request do
// not matter.
func TestAbsoluteURL(t *testing.T) {
	at := start(t, newHandler(t, loopback, nil))
	for _, line := range []string{"GET /v1/ip", "GET http://" + other + "/v1/ip", "GET http://" + other + ":80/v1/ip?address=" + other} {
		if status, b := exchange(t, at, line+" HTTP/1.1\r\nHost: "+other+"\r\n\r\n"); status != http.StatusOK || b.String() != `{"address":"127.0.0.1"}`+"\n" {
			t.Errorf("%s: %d %s", line, status, b)
		}
	}
	for _, line := range []string{"CONNECT " + other + ":80", "GET http://" + other + "/", "OPTIONS http://" + other + "/v1/probe", "OPTIONS *"} {
		if status, b := exchange(t, at, line+" HTTP/1.1\r\nHost: "+other+"\r\n\r\n"); status < 400 {
			t.Errorf("%s: %d %s", line, status, b)
		}
	}
}

// TestLongHeader checks the limit of the header, which is 8 KiB in all.
func TestLongHeader(t *testing.T) {
	at := start(t, newHandler(t, loopback, nil))
	for size, want := range map[int]int{7 << 10: http.StatusOK, 9 << 10: http.StatusRequestHeaderFieldsTooLarge} {
		if status, b := exchange(t, at, "GET /v1/ip HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", size)+"\r\n\r\n"); status != want {
			t.Errorf("%d bytes: %d %s", size, status, b)
		}
	}
}
