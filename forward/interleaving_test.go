package forward_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	. "github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func startGateway(t *testing.T, c gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

func newOn(t *testing.T, c Config) *Forwarder {
	if c.Gateway.Addr().Is4() && !c.Gateway.Addr().IsLoopback() {
		c.Test.SSDP = netip.MustParseAddrPort("127.0.0.1:9")
	}
	t.Helper()
	c.Test.Announce = netip.MustParseAddrPort("127.0.0.1:0")
	c.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0")
	f, err := New(&c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// within looks again and again, until it is so or the time is over.
func within(t *testing.T, d time.Duration, is func() bool) bool {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		if is() {
			return true
		}
	}
	return is()
}

func isMap(r gatewaytest.Request) bool   { return r.Op == "map" }
func isUnmap(r gatewaytest.Request) bool { return r.Op == "unmap" }

// A call that takes the new way before the watcher has told of it moves mappings all
// the same.
func TestMoveNoticedByACall(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newOn(t, Config{Protocols: []string{"natpmp"}})
	if err := f.LeadTo(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.LeadTo(gw2.Addr()); err != nil { // the route moves
		t.Fatal(err)
	}
	if _, err := f.ExternalIP(t.Context()); err != nil { // within the 100 ms that Watch gathers changes
		t.Fatal(err)
	}
	f.NetworkChanged() // Watch's call
	if !within(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 }) {
		t.Errorf("m is still at %v, next try in %v; gw1 %v gw2 %v", m.Gateway(), time.Until(m.Status().NextAttempt), len(gw1.Table()), len(gw2.Table()))
	}
}

// What an earlier run had open to everybody is not what is wished for one peer.
func TestTakeOverRemote(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := Config{Protocols: []string{"pcp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newOn(t, c)
	if _, err := f.Enable(t.Context(), TCP(8080)); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), ":8080") })
	f.Crash()
	f = newOn(t, c)
	m, err := f.Enable(t.Context(), TCP(8080), From(netip.MustParseAddrPort("45.45.45.9:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", m.Grants())
	for _, e := range gw.Table() {
		if len(e.Filters) == 0 {
			t.Errorf("From(45.45.45.9) was asked for, and the gateway admits everybody: %+v", e)
		}
	}
}

// Nor is what it had under another internal port.
func TestTakeOverSamePort(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:9"), External: netip.AddrPortFrom(gw.External(), 8080)}); err != nil {
		t.Fatal(err)
	}
	c := Config{Protocols: []string{"pcp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newOn(t, c)
	m, err := f.Enable(t.Context(), TCP(8080), SamePort())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(m.Grants())
	within(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), `"port":8080`) })
	f.Crash()
	f = newOn(t, c)
	if _, err := f.Enable(t.Context(), TCP(8080)); err != nil {
		t.Errorf("Enable(TCP(8080)): %v", err)
	}
}

// The route moves while Enable is under way.
func TestMoveDuringEnable(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newOn(t, Config{Protocols: []string{"natpmp"}})
	if err := f.LeadTo(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	gw1.Inject(gatewaytest.Fault{Match: isMap, Hold: hold})
	done := make(chan *Mapping)
	go func() {
		m, err := f.Enable(t.Context(), TCP(8080))
		if err != nil {
			t.Error(err)
		}
		done <- m
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw1.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Fatal(err)
	}
	if err := f.LeadTo(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	close(hold)
	m := <-done
	if !within(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 }) {
		t.Errorf("m is at %v, next try in %v; gw1 %d gw2 %d", m.Gateway(), time.Until(m.Status().NextAttempt), len(gw1.Table()), len(gw2.Table()))
	}
}

// A mapping of an earlier run is about to be deleted, because it was not enabled again,
// and is enabled at that moment.
func TestCleanAndEnable(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newOn(t, c)
	if _, err := f.Enable(t.Context(), TCP(8080)); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, func() bool { b, _ := os.ReadFile(c.StateFile); return strings.Contains(string(b), ":8080") })
	f.Crash()
	SetWantedWithin(t, 20*time.Millisecond)
	f = newOn(t, c)
	hold := make(chan struct{})
	n0 := countRequests(gw, isMap)
	gw.Inject(gatewaytest.Fault{Match: isMap, Hold: hold})
	var m *Mapping
	enabled := make(chan error, 1)
	go func() { var err error; m, err = f.Enable(t.Context(), TCP(8080)); enabled <- err }()
	if _, err := gw.AwaitRequests(t.Context(), n0+1, isMap); err != nil {
		t.Fatal(err)
	}
	<-time.After(100 * time.Millisecond) // it was to be enabled before
	close(hold)
	if err := <-enabled; err != nil {
		t.Fatal(err)
	}
	if _, err := f.Gateway(t.Context()); err != nil {
		t.Error(err)
	}
	<-time.After(100 * time.Millisecond)
	if len(gw.Table()) != 1 || countRequests(gw, isUnmap) != 0 {
		t.Errorf("m says %v, next try in %v; the gateway has %v", m, time.Until(m.Status().NextAttempt), gw.Table())
	}
}

