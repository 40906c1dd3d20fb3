package forward_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/reach"
)

// echoTCP accepts connections until the listener is closed. It returns what each of them sends.
func echoTCP(t *testing.T, ln net.Listener) {
	t.Helper()
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		work.Wait()
	})
}

// recordingListener records the first bytes of each connection that the program accepts.
type recordingListener struct {
	net.Listener
	mu    sync.Mutex
	conns int
}

func (l *recordingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns++
		l.mu.Unlock()
	}
	return conn, err
}

// TestVerifyListener checks that a Listener proves that it is reachable, that the program does not
// see the connection of the prober, and that other connections lose nothing.
func TestVerifyListener(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln, err := f.Listen(testContext(t), "tcp4", "127.0.0.1:0")
	if !errors.Is(err, backends.ErrInvalid) { // loopback is refused
		t.Fatalf("Listen on loopback: %v, %v", ln, err)
	}
	ln, err = f.Listen(testContext(t), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	recording := &recordingListener{Listener: ln}
	echoTCP(t, recording)
	if err := ln.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	r, err := ln.Mapping().Verify(testContext(t), gw.Prober())
	if err != nil || r.Verdict != reach.Reachable || r.Proven != reach.LevelInternet {
		t.Fatalf("Verify: %+v, %v, want reachable", r, err)
	}
	recording.mu.Lock()
	if recording.conns != 0 {
		t.Errorf("the program accepted %d connections of the prober", recording.conns)
	}
	recording.mu.Unlock()
	if got := ln.Mapping().Status().Reach; got.Verdict != reach.Reachable {
		t.Errorf("Status has %v", got.Verdict)
	}
	conn, err := gw.Dial(testContext(t), "tcp", ln.External().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("GFWD1 hello "), 20)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("another connection got %q, %v, want %q", got, err, sent)
	}
}

// TestVerifyPacketConn is TestVerifyListener for UDP, with each method that reads.
func TestVerifyPacketConn(t *testing.T) {
	for name, read := range map[string]func(*forward.PacketConn, []byte) (int, netip.AddrPort, error){
		"ReadFrom": func(c *forward.PacketConn, b []byte) (int, netip.AddrPort, error) {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return n, netip.AddrPort{}, err
			}
			return n, from.(*net.UDPAddr).AddrPort(), nil
		},
		"ReadFromAddrPort": (*forward.PacketConn).ReadFromAddrPort,
		"ReadMsgUDP": func(c *forward.PacketConn, b []byte) (int, netip.AddrPort, error) {
			n, _, _, from, err := c.ReadMsgUDP(b, nil)
			return n, from.AddrPort(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
			pc, err := f.ListenPacket(testContext(t), "udp4", ":0")
			if err != nil {
				t.Fatal(err)
			}
			received := make(chan string, 8)
			var work sync.WaitGroup
			work.Go(func() {
				b := make([]byte, 2048)
				for {
					n, from, err := read(pc, b)
					if err != nil {
						return
					}
					received <- string(b[:n])
					_, _ = pc.WriteToUDPAddrPort(b[:n], from)
				}
			})
			t.Cleanup(func() { _ = pc.Close(); work.Wait() })
			if err := pc.Wait(testContext(t)); err != nil {
				t.Fatal(err)
			}
			r, err := pc.Mapping().Verify(testContext(t), gw.Prober())
			if err != nil || r.Verdict != reach.Reachable {
				t.Fatalf("Verify: %+v, %v, want reachable", r, err)
			}
			conn, err := gw.Dial(testContext(t), "udp", pc.External().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if got := <-received; got != "hello" {
				t.Errorf("the program received %q first, want hello", got)
			}
		})
	}
}

