package gethnat_test

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// natInterface has the methods of go-ethereum's nat.Interface, as of version 1.17.
type natInterface interface {
	AddMapping(protocol string, extport, intport int, name string, lifetime time.Duration) (uint16, error)
	DeleteMapping(protocol string, extport, intport int) error
	ExternalIP() (net.IP, error)
	String() string
}

var (
	_ natInterface           = (*gethnat.NAT)(nil)
	_ encoding.TextMarshaler = (*gethnat.NAT)(nil)
)

// These are the arguments that go-ethereum passes to AddMapping.
const (
	port     = 30303
	name     = "ethereum p2p"
	lifetime = 10 * time.Minute
)

// testTimeout bounds the wait for an expected event.
const testTimeout = 20 * time.Second

// startGateway starts a test gateway and a Forwarder that uses it.
func startGateway(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	unused := netip.MustParseAddrPort("127.0.0.1:0")
	config.Gateway, config.Test.SSDP, config.Test.Announce, config.Test.Notify = gw.Addr(), gw.SSDP(), unused, unused
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// addMapping calls AddMapping as go-ethereum does, and fails the test on an error.
func addMapping(t *testing.T, n *gethnat.NAT, protocol string, extport int) uint16 {
	t.Helper()
	got, err := n.AddMapping(protocol, extport, port, name, lifetime)
	if err != nil {
		t.Fatalf("AddMapping: %v", err)
	}
	return got
}

// mapRequests returns the number of requests so far that create or delete a mapping of a
// protocol.
func mapRequests(gw *gatewaytest.Gateway, p backends.Protocol) int {
	n := 0
	for _, r := range gw.Requests() {
		if (r.Op == "map" || r.Op == "unmap") && r.Protocol == p {
			n++
		}
	}
	return n
}

// wantExternalIP checks that ExternalIP returns the gateway's external address.
func wantExternalIP(t *testing.T, n *gethnat.NAT, gw *gatewaytest.Gateway) {
	t.Helper()
	ip, err := n.ExternalIP()
	if want := net.IP(gw.External().AsSlice()); err != nil || !ip.Equal(want) {
		t.Errorf("ExternalIP: %v, %v, want %v", ip, err, want)
	}
}

// occupyPort maps the port to another host. The mapping survives a restart.
func occupyPort(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: p, External: netip.AddrPortFrom(gw.External(), port), Internal: netip.MustParseAddrPort("127.0.0.9:80"), Static: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// refuseMappings makes the gateway refuse map requests until the returned function is called.
func refuseMappings(gw *gatewaytest.Gateway) func() {
	return gw.Inject(gatewaytest.Fault{
		Match:  func(r gatewaytest.Request) bool { return r.Op == "map" },
		Result: int(natpmp.NotAuthorized),
	})
}

// eventLog records the events of a Forwarder.
type eventLog chan forward.Event

func newEventLog() eventLog { return make(eventLog, 100) }

func (l eventLog) record(e forward.Event) { l <- e }

// next returns the next event of a kind, or false if there is none within a second.
func (l eventLog) next(kind forward.EventKind) (forward.Event, bool) {
	timeout := time.After(testTimeout / 20)
	for {
		select {
		case e := <-l:
			if e.Kind == kind {
				return e, true
			}
		case <-timeout:
			return forward.Event{}, false
		}
	}
}

// pollUntilEvent polls the external address, as a server does, until the Forwarder detects a
// restart of the gateway and reports an event of this kind. If there is no event, it restarts
// the gateway again: the first poll may be too early, because the Forwarder begins to detect
// restarts when it has its first mapping.
func pollUntilEvent(t *testing.T, gw *gatewaytest.Gateway, n *gethnat.NAT, events eventLog, kind forward.EventKind) forward.Event {
	t.Helper()
	for range 20 {
		wantExternalIP(t, n, gw)
		if e, ok := events.next(kind); ok {
			return e
		}
		gw.Advance(time.Hour)
		wantExternalIP(t, n, gw)
		gw.Restart(gatewaytest.RestartOptions{Silent: true})
	}
	t.Fatalf("no event %v", kind)
	return forward.Event{}
}

// wantClosed checks that calls fail with ErrClosed, and that deletions succeed.
func wantClosed(t *testing.T, n *gethnat.NAT) {
	t.Helper()
	if got, err := n.AddMapping("TCP", 0, port, name, lifetime); got != 0 || !errors.Is(err, forward.ErrClosed) {
		t.Errorf("AddMapping: %d, %v, want ErrClosed", got, err)
	}
	if ip, err := n.ExternalIP(); ip != nil || !errors.Is(err, forward.ErrClosed) {
		t.Errorf("ExternalIP: %v, %v, want ErrClosed", ip, err)
	}
	for _, protocol := range []string{"TCP", "UDP"} {
		if err := n.DeleteMapping(protocol, port, port); err != nil {
			t.Errorf("DeleteMapping %s: %v", protocol, err)
		}
	}
}

// TestServerCalls makes the calls of a go-ethereum server from its start to its stop, with
// each protocol.
func TestServerCalls(t *testing.T) {
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			gw, f := startGateway(t, forward.Config{Protocols: []string{backend}}, gatewaytest.Config{})
			n := gethnat.New(f)
			wantExternalIP(t, n, gw)
			for _, protocol := range []string{"TCP", "UDP"} {
				if got := addMapping(t, n, protocol, 0); got != port {
					t.Errorf("%s: external port %d, want %d", protocol, got, port)
				}
			}
			table := gw.Table()
			if len(table) != 2 {
				t.Fatalf("the gateway has %v, want two entries", table)
			}
			for i, p := range []backends.Protocol{backends.TCP, backends.UDP} {
				e := table[i]
				if e.Protocol != p || e.External.Port() != port || e.Internal.Port() != port || e.Remaining > lifetime || e.Remaining < lifetime-time.Minute {
					t.Errorf("entry %+v", e)
				}
				if backend == "upnp" && e.Description != name {
					t.Errorf("description %q, want %q", e.Description, name)
				}
			}
			requests := mapRequests(gw, backends.TCP) + mapRequests(gw, backends.UDP)
			for range 3 { // every eight minutes
				wantExternalIP(t, n, gw)
				if tcp, udp := addMapping(t, n, "TCP", port), addMapping(t, n, "UDP", port); tcp != port || udp != port {
					t.Errorf("external ports %d and %d, want %d", tcp, udp, port)
				}
			}
			if requestsAfter := mapRequests(gw, backends.TCP) + mapRequests(gw, backends.UDP); requestsAfter != requests {
				t.Errorf("%d requests for mappings that are active already", requestsAfter-requests)
			}
			if s := n.String(); !strings.HasPrefix(s, "goforward("+backend+" 127.0.0.1:") {
				t.Errorf("String: %q", s)
			}
			for _, protocol := range []string{"TCP", "UDP", "UDP"} { // the last one is deleted already
				if err := n.DeleteMapping(protocol, port, port); err != nil {
					t.Errorf("DeleteMapping %s: %v", protocol, err)
				}
			}
			if table := gw.Table(); len(table) != 0 {
				t.Errorf("the gateway has %v, want no mappings", table)
			}
		})
	}
}

