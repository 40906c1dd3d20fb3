package upnp_test

import (
	"errors"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var nextHost atomic.Uint32

// host returns a new loopback address if the system has more than one. Each test
// needs its own, because requests to one address are sent one after another, and a
// device is identified by its address.
func host() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	n := nextHost.Add(1)
	return netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})
}

// needHosts skips the test if all devices would have the same address.
func needHosts(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this system has one loopback address only")
	}
}

// start starts a gateway with a manual clock.
func start(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	config.ManualClock = true
	if !config.Listen.IsValid() {
		config.Listen = netip.AddrPortFrom(host(), 0)
	}
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// newBackend returns a backend with the given config. By default, it searches for
// the given gateway.
func newBackend(t *testing.T, gw *gatewaytest.Gateway, config upnp.Config) *upnp.Backend {
	t.Helper()
	if !config.Gateway.IsValid() {
		config.Gateway = gw.Addr().Addr()
	}
	if config.SSDP == nil {
		config.SSDP = []netip.AddrPort{gw.SSDP()}
	}
	if config.Wait == 0 {
		config.Wait = 5 * time.Second
	}
	if config.Timeout == 0 {
		config.Timeout = 5 * time.Second
	}
	b, err := upnp.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b.ShortenDelays()
}

// startBackend starts a gateway, and a backend that finds it with a search.
func startBackend(t *testing.T, router quirks.UPnP) (*gatewaytest.Gateway, *upnp.Backend) {
	t.Helper()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
	return gw, newBackend(t, gw, upnp.Config{})
}

// request returns a request for a TCP port, for one hour.
func request(internal, external uint16) backends.Request {
	return backends.Request{
		Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, internal),
		External: netip.AddrPortFrom(netip.Addr{}, external), Lifetime: time.Hour, Description: "a test",
	}
}

func exactRequest(internal, external uint16) backends.Request {
	r := request(internal, external)
	r.Exact = true
	return r
}

// mustMap maps a port and checks that the gateway has the entry.
func mustMap(t *testing.T, gw *gatewaytest.Gateway, b *upnp.Backend, r backends.Request) backends.Mapping {
	t.Helper()
	m, err := b.Map(t.Context(), r)
	if err != nil {
		t.Fatalf("Map: %v", err)
	}
	checkEntry(t, gw, m)
	return m
}

func mustRenew(t *testing.T, gw *gatewaytest.Gateway, b *upnp.Backend, m backends.Mapping, r backends.Request) backends.Mapping {
	t.Helper()
	renewed, err := b.Renew(t.Context(), m, r)
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	checkEntry(t, gw, renewed)
	return renewed
}

// checkEntry checks that the gateway has an entry for the mapping, for at least its
// lifetime.
func checkEntry(t *testing.T, gw *gatewaytest.Gateway, m backends.Mapping) {
	t.Helper()
	e, ok := entry(gw, m.External.Port())
	switch {
	case !ok || e.Internal != m.Internal:
		t.Fatalf("the gateway has %+v, want %v at port %d", gw.Table(), m.Internal, m.External.Port())
	case e.Remaining < m.Lifetime:
		t.Errorf("the gateway has the entry for %v, granted %v", e.Remaining, m.Lifetime)
	}
}

// entry returns the gateway's entry for an external TCP port.
func entry(gw *gatewaytest.Gateway, port uint16) (gatewaytest.Entry, bool) {
	for _, e := range gw.Table() {
		if e.External.Port() == port && e.Protocol == backends.TCP {
			return e, true
		}
	}
	return gatewaytest.Entry{}, false
}

// occupy maps a port to another host.
func occupy(t *testing.T, gw *gatewaytest.Gateway, port uint16) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.77.9:9"),
		External: netip.AddrPortFrom(gw.External(), port),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// count returns how many requests of an action the gateway received.
func count(gw *gatewaytest.Gateway, action string) int { return len(actionCalls(gw, action)) }

var argument = regexp.MustCompile(`<(\w+)>([^<]*)</`)

// actionCalls returns the arguments of each request of an action.
func actionCalls(gw *gatewaytest.Gateway, action string) []map[string]string {
	var all []map[string]string
	for _, q := range gw.Requests() {
		if q.Action != action {
			continue
		}
		args := map[string]string{}
		for _, a := range argument.FindAllSubmatch(q.Raw, -1) {
			args[string(a[1])] = string(a[2])
		}
		all = append(all, args)
	}
	return all
}

// injectFault makes the gateway respond to an action with a fault.
func injectFault(gw *gatewaytest.Gateway, action string, code int) (remove func()) {
	return gw.Inject(gatewaytest.Fault{Match: isAction(action), Result: code})
}

func isAction(action string) func(gatewaytest.Request) bool {
	return func(q gatewaytest.Request) bool { return q.Action == action }
}

// wantError checks the kind of an error and, unless code is 0, its fault code.
func wantError(t *testing.T, err, kind error, code upnp.FaultCode) {
	t.Helper()
	var f *upnp.Fault
	switch {
	case !errors.Is(err, kind):
		t.Errorf("%v, want %v", err, kind)
	case code != 0 && (!errors.As(err, &f) || f.Code != code):
		t.Errorf("%v, want code %d", err, code)
	}
}

// fakeSSDP opens a socket on a loopback address and calls respond for each datagram
// until the test ends.
func fakeSSDP(t *testing.T, at netip.Addr, respond func(conn *net.UDPConn, datagram []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			respond(conn, buf[:n], from)
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// silentSSDP opens a socket that does not respond to searches. Each search is
// signalled on the channel.
func silentSSDP(t *testing.T) (at netip.AddrPort, searched <-chan struct{}) {
	searches := make(chan struct{}, 1000)
	at = fakeSSDP(t, host(), func(*net.UDPConn, []byte, netip.AddrPort) {
		select {
		case searches <- struct{}{}:
		default:
		}
	})
	return at, searches
}

// relayTo forwards changed searches to a gateway, and the responses back from the
// gateway's address.
func relayTo(t *testing.T, to netip.AddrPort, rewrite func(string) string) netip.AddrPort {
	var client atomic.Pointer[netip.AddrPort]
	return fakeSSDP(t, to.Addr(), func(conn *net.UDPConn, datagram []byte, from netip.AddrPort) {
		if from == to {
			_, _ = conn.WriteToUDPAddrPort(datagram, *client.Load())
			return
		}
		client.Store(&from)
		_, _ = conn.WriteToUDPAddrPort([]byte(rewrite(string(datagram))), to)
	})
}

// connCounter is a TCP listener that counts connections and closes them without a
// response.
type connCounter struct {
	addr  netip.AddrPort
	count atomic.Int32
	stop  func()
}

// countConns listens at an address. It returns false if the address is in use or
// does not exist.
func countConns(t *testing.T, at netip.AddrPort) (*connCounter, bool) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, false
	}
	counter := &connCounter{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			counter.count.Add(1)
			_ = conn.Close()
		}
	})
	counter.stop = func() {
		_ = l.Close()
		serving.Wait()
	}
	t.Cleanup(counter.stop)
	return counter, true
}