// What Close had no time for is written down.
func TestCloseWithoutTime(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	c := Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), StateFile: filepath.Join(t.TempDir(), "state")}
	f := newOn(t, c)
	for p := range uint16(20) {
		if _, err := f.Enable(t.Context(), TCP(8080+p)); err != nil {
			t.Fatal(err)
		}
	}
	gw.Inject(gatewaytest.Fault{Drop: true})
	_ = f.Close()
	b, _ := os.ReadFile(c.StateFile)
	if n := strings.Count(string(b), `"Internal"`); n != len(gw.Table()) {
		t.Errorf("the gateway has %d, the state file %d", len(gw.Table()), n)
	}
}

// A Listener is closed while its Forwarder is.
func TestListenerCloseDuringShutdown(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newOn(t, Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr()})
	ln, err := f.Listen(t.Context(), "tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Mapping().Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	drop := gw.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true, Times: 1}) // one packet is lost
	defer drop()
	closed := make(chan error, 1)
	go func() { closed <- ln.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, 1, isUnmap); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = f.Shutdown(ctx)
	t.Logf("Shutdown %v after %v; Listener.Close: %v", err, time.Since(began), <-closed)
	if len(gw.Table()) != 0 {
		t.Errorf("the gateway still has %v", gw.Table())
	}
}

// What is enabled while the table is read is not foreign.
func TestForeignAndEnable(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newOn(t, Config{Gateway: gw.Addr(), Test: TestNetwork{SSDP: gw.SSDP()}})
	if err := gw.AddMapping(gatewaytest.Entry{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:7000"), External: netip.AddrPortFrom(gw.External(), 7000), Description: "goforward", Remaining: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Mappings(t.Context()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	entry := func(r gatewaytest.Request) bool { return strings.Contains(string(r.Raw), "GetGenericPortMappingEntry") }
	gw.Inject(gatewaytest.Fault{Match: entry, Hold: hold, Times: 1})
	n0 := countRequests(gw, entry)
	done := make(chan struct{})
	go func() {
		n, err := f.DisableAll(context.Background(), Foreign(), TCP(0))
		t.Logf("DisableAll: %d, %v", n, err)
		close(done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, n0+1, entry); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	<-done
	if len(gw.Table()) != 1 {
		t.Errorf("m says %v by %s, next try in %v; the gateway has %v", m, m.Backend(), time.Until(m.Status().NextAttempt), gw.Table())
	}
}

// Callers at the same time share a probe, also one that fails.
func TestProbeShared(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true})
	f := newOn(t, Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), DiscoveryTimeout: 500 * time.Millisecond, RequestTimeout: 20 * time.Second})
	for i := range uint16(8) {
		if _, err := f.Enable(t.Context(), TCP(9000+i), Background()); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(100 * time.Millisecond)
	began := time.Now()
	_, err := f.Gateway(t.Context())
	t.Logf("with 8 in the background: %v", time.Since(began))
	if time.Since(began) > 4*time.Second { // one after another, nine probes take four and a half
		t.Errorf("Probe took %v of a Wait of 500ms: %v", time.Since(began), err)
	}
	var wg sync.WaitGroup
	_ = context.Background
	_ = netip.Addr{}
	wg.Wait()
}

func countRequests(gw *gatewaytest.Gateway, is func(gatewaytest.Request) bool) (n int) {
	for _, r := range gw.Requests() {
		if is(r) {
			n++
		}
	}
	return n
}

// A Listener is closed while its mapping is asked for: what the gateway grants is
// taken away.
func TestCloseInFlight(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newOn(t, Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr()})
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

// The watcher tells that the route has moved, and the mapping with it.
func TestMoveNoticed(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newOn(t, Config{Protocols: []string{"natpmp"}})
	if err := f.LeadTo(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if err := f.LeadTo(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	if !within(t, 20*time.Second, func() bool { return len(gw1.Table()) == 0 && len(gw2.Table()) == 1 }) {
		t.Errorf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
}

// What could not be deleted at a gateway that is no longer on the default route is not
// requested there, since another gateway may be in its place. When the route is back, it
// is taken over.
func TestDeletionElsewhere(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newOn(t, Config{Protocols: []string{"natpmp"}})
	if err := f.LeadTo(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), TCP(8080)); err != nil {
		t.Fatal(err)
	}
	lossy := gw1.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true})
	if err := f.LeadTo(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	left := func() bool { return f.Routes() == 1 } // the owner of the first gateway has ended
	if !within(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 && left() }) {
		t.Fatalf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
	<-time.After(2 * LeaveTime)
	asked := countRequests(gw1, isUnmap)
	<-time.After(2 * time.Second)
	if n := countRequests(gw1, isUnmap); n != asked {
		t.Errorf("%d requests went to a gateway that is not on the default route", n-asked)
	}
	if err := f.LeadTo(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	if !within(t, 20*time.Second, func() bool { return len(gw2.Table()) == 0 }) {
		t.Fatalf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
	lossy()
	if err := f.Shutdown(t.Context()); err != nil || len(gw1.Table()) != 0 {
		t.Errorf("Shutdown: %v; the first gateway has %v", err, gw1.Table())
	}
}