// TestExternalIPPoll checks that a poll of the external address is one request, and returns a
// changed address.
func TestExternalIPPoll(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	wantExternalIP(t, n, gw)
	addMapping(t, n, "TCP", 0)
	gw.ResetStats()
	wantExternalIP(t, n, gw)
	if requests := gw.Stats().Requests["natpmp external address"]; requests != 1 {
		t.Errorf("%d requests for one poll, want 1", requests)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.77")) // the Forwarder confirms the change by another request
	wantExternalIP(t, n, gw)
}

// TestExternalIPPrivate checks that ExternalIP fails if the external address is private or
// shared, because then it is behind another NAT.
func TestExternalIPPrivate(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	for _, addr := range []string{"10.66.66.1", "192.168.1.2", "100.64.0.1"} {
		gw.SetExternal(netip.MustParseAddr(addr))
		if ip, err := n.ExternalIP(); !errors.Is(err, backends.ErrPrivateWAN) || ip != nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("ExternalIP: %v, %v, want ErrPrivateWAN with %s", ip, err, addr)
		}
	}
}

// TestSuggestedPort checks that AddMapping returns the suggested port if it is free, and
// another one otherwise. A later call with another suggestion returns the same port.
func TestSuggestedPort(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	if got := addMapping(t, n, "tcp", 40000); got != 40000 {
		t.Errorf("external port %d, want 40000", got)
	}
	occupyPort(t, gw, backends.UDP)
	got := addMapping(t, n, "Udp", 0)
	if got == port || got == 0 {
		t.Errorf("external port %d, but another host has port %d", got, port)
	}
	if again := addMapping(t, n, "UDP", int(got)); again != got {
		t.Errorf("external port %d, then %d", got, again)
	}
	if again := addMapping(t, n, "UDP", 40001); again != got {
		t.Errorf("external port %d, then %d after another suggestion", got, again)
	}
	if err := n.DeleteMapping("UDP", 40001, port); err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 2 || table[0].External.Port() != 40000 || table[1].Service != "admin" {
		t.Errorf("the gateway has %+v", table)
	}
}

