package upnp_test

import (
	"errors"
	"net/netip"
	"regexp"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var nextHost atomic.Uint32

// host is a loopback address of the test's own where the system has more than
// one: a device is asked one thing at a time, and its address is what it is
// known by.
func host() netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	n := nextHost.Add(1)
	return netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})
}

// needHosts skips where all devices would be at one address.
func needHosts(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("one loopback address only: there is no other host")
	}
}

// start starts a gateway whose clock stands still.
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

// newBackend is a backend that looks for a gateway as the config says, by default the
// one that is given.
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

// open starts a gateway and a backend that finds it by a search.
func startBackend(t *testing.T, router quirks.UPnP) (*gatewaytest.Gateway, *upnp.Backend) {
	t.Helper()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
	return gw, newBackend(t, gw, upnp.Config{})
}

// request is a request for a TCP port, for an hour.
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

// mustMap maps, and checks that the gateway has it.
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

// checkEntry checks that a mapping is in the table, for no less than it says.
func checkEntry(t *testing.T, gw *gatewaytest.Gateway, m backends.Mapping) {
	t.Helper()
	e, is := entry(gw, m.External.Port())
	switch {
	case !is || e.Internal != m.Internal:
		t.Fatalf("the gateway has %+v, want %v at port %d", gw.Table(), m.Internal, m.External.Port())
	case e.Remaining < m.Lifetime:
		t.Errorf("the gateway has it for %v, granted %v", e.Remaining, m.Lifetime)
	}
}

// entry is the entry for an external TCP port.
func entry(gw *gatewaytest.Gateway, port uint16) (gatewaytest.Entry, bool) {
	for _, e := range gw.Table() {
		if e.External.Port() == port && e.Protocol == backends.TCP {
			return e, true
		}
	}
	return gatewaytest.Entry{}, false
}

// occupy gives a port to another host.
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

// count is how often an action was asked for.
func count(gw *gatewaytest.Gateway, action string) int { return len(actionCalls(gw, action)) }

var argument = regexp.MustCompile(`<(\w+)>([^<]*)</`)

// actionCalls are the arguments of the calls of an action.
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

// injectFault has the gateway answer an action with a fault.
func injectFault(gw *gatewaytest.Gateway, action string, code int) (remove func()) {
	return gw.Inject(gatewaytest.Fault{Match: isAction(action), Result: code})
}

func isAction(action string) func(gatewaytest.Request) bool {
	return func(q gatewaytest.Request) bool { return q.Action == action }
}

// wantError checks the kind of an error and, unless it is 0, its code.
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