// TestVerifyEnable checks the results for a mapping whose port this package does not own.
func TestVerifyEnable(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	m, err := f.Enable(testContext(t), forward.Both(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("no program listens", func(t *testing.T) {
		r, err := m.Verify(testContext(t), gw.Prober())
		if err != nil || r.Verdict != reach.Unreachable || r.Proven != reach.LevelInternet || len(r.Evidence) != 4 {
			t.Errorf("Verify: %+v, %v, want unreachable, and a path that works, for TCP and UDP", r, err)
		}
	})
	m, err = f.Enable(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", fmt.Sprintf(":%d", m.Internal().Port()))
	if err != nil {
		t.Fatal(err)
	}
	echoTCP(t, ln)
	t.Run("a socket of the program", func(t *testing.T) {
		want := reach.Unknown
		if runtime.GOOS == "linux" || runtime.GOOS == "windows" { // the table of sockets shows the connection
			want = reach.Reachable
		}
		r, err := m.Verify(testContext(t), gw.Prober())
		if err != nil || r.Verdict != want {
			t.Errorf("Verify: %+v, %v, want %v", r, err, want)
		}
	})
	t.Run("the context has ended", func(t *testing.T) {
		if _, err := m.Verify(canceledContext(), gw.Prober()); !errors.Is(err, context.Canceled) {
			t.Errorf("Verify: %v", err)
		}
	})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(testContext(t), gw.Prober()); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Verify after Close: %v, want ErrClosed", err)
	}
}

// TestVerifyNotGranted checks the error for a mapping that the gateway refuses.
func TestVerifyNotGranted(t *testing.T) {
	gw := newFakeGateway()
	gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNotAuthorized }
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	m, err := f.Enable(testContext(t), forward.TCP(8080), forward.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Verify(testContext(t)); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Verify: %v, want ErrNoMapping", err)
	}
}

// scriptedProber returns a verdict that the test sets.
type scriptedProber struct {
	mu      sync.Mutex
	verdict reach.Verdict
	samples int
}

func (*scriptedProber) Name() string { return "scripted" }

func (p *scriptedProber) Probe(context.Context, reach.Target, reach.Catcher) (reach.Evidence, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples++
	return reach.Evidence{Verdict: p.verdict, Level: reach.LevelInternet, Detail: "scripted"}, nil
}

func (p *scriptedProber) set(v reach.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verdict = v
}

// TestVerifyInBackground checks the events of the verification in the background, and that a
// mapping that was proven is mapped again once.
func TestVerifyInBackground(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs a table of sockets")
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	echoTCP(t, ln)
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	port := at.Port()
	verified, unreachable := fmt.Sprint("verified ", port), fmt.Sprint("unreachable ", port)
	start := func(t *testing.T, p *scriptedProber) (*fakeGateway, *eventRecorder) {
		gw, events := newFakeGateway(), &eventRecorder{}
		gw.internal = at.Addr()
		f := newForwarder(t, forward.Config{Verify: []reach.Prober{p}, VerifyEvery: time.Minute, CheckEvery: -1, OnEvent: events.record}, gw)
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
			t.Fatal(err)
		}
		return gw, events
	}
	remaps := func(gw *fakeGateway) (n int) {
		gw.set(func() {
			for _, request := range gw.requests {
				if request == fmt.Sprintf("unmap tcp %d", port) {
					n++
				}
			}
		})
		return n
	}
	t.Run("never reachable", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Unreachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port))
			time.Sleep(9 * time.Second) // two samples
			events.want(t)
			time.Sleep(10 * time.Minute)
			events.want(t, unreachable)
			if n := remaps(gw); n != 0 {
				t.Errorf("the mapping was mapped again %d times, but it was never proven", n)
			}
			p.set(reach.Reachable)
			time.Sleep(2 * time.Minute)
			events.want(t, verified)
		})
	})
	t.Run("unknown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			p.set(reach.Unknown)
			time.Sleep(10 * time.Minute)
			events.want(t)
			if n := remaps(gw); n != 0 {
				t.Errorf("the mapping was mapped again %d times", n)
			}
		})
	})
	t.Run("mapped again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			p.set(reach.Unreachable)
			time.Sleep(74 * time.Second) // samples after 60, 65, 70 seconds
			if n := remaps(gw); n != 0 {
				t.Errorf("the mapping was mapped again after three samples")
			}
			time.Sleep(2 * time.Second) // a sample after 75 seconds
			if n := remaps(gw); n != 1 {
				t.Errorf("the mapping was mapped again %d times, want once", n)
			}
			events.want(t)
			time.Sleep(10 * time.Minute)
			events.want(t, unreachable)
			if n := remaps(gw); n != 1 {
				t.Errorf("the mapping was mapped again %d times, want once", n)
			}
			p.set(reach.Reachable)
			time.Sleep(2 * time.Minute)
			events.want(t, verified)
		})
	})
	t.Run("cured", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			p.set(reach.Unreachable)
			gw.set(func() {
				gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
					if op == "map" {
						p.set(reach.Reachable)
					}
					return nil
				}
			})
			time.Sleep(10 * time.Minute)
			events.want(t, verified)
			if n := remaps(gw); n != 1 {
				t.Errorf("the mapping was mapped again %d times, want once", n)
			}
		})
	})
	t.Run("no second look so soon", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			p.set(reach.Unreachable)
			time.Sleep(69 * time.Second) // samples after 60 and 65 seconds
			p.set(reach.Unknown)
			time.Sleep(10 * time.Second)
			p.set(reach.Unreachable)
			if n := remaps(gw); n != 0 {
				t.Error("the mapping was mapped again without a second look")
			}
			time.Sleep(time.Minute)
			if n := remaps(gw); n != 1 {
				t.Errorf("the mapping was mapped again %d times after the second look", n)
			}
		})
	})
	t.Run("no second look, then reachable", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			for range 3 {
				p.set(reach.Unreachable)
				time.Sleep(67 * time.Second) // samples 60 and 65 seconds after the last verification
				p.set(reach.Unknown)
				time.Sleep(5 * time.Second)
				p.set(reach.Reachable)
				time.Sleep(59 * time.Second) // the next verification
			}
			events.want(t)
			if n := remaps(gw); n != 0 {
				t.Errorf("the mapping was mapped again %d times", n)
			}
		})
	})
	t.Run("for a moment", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &scriptedProber{verdict: reach.Reachable}
			gw, events := start(t, p)
			events.want(t, fmt.Sprint("mapped ", port), verified)
			p.set(reach.Unreachable)
			time.Sleep(69 * time.Second)
			p.set(reach.Reachable) // before the third sample
			time.Sleep(10 * time.Minute)
			events.want(t)
			if n := remaps(gw); n != 0 {
				t.Errorf("the mapping was mapped again %d times", n)
			}
		})
	})
}