// TestInvalidArguments checks that invalid arguments fail with ErrInvalid and send nothing.
func TestInvalidArguments(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	for _, c := range []struct {
		protocol         string
		extport, intport int
	}{
		{"", 0, port},
		{"SCTP", 0, port},
		{"6", 0, port},
		{"tcp4", 0, port},
		{"TCP ", 0, port},
		{"TCP", 0, 0},
		{"TCP", 0, -1},
		{"TCP", 0, 65536},
		{"TCP", 0, 65536 + port},
		{"UDP", -1, port},
		{"UDP", 65536, port},
	} {
		if got, err := n.AddMapping(c.protocol, c.extport, c.intport, name, lifetime); got != 0 || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("AddMapping %+v: %d, %v, want ErrInvalid", c, got, err)
		}
		if err := n.DeleteMapping(c.protocol, c.extport, c.intport); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("DeleteMapping %+v: %v, want ErrInvalid", c, err)
		}
	}
	if got, err := n.AddMapping("TCP", 0, port, name, -time.Second); got != 0 || !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("AddMapping with a negative lifetime: %d, %v, want ErrInvalid", got, err)
	}
	if requests := len(gw.Requests()); requests != 0 {
		t.Errorf("%d requests were sent", requests)
	}
}

// TestDefaultLifetime checks that a lifetime of 0 is the lifetime of the Forwarder's Config.
func TestDefaultLifetime(t *testing.T) {
	gw, f := startGateway(t, forward.Config{Lifetime: 30 * time.Minute}, gatewaytest.Config{})
	n := gethnat.New(f)
	if _, err := n.AddMapping("TCP", 0, port, "", 0); err != nil {
		t.Fatal(err)
	}
	if table := gw.Table(); len(table) != 1 || table[0].Remaining <= 29*time.Minute || table[0].Remaining > 30*time.Minute {
		t.Errorf("the gateway has %+v", table)
	}
	if got, err := n.AddMapping("TCP", 0, port, "", -1); got != 0 || !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("AddMapping of an existing mapping with a negative lifetime: %d, %v, want ErrInvalid", got, err)
	}
}

// TestMarshalTextAndString checks that MarshalText returns a value that go-ethereum can read.
func TestMarshalTextAndString(t *testing.T) {
	n := gethnat.New(nil) // sends nothing before the first request
	if text, err := n.MarshalText(); err != nil || string(text) != "any" {
		t.Errorf("MarshalText: %q, %v", text, err)
	}
	if s := fmt.Sprint(n); s != "goforward" {
		t.Errorf("String: %q, want goforward", s)
	}
}

