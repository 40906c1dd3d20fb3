package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// listenMapped calls Listen for a free port, and waits until all its mappings are
// granted.
func listenMapped(t *testing.T, f *forward.Forwarder, network string, opts ...forward.Option) *forward.Listener {
	t.Helper()
	ln, err := f.Listen(t.Context(), network, ":0", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	for _, m := range ln.Mappings() {
		if err := m.Wait(testContext(t)); err != nil {
			t.Fatalf("%v; the error of the last attempt: %v", err, m.Err())
		}
	}
	return ln
}

// serveHello accepts connections until the Listener is closed, and then sends the error
// of Accept.
func serveHello(ln net.Listener) <-chan error {
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

// dialAndRead connects from outside, and returns all data that it receives.
func dialAndRead(t *testing.T, gw *gatewaytest.Gateway, network string, at netip.AddrPort) (string, error) {
	t.Helper()
	conn, err := gw.Dial(testContext(t), network, at.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b), err
}

// localPort returns the port of an address.
func localPort(t *testing.T, a net.Addr) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(a.String()).Port()
}

// TestListenHTTP checks that a web server on a Listener is reachable from outside until
// it is shut down.
func TestListenHTTP(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln := listenMapped(t, f, "tcp", forward.External(8080), forward.Description("web"))
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
	if err := srv.Shutdown(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if table := gw.Table(); len(table) != 0 || ln.External().IsValid() || len(ln.Externals()) != 0 {
		t.Errorf("the gateway has %v; External %v", table, ln.External())
	}
}

// TestListenRefused checks that a Listener accepts local connections even if the gateway
// refuses the mapping or does not reply. It is reachable from outside as soon as the
// gateway grants the mapping.
func TestListenRefused(t *testing.T) {
	for name, fault := range map[string]gatewaytest.Fault{
		"refused":  {Result: int(natpmp.NotAuthorized)},
		"no reply": {Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"natpmp"}, DiscoveryTimeout: 300 * time.Millisecond}, gatewaytest.Config{})
			removeFault := gw.Inject(fault)
			ln, err := f.Listen(t.Context(), "tcp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			serveHello(ln)
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
			removeFault()
			if err := ln.Mapping().Wait(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if got, err := dialAndRead(t, gw, "tcp", ln.External().AddrPort); err != nil || got != "hello" {
				t.Errorf("from outside: read %q, %v", got, err)
			}
		})
	}
}

