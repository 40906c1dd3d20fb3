package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// waiting bounds what a test waits for.
func waiting(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// listen is Listen on a free port that has been granted an external one.
func listen(t *testing.T, f *forward.Forwarder, network string, opts ...forward.Option) *forward.Listener {
	t.Helper()
	ln, err := f.Listen(t.Context(), network, ":0", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	for _, m := range ln.Mappings() {
		if err := m.Wait(waiting(t)); err != nil {
			t.Fatalf("%v; the last attempt: %v", err, m.Err())
		}
	}
	return ln
}

// greet accepts connections until the Listener is closed, and sends why it
// ended.
func greet(ln net.Listener) <-chan error {
	ended := make(chan error, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			_, _ = io.WriteString(conn, "hello")
			_ = conn.Close()
		}
	}()
	return ended
}

// read reads all that a host outside is sent.
func read(t *testing.T, gw *gatewaytest.Gateway, network string, at netip.AddrPort) (string, error) {
	t.Helper()
	conn, err := gw.Dial(waiting(t), network, at.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b), err
}

func localPort(t *testing.T, a net.Addr) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(a.String()).Port()
}

// A web server on a Listener is reached from outside, and no more when it is
// shut down.
func TestListenHTTP(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	ln := listen(t, f, "tcp", forward.External(8080), forward.Description("web"))
	if want := netip.AddrPortFrom(gw.External(), 8080); ln.External().AddrPort != want {
		t.Fatalf("External %v, want %v", ln.External(), want)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello from behind the router")
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	client := &http.Client{Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.External().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello from behind the router" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := srv.Shutdown(waiting(t)); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if left := gw.Table(); len(left) != 0 || ln.External().IsValid() || len(ln.Externals()) != 0 {
		t.Errorf("the gateway has %v; External %v", left, ln.External())
	}
}

// Whatever the gateway does, it listens; when the gateway relents, it is
// reached.
func TestListenRefused(t *testing.T) {
	for name, fault := range map[string]gatewaytest.Fault{
		"refused": {Result: int(natpmp.NotAuthorized)},
		"silent":  {Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}, DiscoveryTimeout: 300 * time.Millisecond}, gatewaytest.Config{})
			relent := gw.Inject(fault)
			ln, err := f.Listen(t.Context(), "tcp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			greet(ln)
			for changed := ln.Mapping().Changed(); ln.Mapping().Err() == nil; changed = ln.Mapping().Changed() {
				<-changed
			}
			if ln.External().AddrPort != (netip.AddrPort{}) || ln.Externals() != nil {
				t.Errorf("External %v", ln.External())
			}
			var d net.Dialer
			conn, err := d.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), localPort(t, ln.Addr())).String())
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
				t.Errorf("from this host: read %q, %v", b, err)
			}
			_ = conn.Close()
			relent()
			if err := ln.Mapping().Wait(waiting(t)); err != nil {
				t.Fatal(err)
			}
			if got, err := read(t, gw, "tcp", ln.External().AddrPort); err != nil || got != "hello" {
				t.Errorf("from outside: read %q, %v", got, err)
			}
		})
	}
}

// It follows a gateway that restarts and gets another address.
func TestListenFollows(t *testing.T) {
	gw, f := startListening(t)
	ln := listen(t, f, "tcp")
	greet(ln)
	moved := netip.AddrPortFrom(netip.MustParseAddr("45.45.45.99"), ln.External().Port())
	gw.SetExternal(moved.Addr())
	for changed := ln.Mapping().Changed(); ln.External().AddrPort != moved; changed = ln.Mapping().Changed() {
		select {
		case <-changed:
		case <-waiting(t).Done():
			t.Fatalf("External %v, want %v", ln.External(), moved)
		}
	}
	gw.Advance(time.Hour)
	if _, err := f.ExternalIP(t.Context()); err != nil { // it has seen an epoch of an hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	mappedAgain(t, gw)
	if err := ln.Mapping().Wait(waiting(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, gw, "tcp", ln.External().AddrPort); err != nil || got != "hello" {
		t.Errorf("after a restart: read %q, %v", got, err)
	}
}

// Close ends Accept, unmaps, and may be called by many.
func TestListenClose(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	ln := listen(t, f, "tcp")
	ended, closed, external := greet(ln), make(chan error, 4), ln.External()
	for range cap(closed) {
		go func() {
			err := ln.Close()
			if n := len(gw.Table()); n != 0 { // also when it was another's call that did it
				err = fmt.Errorf("%d mappings are left", n)
			}
			closed <- err
		}()
	}
	for range cap(closed) {
		if err := <-closed; err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := read(t, gw, "tcp", external.AddrPort); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from outside: %v", err)
	}
	if err := ln.Mapping().Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
}

// A gateway that answers no more keeps Close for two seconds, and no longer.
func TestListenCloseDeadGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		ln, err := f.Listen(t.Context(), "tcp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		if err := ln.Mapping().Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.block = true })
		begun := time.Now()
		err = ln.Close()
		if !errors.Is(err, backends.ErrNoReply) || time.Since(begun) != 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(begun))
		}
		if again := ln.Close(); !errors.Is(again, err) {
			t.Errorf("Close again: %v", again)
		}
	})
}

// A Listener outlives its Forwarder, for this host.
func TestListenForwarderClosed(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	ln := listen(t, f, "tcp")
	greet(ln)
	if err := f.Close(); err != nil || len(gw.Table()) != 0 {
		t.Fatalf("Close: %v; the gateway has %v", err, gw.Table())
	}
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), localPort(t, ln.Addr())).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := ln.Mapping().Wait(t.Context()); !errors.Is(err, forward.ErrClosed) || ln.External().IsValid() {
		t.Errorf("Wait: %v, External %v", err, ln.External())
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Listen(t.Context(), "tcp", ":0"); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Listen: %v", err)
	}
}