// TestPortChangesAfterRestart restarts the gateway without an announcement, and maps the port
// to another host. The next poll of the external address detects the restart. The next
// AddMapping must return the new port.
func TestPortChangesAfterRestart(t *testing.T) {
	events := newEventLog()
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: events.record}, gatewaytest.Config{})
	gw.Advance(time.Hour) // so that the epoch shows the restart
	n := gethnat.New(f)
	if got := addMapping(t, n, "TCP", 0); got != port {
		t.Fatalf("external port %d, want %d", got, port)
	}
	gw.Down()
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	occupyPort(t, gw, backends.TCP)
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	restored := pollUntilEvent(t, gw, n, events, forward.EventRestored).Grants[0].External.Port()
	if restored == port || restored == 0 {
		t.Fatalf("restored at port %d, but another host has port %d", restored, port)
	}
	if got := addMapping(t, n, "TCP", port); got != restored {
		t.Errorf("external port %d, want %d", got, restored)
	}
	if err := n.DeleteMapping("TCP", port, port); err != nil { // with the old external port
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 1 || table[0].Service != "admin" {
		t.Errorf("the gateway has %+v, want only the mapping of the other host", table)
	}
}

// TestAddMappingRestoresLostMapping checks that AddMapping requests a lost mapping at once. It
// does not wait for the next retry in the background.
func TestAddMappingRestoresLostMapping(t *testing.T) {
	events := newEventLog()
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: events.record}, gatewaytest.Config{})
	gw.Advance(time.Hour)
	n := gethnat.New(f)
	addMapping(t, n, "TCP", 0)
	stopRefusing := refuseMappings(gw)
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	pollUntilEvent(t, gw, n, events, forward.EventLost)
	gw.ResetStats()
	if got, err := n.AddMapping("TCP", port, port, name, lifetime); got != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("AddMapping: %d, %v, want ErrNotAuthorized", got, err)
	}
	if mapRequests(gw, backends.TCP) == 0 {
		t.Error("AddMapping sent no request to the gateway")
	}
	stopRefusing()
	if got := addMapping(t, n, "TCP", port); got != port {
		t.Errorf("external port %d, want %d", got, port)
	}
	if table := gw.Table(); len(table) != 1 || table[0].External.Port() != port {
		t.Errorf("the gateway has %+v", table)
	}
}

// TestRefusedNotHeld checks that the NAT holds no mapping after a refusal. Otherwise the
// Forwarder would retry after the server has stopped.
func TestRefusedNotHeld(t *testing.T) {
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	stopRefusing := refuseMappings(gw)
	if got, err := n.AddMapping("UDP", 0, port, name, lifetime); got != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("AddMapping: %d, %v, want ErrNotAuthorized", got, err)
	}
	entries, err := f.Mappings(t.Context())
	if err != nil || len(entries) != 0 || n.String() != "goforward" {
		t.Errorf("the Forwarder has %v, the NAT is %v, %v; want no mapping", entries, n, err)
	}
	if err := n.DeleteMapping("UDP", port, port); err != nil {
		t.Error(err)
	}
	stopRefusing()
	if got := addMapping(t, n, "UDP", 0); got != port {
		t.Errorf("external port %d, want %d", got, port)
	}
}

// TestSilentGateway checks that each call ends within the RequestTimeout if the gateway does
// not reply.
func TestSilentGateway(t *testing.T) {
	gw, f := startGateway(t, forward.Config{RequestTimeout: 2 * time.Second, Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	addMapping(t, n, "TCP", 0)
	gw.Inject(gatewaytest.Fault{Drop: true})
	if ip, err := n.ExternalIP(); !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExternalIP: %v, %v, want ErrNoReply", ip, err)
	}
	if got, err := n.AddMapping("UDP", 0, port, name, lifetime); !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AddMapping: %d, %v, want ErrNoReply", got, err)
	}
	if got := addMapping(t, n, "TCP", port); got != port { // the mapping counts as active until it expires
		t.Errorf("external port %d, want %d", got, port)
	}
	if err := n.DeleteMapping("TCP", port, port); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("DeleteMapping: %v, want ErrNoReply", err)
	}
	if err := n.DeleteMapping("TCP", port, port); err != nil {
		t.Errorf("second DeleteMapping: %v", err)
	}
}