// TestListenGatewayRestart checks that a Listener stays reachable if the gateway gets
// another address and restarts.
func TestListenGatewayRestart(t *testing.T) {
	gw, f := gatewayWithAnnouncements(t)
	ln := listenMapped(t, f, "tcp")
	serveHello(ln)
	newEndpoint := netip.AddrPortFrom(netip.MustParseAddr("45.45.45.99"), ln.External().Port())
	gw.SetExternal(newEndpoint.Addr())
	for changed := ln.Mapping().Changed(); ln.External().AddrPort != newEndpoint; changed = ln.Mapping().Changed() {
		select {
		case <-changed:
		case <-testContext(t).Done():
			t.Fatalf("External %v, want %v", ln.External(), newEndpoint)
		}
	}
	gw.Advance(time.Hour)
	if _, err := f.ExternalIP(t.Context()); err != nil { // the Forwarder receives an epoch of one hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	awaitRemapped(t, gw)
	if err := ln.Mapping().Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got, err := dialAndRead(t, gw, "tcp", ln.External().AddrPort); err != nil || got != "hello" {
		t.Errorf("after a restart: read %q, %v", got, err)
	}
}

// TestListenClose checks that Close ends Accept and deletes the mapping, and that several
// goroutines may call it.
func TestListenClose(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln := listenMapped(t, f, "tcp")
	ended, closed, external := serveHello(ln), make(chan error, 4), ln.External()
	for range cap(closed) {
		go func() {
			err := ln.Close()
			if n := len(gw.Table()); n != 0 { // also if another call deleted the mapping
				err = fmt.Errorf("%d mappings remain", n)
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
	if _, err := dialAndRead(t, gw, "tcp", external.AddrPort); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from outside: %v", err)
	}
	if err := ln.Mapping().Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
}

// TestListenCloseNoReply checks that Close takes two seconds if the gateway does not
// reply.
func TestListenCloseNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		ln, err := f.Listen(t.Context(), "tcp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		if err := ln.Mapping().Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.block = true })
		start := time.Now()
		err = ln.Close()
		if !errors.Is(err, backends.ErrNoReply) || time.Since(start) != 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		if again := ln.Close(); !errors.Is(again, err) {
			t.Errorf("Close again: %v", again)
		}
	})
}

// TestListenForwarderClosed checks that a Listener accepts local connections after its
// Forwarder was closed.
func TestListenForwarderClosed(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	ln := listenMapped(t, f, "tcp")
	serveHello(ln)
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

// TestListenInvalid checks that invalid addresses and options fail, and that no port
// stays bound.
func TestListenInvalid(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
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
		"UDP":              {"udp", ":0", forward.External(80), backends.ErrInvalid},
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
	for _, address := range [][2]string{{"tcp", ":0"}, {"ip", ":0"}, {"udp4", "127.0.0.1:0"}} {
		if pc, err := f.ListenPacket(t.Context(), address[0], address[1]); pc != nil || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("ListenPacket of %v: %v, %v", address, pc, err)
		}
	}
	if calls := gw.takeCalls(); len(calls) != 0 {
		t.Errorf("requests %q, want none", calls)
	}

	// A Listen that fails leaves no port bound. Another program may bind the port meanwhile.
	for attempt := 1; ; attempt++ {
		address := netip.AddrPortFrom(netip.IPv4Unspecified(), localPort(t, taken.Addr())).String()
		_ = taken.Close()
		_, err := f.Listen(t.Context(), "tcp4", address, forward.Once())
		again, bindErr := lc.Listen(t.Context(), "tcp4", address)
		if errors.Is(err, backends.ErrInvalid) && bindErr == nil {
			_ = again.Close()
			return
		}
		if attempt == 3 {
			t.Fatalf("Listen: %v; net.Listen afterwards: %v", err, bindErr)
		}
		if taken, err = lc.Listen(t.Context(), "tcp4", ":0"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestListenDisable checks that Disable and Refresh without selectors skip the mapping of
// a Listener, and that selectors select it.
func TestListenDisable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		ctx := t.Context()
		enable := func() *forward.Mapping {
			m, err := f.Enable(ctx, forward.TCP(1001))
			if err != nil {
				t.Fatal(err)
			}
			return m
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
				t.Errorf("%s without selectors: %v", name, err)
			}
		}
		if err := f.Refresh(ctx, forward.TCP(0)); err != nil {
			t.Errorf("Refresh with a selector: %v", err)
		}
		if err := f.Disable(ctx, forward.TCP(localPort(t, ln.Addr()))); err != nil || ln.External().IsValid() {
			t.Errorf("Disable with a selector: %v; %v", err, ln.Mapping())
		}
		enable()
		ln = open()
		if n, err := f.DisableAll(ctx); err != nil || n != 2 || ln.External().IsValid() || len(gw.live()) != 0 {
			t.Errorf("DisableAll: %d, %v; the gateway has %v", n, err, gw.live())
		}
	})
}

// TestListenerCloseDuringShutdown closes a Listener while its Forwarder is shut down.
func TestListenerCloseDuringShutdown(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr()})
	ln, err := f.Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Mapping().Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	removeFault := gw.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true, Times: 1}) // one packet is lost
	defer removeFault()
	closed := make(chan error, 1)
	go func() { closed <- ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isUnmap); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = f.Shutdown(ctx)
	t.Logf("Shutdown: %v after %v; Listener.Close: %v", err, time.Since(start), <-closed)
	if len(gw.Table()) != 0 {
		t.Errorf("the gateway still has %v", gw.Table())
	}
}

// TestListenerCloseDuringRequest closes a Listener while its mapping is requested. The
// mapping that the gateway grants is deleted.
func TestListenerCloseDuringRequest(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr()})
	hold := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: hold})
	ln, err := f.Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gw.AwaitRequests(t.Context(), 1, isMap); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(30*time.Millisecond, func() { close(hold) })
	if err := ln.Close(); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Close: %v; the gateway has %+v", err, gw.Table())
	}
}