func TestListenInvalid(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	peer := netip.MustParseAddrPort("[2001:db8::7]:0")
	for name, test := range map[string]struct {
		network, address string
		opt              forward.Option
		want             error
	}{
		"no network":       {"", ":0", forward.External(80), backends.ErrInvalid},
		"another network":  {"unix", "/tmp/x", forward.External(80), backends.ErrInvalid},
		"packets":          {"udp", ":0", forward.External(80), backends.ErrInvalid},
		"loopback":         {"tcp", "127.0.0.1:0", forward.External(80), backends.ErrInvalid},
		"loopback by name": {"tcp4", "localhost:0", forward.External(80), backends.ErrInvalid},
		"no port":          {"tcp", "0.0.0.0", forward.External(80), nil},
		"a taken port":     {"tcp4", taken.Addr().String(), forward.External(80), syscall.EADDRINUSE},
		"a protocol":       {"tcp4", ":0", forward.TCP(80), backends.ErrInvalid},
		"another protocol": {"tcp4", ":0", forward.UDP(0), backends.ErrInvalid},
		"both":             {"tcp4", ":0", forward.Both(0), backends.ErrInvalid},
		"to":               {"tcp4", ":0", forward.To(netip.MustParseAddrPort("192.0.2.7:80")), backends.ErrInvalid},
		"same port":        {"tcp4", ":0", forward.SamePort(), backends.ErrInvalid},
		"once":             {"tcp4", ":0", forward.Once(), backends.ErrInvalid},
		"background":       {"tcp4", ":0", forward.Background(), backends.ErrInvalid},
		"IPv6":             {"tcp6", ":0", forward.IPv6(), backends.ErrInvalid},
		"nil":              {"tcp4", ":0", nil, backends.ErrInvalid},
		"external 0":       {"tcp4", ":0", forward.External(0), backends.ErrInvalid},
		"another family":   {"tcp4", ":0", forward.From(peer), backends.ErrInvalid},
	} {
		ln, err := f.Listen(t.Context(), test.network, test.address, test.opt)
		if ln != nil || err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v, %v, want %v", name, ln, err, test.want)
		}
	}
	for _, at := range [][2]string{{"tcp", ":0"}, {"ip", ":0"}, {"udp4", "127.0.0.1:0"}} {
		if pc, err := f.ListenPacket(t.Context(), at[0], at[1]); pc != nil || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("ListenPacket of %v: %v, %v", at, pc, err)
		}
	}
	if calls := m.calls(); len(calls) != 0 {
		t.Errorf("the gateway was asked: %v", calls)
	}

	// What fails leaves nothing bound. Somebody else may take a port meanwhile.
	for tries := 1; ; tries++ {
		at := netip.AddrPortFrom(netip.IPv4Unspecified(), localPort(t, taken.Addr())).String()
		_ = taken.Close()
		_, err := f.Listen(t.Context(), "tcp4", at, forward.Once())
		again, bindErr := lc.Listen(t.Context(), "tcp4", at)
		if errors.Is(err, backends.ErrInvalid) && bindErr == nil {
			_ = again.Close()
			return
		}
		if tries == 3 {
			t.Fatalf("Listen: %v; and then: %v", err, bindErr)
		}
		if taken, err = lc.Listen(t.Context(), "tcp4", ":0"); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody else's Disable or Refresh takes a Listener's mapping by chance; who
// names it does.
func TestListenDisable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		ctx := t.Context()
		enable := func() *forward.Mapping {
			got, err := f.Enable(ctx, forward.TCP(1001))
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		open := func() *forward.Listener {
			ln, err := f.Listen(ctx, "tcp4", ":0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			if err := ln.Mapping().Wait(ctx); err != nil {
				t.Fatal(err)
			}
			return ln
		}
		enabled := enable()
		ln := open()
		if err := f.Disable(ctx); err != nil || !ln.External().IsValid() || enabled.External().IsValid() {
			t.Errorf("Disable: %v; %v and %v", err, enabled, ln.Mapping())
		}
		for name, err := range map[string]error{"Disable": f.Disable(ctx), "Refresh": f.Refresh(ctx)} {
			if !errors.Is(err, forward.ErrNoMapping) {
				t.Errorf("%s of nothing else: %v", name, err)
			}
		}
		if err := f.Refresh(ctx, forward.TCP(0)); err != nil {
			t.Errorf("Refresh by name: %v", err)
		}
		if err := f.Disable(ctx, forward.TCP(localPort(t, ln.Addr()))); err != nil || ln.External().IsValid() {
			t.Errorf("Disable by name: %v; %v", err, ln.Mapping())
		}
		enable()
		ln = open()
		if n, err := f.DisableAll(ctx); err != nil || n != 2 || ln.External().IsValid() || len(m.live()) != 0 {
			t.Errorf("DisableAll: %d, %v; the gateway has %v", n, err, m.live())
		}
	})
}

func ExampleListen() {
	gw := router()
	defer gw.Close()
	defer forward.Close()

	ln, err := forward.Listen("tcp", ":0", forward.External(8080))
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello from behind the router")
	}))

	// It serves this host already. To tell the world where, wait:
	if err := ln.Mapping().Wait(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("reachable at", ln.External())

	// Somebody on the internet:
	client := &http.Client{Transport: &http.Transport{DialContext: gw.Dial, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.External().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s\n", body)
	// Output:
	// reachable at 45.45.45.1:8080
	// hello from behind the router
}