// TestDisabledByForwarder checks that AddMapping creates a new mapping after the program
// disabled the first one through the Forwarder.
func TestDisabledByForwarder(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	addMapping(t, n, "TCP", 0)
	if _, err := f.DisableAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(gw.Table()) != 0 {
		t.Fatalf("the gateway has %v", gw.Table())
	}
	if got := addMapping(t, n, "TCP", port); got != port || len(gw.Table()) != 1 {
		t.Errorf("external port %d, the gateway has %v, want one mapping", got, gw.Table())
	}
}

// TestConcurrentAddMapping checks that concurrent calls for one port share one request and
// return the same port.
func TestConcurrentAddMapping(t *testing.T) {
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	var wg sync.WaitGroup
	for range 16 {
		for _, protocol := range []string{"TCP", "UDP"} {
			wg.Go(func() {
				if got, err := n.AddMapping(protocol, 0, port, name, lifetime); err != nil || got != port {
					t.Errorf("AddMapping %s: %d, %v", protocol, got, err)
				}
			})
		}
	}
	wg.Wait()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if requests := mapRequests(gw, p); requests != 1 {
			t.Errorf("%d map requests for %v, want 1", requests, p)
		}
	}
}

// TestConcurrentCalls makes concurrent calls of all methods. Each goroutine deletes the
// mapping at the end, so that none remains.
func TestConcurrentCalls(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := n.AddMapping("TCP", 0, port, name, lifetime); err != nil {
					t.Errorf("AddMapping: %v", err)
				}
				_ = n.String()
				if err := n.DeleteMapping("TCP", port, port); err != nil {
					t.Errorf("DeleteMapping: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 5 {
				if _, err := n.ExternalIP(); err != nil {
					t.Errorf("ExternalIP: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want no mappings", table)
	}
}

// TestClose checks that Close deletes the mappings of the NAT and no others. The Forwarder
// stays open.
func TestClose(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	n := gethnat.New(f)
	addMapping(t, n, "TCP", 0)
	addMapping(t, n, "UDP", 0)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if table := gw.Table(); len(table) != 1 || table[0].External.Port() != 8080 {
		t.Errorf("the gateway has %v, want port 8080", table)
	}
	wantClosed(t, n)
	if err := f.Disable(t.Context()); err != nil {
		t.Errorf("Disable after the NAT was closed: %v", err)
	}
}

// TestCloseOwnedForwarder checks Close if New created the Forwarder.
func TestCloseOwnedForwarder(t *testing.T) {
	n := gethnat.New(nil)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	wantClosed(t, n)
}

// TestForwarderClosed checks the NAT after the program closed the Forwarder.
func TestForwarderClosed(t *testing.T) {
	gw, f := startGateway(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	addMapping(t, n, "TCP", 0)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want no mappings", table)
	}
	wantClosed(t, n)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseDuringAddMapping checks that a mapping that is granted after Close is deleted.
func TestCloseDuringAddMapping(t *testing.T) {
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	isMap := func(r gatewaytest.Request) bool { return r.Op == "map" }
	release := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: release})
	done := make(chan error)
	go func() {
		_, err := n.AddMapping("TCP", 0, port, name, lifetime)
		done <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	close(release)
	if err := <-done; !errors.Is(err, forward.ErrClosed) {
		t.Errorf("AddMapping: %v, want ErrClosed", err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want no mappings", table)
	}
}

// TestDeleteDuringAddMapping checks that DeleteMapping deletes a mapping whose request is in
// flight.
func TestDeleteDuringAddMapping(t *testing.T) {
	gw, f := startGateway(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	isMap := func(r gatewaytest.Request) bool { return r.Op == "map" }
	release := make(chan struct{})
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: release})
	added, started, deleted := make(chan error), make(chan struct{}), make(chan error)
	go func() {
		_, err := n.AddMapping("TCP", 0, port, name, lifetime)
		added <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Error(err)
	}
	go func() {
		close(started)
		deleted <- n.DeleteMapping("TCP", port, port)
	}()
	<-started
	close(release)
	if err := <-added; err != nil {
		t.Error(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want no mappings", table)
	}
}