// expectingProber expects a connection from any source until it is released.
type expectingProber struct{ expects, release chan struct{} }

func (*expectingProber) Name() string { return "expecting" }

func (p *expectingProber) Probe(ctx context.Context, _ reach.Target, c reach.Catcher) (reach.Evidence, error) {
	_, stop := c.Expect(reach.Expectation{First: "GFWD1 " + reach.NewNonce()})
	defer stop()
	close(p.expects)
	select {
	case <-p.release:
	case <-ctx.Done():
	}
	return reach.Evidence{}, errors.New("released")
}

// TestAcceptWhileVerifying checks that a connection that sends nothing does not delay others while
// a prober is expected, that it is accepted when it sends something, and that deadlines and Close
// have the same effect as without a verification.
func TestAcceptWhileVerifying(t *testing.T) {
	_, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln, err := f.Listen(testContext(t), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ln.SetExamineTimeout(time.Hour)
	if err := ln.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	p := &expectingProber{make(chan struct{}), make(chan struct{})}
	var work sync.WaitGroup
	work.Go(func() { _, _ = ln.Mapping().Verify(testContext(t), p) })
	<-p.expects
	dial := func() net.Conn {
		conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", ln.Mapping().Internal().Port()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	accept := func(from net.Conn, text string) {
		t.Helper()
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got, want := conn.RemoteAddr().String(), from.LocalAddr().String(); got != want {
			t.Fatalf("accepted %s, want %s", got, want)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
			t.Errorf("read %q, %v, want %q", got, err, text)
		}
	}
	silent, other, held := dial(), dial(), dial()
	_, _ = other.Write([]byte("other"))
	accept(other, "other")                 // although silent came first
	_, _ = silent.Write([]byte("GFWD1 .")) // no nonce begins with a dot
	accept(silent, "GFWD1 .")
	if err := ln.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept after the deadline: %v", err)
	}
	if err := ln.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	last := dial()
	_, _ = last.Write([]byte("last"))
	accept(last, "last")
	close(p.release)
	work.Wait()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was being examined is open after Close")
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// TestAcceptDeadlineOfTCPListener checks that Accept obeys a deadline that is set on the embedded
// TCPListener.
func TestAcceptDeadlineOfTCPListener(t *testing.T) {
	_, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln, err := f.Listen(testContext(t), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := ln.TCPListener.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := ln.Accept()
		accepted <- err
	}()
	select {
	case err := <-accepted:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Accept after the deadline: %v", err)
		}
	case <-testContext(t).Done():
		t.Fatal("Accept does not return after the deadline")
	}
}

// TestVerifyClosed checks that Close ends a verification: the program may use the port for
// something else then.
func TestVerifyClosed(t *testing.T) {
	_, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln, err := f.Listen(testContext(t), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	echoTCP(t, ln)
	if err := ln.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	p := &expectingProber{make(chan struct{}), make(chan struct{})}
	verified := make(chan error, 1)
	go func() {
		_, err := ln.Mapping().Verify(testContext(t), p)
		verified <- err
	}()
	<-p.expects
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := <-verified; !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Verify: %v, want ErrClosed", err)
	}
}