// compareEndpoints is the option of cmp that compares endpoints with ==.
var compareEndpoints = cmpopts.EquateComparable(backends.Endpoint{})

// TestListenPinhole checks that a pinhole has the address of this host.
func TestListenPinhole(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{
		Protocols: []string{"natpmp", "pcp"}, Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetDefaultGateways(gw.Addr(), gw.Addr6()); err != nil {
		t.Fatal(err)
	}
	for network, want := range map[string][]string{"tcp": {"tcp4", "tcp6"}, "tcp4": {"tcp4"}, "tcp6": {"tcp6"}} {
		t.Run(network, func(t *testing.T) {
			ln := listenMapped(t, f, network, forward.External(8080))
			port := localPort(t, ln.Addr())
			endpoints := map[string]netip.AddrPort{
				"tcp4": netip.AddrPortFrom(gw.External(), 8080), "tcp6": netip.AddrPortFrom(netip.IPv6Loopback(), port),
			}
			var wantEndpoints []backends.Endpoint
			for _, family := range want {
				wantEndpoints = append(wantEndpoints, backends.Endpoint{AddrPort: endpoints[family]})
			}
			if err := ln.Wait(t.Context()); err != nil {
				t.Errorf("Wait: %v", err)
			}
			if diff := cmp.Diff(wantEndpoints, ln.Externals(), compareEndpoints); diff != "" || ln.External() != wantEndpoints[0] {
				t.Errorf("External %v, Externals (-want +got):\n%s", ln.External(), diff)
			}
			serveHello(ln)
			for _, family := range want {
				if got, err := dialAndRead(t, gw, family, endpoints[family]); err != nil || got != "hello" {
					t.Errorf("%s: read %q, %v", family, got, err)
				}
			}
			if len(want) == 2 { // without the mapping, External is the endpoint of the pinhole
				if err := ln.Mapping().Close(); err != nil || ln.External().AddrPort != endpoints["tcp6"] {
					t.Errorf("after the mapping is closed: %v, %v", ln.External(), err)
				}
			}
			if err := ln.Close(); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Close: %v; the gateway has %v", err, gw.Table())
			}
			if err := ln.Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
				t.Errorf("Wait after Close: %v", err)
			}
		})
	}
}

// TestListenFamiliesIndependent checks that an IPv6 gateway that does not reply has no
// effect on IPv4 mappings.
func TestListenFamiliesIndependent(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{
		Protocols: []string{"natpmp", "pcp"}, Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")}, DiscoveryTimeout: time.Minute, RequestTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetDefaultGateways(gw.Addr(), gw.Addr6()); err != nil {
		t.Fatal(err)
	}
	isIPv6 := func(r gatewaytest.Request) bool { return r.Source.Addr().Is6() }
	gw.Inject(gatewaytest.Fault{Match: isIPv6, Drop: true})
	pc, err := f.ListenPacket(t.Context(), "udp6", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := gw.AwaitRequests(testContext(t), 1, isIPv6); err != nil {
		t.Fatal(err)
	}
	listenMapped(t, f, "tcp4")
}

// TestListenPacketEcho checks that a PacketConn receives datagrams from outside and
// replies to them.
func TestListenPacketEcho(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	pc, err := f.ListenPacket(t.Context(), "udp4", ":0", forward.External(9000))
	if err != nil {
		t.Fatal(err)
	}
	if err := pc.Mapping().Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				ended <- err
				return
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	out, err := gw.Dial(t.Context(), "udp", pc.External().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_ = out.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = io.WriteString(out, "hello")
	b := make([]byte, 100)
	if n, err := out.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if pc.External().Port() != 9000 || len(gw.Table()) != 1 || gw.Table()[0].Protocol != backends.UDP {
		t.Errorf("External %v; the gateway has %v", pc.External(), gw.Table())
	}
	for range 2 {
		if err := pc.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) || len(gw.Table()) != 0 {
		t.Errorf("ReadFrom after Close: %v; the gateway has %v", err, gw.Table())
	}
}
