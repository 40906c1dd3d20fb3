package upnp_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// watched is a gateway whose notifications a watching backend receives.
type watched struct {
	*gatewaytest.Gateway
	backend *upnp.Backend
	notify  netip.AddrPort
	changes chan backends.Change
	stop    context.CancelCauseFunc
	ended   chan error
}

var errStopped = errors.New("the test is done")

// watch starts a gateway with an uptime of one hour, maps port 8080 to 9000, and
// watches it until the test ends.
func watch(t *testing.T, config gatewaytest.Config) *watched {
	t.Helper()
	return watchAs(t, config, upnp.Config{}, 20*time.Millisecond)
}

// watchAs does the same with the given config, and with the given interval between
// queries.
func watchAs(t *testing.T, config gatewaytest.Config, backendConfig upnp.Config, interval time.Duration) *watched {
	t.Helper()
	w := &watched{changes: make(chan backends.Change, 100), ended: make(chan error, 1)}
	w.Gateway = start(t, config)
	w.notify = w.NotifyAddr()
	w.Advance(time.Hour)
	backendConfig.Notify = w.notify
	w.backend = newBackend(t, w.Gateway, backendConfig).SetQueryInterval(interval)
	mustMap(t, w.Gateway, w.backend, request(8080, 9000))
	ctx, stop := context.WithCancelCause(t.Context())
	w.stop = stop
	go func() {
		w.ended <- w.backend.Watch(ctx, func(c backends.Change) { w.changes <- c })
		close(w.ended)
	}()
	t.Cleanup(func() {
		stop(errStopped)
		for range w.ended {
		}
	})
	w.awaitListening(t)
	return w
}

// awaitListening announces the gateway until this causes a query. All earlier
// notifications have then been received.
func (w *watched) awaitListening(t *testing.T) {
	t.Helper()
	before := count(w.Gateway, "GetStatusInfo")
	for range 200 {
		w.Announce()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := w.AwaitRequests(ctx, before+1, isAction("GetStatusInfo"))
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatal("no notification caused a query")
}

// searches returns the number of searches that led to a description. The requests of a search
// are no measure: the gateway may process some of them after the search has ended.
func (w *watched) searches() int { return w.Stats().Requests["upnp describe"] }

// expectNoChange checks that the notifications received so far caused no change.
func (w *watched) expectNoChange(t *testing.T) {
	t.Helper()
	w.awaitListening(t)
	w.awaitListening(t) // its query starts after the first hint was processed
	select {
	case c := <-w.changes:
		t.Errorf("unexpected change %+v", c)
	default:
	}
}

func (w *watched) nextChange(t *testing.T) backends.Change {
	t.Helper()
	select {
	case c := <-w.changes:
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("no change was reported")
		return backends.Change{}
	}
}

// TestWatch checks that each event of a gateway is reported once, with its kind.
func TestWatch(t *testing.T) {
	t.Parallel()
	stuck := quirks.Search{BootIDStuck: true}
	for name, tt := range map[string]struct {
		router  quirks.UPnP
		trigger func(*watched)
		want    backends.ChangeKind
	}{
		"restart": {quirks.UPnP{}, func(w *watched) { w.Restart(gatewaytest.RestartOptions{}) }, backends.Restarted},
		"restart, uptime continues": {
			quirks.UPnP{}, func(w *watched) { w.Restart(gatewaytest.RestartOptions{KeepEpoch: true}) }, backends.Restarted,
		},
		"restart, same BOOTID": {
			quirks.UPnP{Search: stuck}, func(w *watched) { w.Restart(gatewaytest.RestartOptions{}) }, backends.Restarted,
		},
		"restart on another port": {
			quirks.UPnP{MovePort: true, Search: stuck},
			func(w *watched) { w.Restart(gatewaytest.RestartOptions{KeepEpoch: true}) }, backends.Announced,
		},
		"another address": {
			quirks.UPnP{}, func(w *watched) { w.SetExternal(netip.MustParseAddr("45.45.45.2")) }, backends.AddressChanged,
		},
		"another address, with an update": {
			quirks.UPnP{Search: quirks.Search{Update: true}},
			func(w *watched) { w.SetExternal(netip.MustParseAddr("45.45.45.2")) }, backends.AddressChanged,
		},
		"byebye": {quirks.UPnP{}, func(w *watched) { w.UPnP().Byebye() }, backends.Announced},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := watch(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: tt.router}})
			tt.trigger(w)
			if c := w.nextChange(t); c.Kind != tt.want || c.External != w.External() || c.Reason == "" {
				t.Errorf("change %+v, want %v with %v", c, tt.want, w.External())
			}
			if name != "byebye" { // one for each device: there can be two
				w.expectNoChange(t)
			}
		})
	}
}

// TestWatchAnnouncement checks that a NAT-PMP or PCP announcement of the gateway causes
// a query, which shows another external address, and otherwise no change.
func TestWatchAnnouncement(t *testing.T) {
	for _, form := range []quirks.AnnounceForm{quirks.AnnounceNATPMP, quirks.AnnouncePCP} {
		gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceAs: form}})
		b := newBackend(t, gw, upnp.Config{Announce: gw.AnnounceAddr()}).SetQueryInterval(20 * time.Millisecond)
		mustMap(t, gw, b, request(8080, 9000))
		changes, ended := make(chan backends.Change, 100), make(chan error, 1)
		go func() { ended <- b.Watch(t.Context(), func(c backends.Change) { changes <- c }) }()
		for before := count(gw, "GetStatusInfo"); count(gw, "GetStatusInfo") == before; time.Sleep(time.Millisecond) {
			gw.Announce()
		}
		gw.SetExternal(netip.MustParseAddr("45.45.45.2"))
		if c := <-changes; c.Kind != backends.AddressChanged || c.External != gw.External() {
			t.Errorf("change %+v, want %v", c, gw.External())
		}
		_ = b.Close()
		<-ended
		if len(changes) > 0 {
			t.Errorf("another change %+v", <-changes)
		}
	}
}

// TestWatchByebye checks a gateway that sends ssdp:byebye, is not found by the
// search that follows, and returns. The change is reported after its return.
func TestWatchByebye(t *testing.T) {
	t.Parallel()
	unconfirmed := make(logRecords, 1000)
	w := watchAs(t, gatewaytest.Config{}, upnp.Config{Wait: searchWait, Logger: slog.New(unconfirmed)}, 20*time.Millisecond)
	remove := w.Inject(gatewaytest.Fault{Drop: true}) // the gateway is shutting down
	w.sendNotification(t, w.Addr().Addr(), byebye, w.UPnP().UDN(), 1)
	for !notConfirmed(<-unconfirmed, "the gateway sent ssdp:byebye") {
	}
	remove()
	w.Restart(gatewaytest.RestartOptions{})
	if c := w.nextChange(t); c.Kind != backends.Restarted {
		t.Errorf("change %+v", c)
	}
}

// notConfirmed reports whether a record is the message that a hint with this
// reason was not confirmed.
func notConfirmed(r slog.Record, reason string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = found || r.Message == "upnp: change not confirmed" && a.Key == "hint" && a.Value.String() == reason
		return true
	})
	return found
}

// logRecords is a log handler that sends records to the channel, and drops them if
// it is full.
type logRecords chan slog.Record

func (l logRecords) Enabled(context.Context, slog.Level) bool { return true }
func (l logRecords) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logRecords) WithGroup(string) slog.Handler            { return l }

func (l logRecords) Handle(_ context.Context, r slog.Record) error {
	select {
	case l <- r:
	default:
	}
	return nil
}

// TestWatchLostEntry checks that a change is reported if a renewal finds that its
// entry is missing, although the gateway did not restart.
func TestWatchLostEntry(t *testing.T) {
	t.Parallel()
	w := watch(t, gatewaytest.Config{})
	m, err := w.backend.Map(t.Context(), request(8081, 9001))
	if err != nil {
		t.Fatal(err)
	}
	w.RemoveMapping(backends.TCP, 9001)
	mustRenew(t, w.Gateway, w.backend, m, request(8081, 9001))
	if c := w.nextChange(t); c.Kind != backends.Announced {
		t.Errorf("change %+v", c)
	}
	// An expired entry is not lost.
	m, err = w.backend.Renew(t.Context(), m, request(8081, 9001))
	if err != nil {
		t.Fatal(err)
	}
	w.RemoveMapping(backends.TCP, 9001)
	m.Granted = m.Granted.Add(-m.Lifetime)
	mustRenew(t, w.Gateway, w.backend, m, request(8081, 9001))
	w.expectNoChange(t)
}

// TestWatchSilentRestart checks that Watch reports a restart without
// notifications, after a call detected it.
func TestWatchSilentRestart(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{MovePort: true}) // without a notification address
	mustMap(t, gw, b, request(8080, 9000))
	changes, ended := make(chan backends.Change, 100), make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- b.Watch(ctx, func(c backends.Change) { changes <- c }) }()
	for b.Watchers() == 0 {
		runtime.Gosched()
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if _, err := b.ExternalAddr(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-changes:
		if c.Kind != backends.Restarted {
			t.Errorf("change %+v", c)
		}
	case <-time.After(10 * time.Second):
		t.Error("no change was reported")
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

// Notifications that tests send, with a UDN and a BOOTID.
const (
	byebye = "NT: upnp:rootdevice\r\nNTS: ssdp:byebye\r\nUSN: %s::upnp:rootdevice\r\nBOOTID.UPNP.ORG: %d\r\n"
	alive  = "NT: upnp:rootdevice\r\nNTS: ssdp:alive\r\nUSN: %s::upnp:rootdevice\r\nBOOTID.UPNP.ORG: %d\r\nLOCATION: http://127.0.0.1/\r\n"
	update = "NT: upnp:rootdevice\r\nNTS: ssdp:update\r\nUSN: %s::upnp:rootdevice\r\nBOOTID.UPNP.ORG: %d\r\nNEXTBOOTID.UPNP.ORG: 7\r\nLOCATION: http://127.0.0.1/\r\n"
)

// sendNotification sends a notification from an address.
func (w *watched) sendNotification(t *testing.T, from netip.Addr, form string, udn string, boot int) {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(w.notify))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("NOTIFY * HTTP/1.1\r\n" + fmt.Sprintf(form, udn, boot) + "\r\n"))
}

// TestWatchUpdate checks that a BOOTID change that ssdp:update announced does not
// count as a restart.
func TestWatchUpdate(t *testing.T) {
	t.Parallel()
	w := watch(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 1}}) // a repeated announcement would have the first BOOTID
	w.expectNoChange(t)
	searches := w.searches()
	gatewayAddr := w.Addr().Addr()
	notifyAndWait := func(form string, boot int) {
		before := count(w.Gateway, "GetStatusInfo")
		w.sendNotification(t, gatewayAddr, form, w.UPnP().UDN(), boot)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := w.AwaitRequests(ctx, before+1, isAction("GetStatusInfo")); err != nil {
			t.Fatal(err)
		}
	}
	notifyAndWait(update, 1)
	notifyAndWait(alive, 7)
	notifyAndWait(alive, 7)
	if n := w.searches(); n != searches || len(w.changes) != 0 {
		t.Errorf("%d more searches, %d changes", n-searches, len(w.changes))
	}
	notifyAndWait(alive, 8)
	if c := w.nextChange(t); c.Kind != backends.Restarted && c.Kind != backends.Announced {
		t.Errorf("change %+v", c)
	}
}

// TestWatchForged checks that notifications from other hosts cause no change.
func TestWatchForged(t *testing.T) {
	t.Parallel()
	w := watch(t, gatewaytest.Config{})
	searches := w.searches()
	gatewayAddr, otherHost := w.Addr().Addr(), host()
	if gatewayAddr != otherHost {
		w.sendNotification(t, otherHost, byebye, w.UPnP().UDN(), 1)
		w.sendNotification(t, otherHost, alive, w.UPnP().UDN(), 99)
	}
	w.sendNotification(t, gatewayAddr, byebye, "uuid:a-television", 1)
	w.sendNotification(t, gatewayAddr, alive, "uuid:a-television", 99)
	w.sendNotification(t, gatewayAddr, "%s%d", "garbage", 1)
	w.expectNoChange(t)
	if n := w.searches(); n != searches {
		t.Errorf("%d more searches", n-searches)
	}
}

// TestWatchRateLimit checks that many hints cause few queries.
func TestWatchRateLimit(t *testing.T) {
	t.Parallel()
	w := watchAs(t, gatewaytest.Config{}, upnp.Config{}, time.Hour) // the interval starts with the first notification
	before := count(w.Gateway, "GetStatusInfo")
	for range 200 {
		w.Announce()
		w.UPnP().Byebye()
	}
	mustMap(t, w.Gateway, w.backend, request(8081, 9001))
	if n := count(w.Gateway, "GetStatusInfo") - before; n != 0 {
		t.Errorf("%d queries", n)
	}
	w.stop(errStopped)
	if err := <-w.ended; !errors.Is(err, errStopped) {
		t.Errorf("Watch: %v", err)
	}
}

// TestWatchEnds checks that Watch ends with its context and with the backend, and
// that Close waits for it.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	w := watch(t, gatewaytest.Config{})
	w.stop(errStopped)
	if err := <-w.ended; !errors.Is(err, errStopped) {
		t.Errorf("Watch: %v", err)
	}
	w = watch(t, gatewaytest.Config{})
	if err := w.backend.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-w.ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Watch: %v", err)
		}
	case <-time.After(10 * time.Second): // only the result remains to be sent
		t.Error("Close did not wait for Watch")
	}
	if err := w.backend.Watch(t.Context(), func(backends.Change) {}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

// TestWatchWithoutListener checks that calls report changes if the notification
// address is in use.
func TestWatchWithoutListener(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	occupied, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	b := newBackend(t, gw, upnp.Config{Notify: occupied.LocalAddr().(*net.UDPAddr).AddrPort()})
	m := mustMap(t, gw, b, request(8080, 9000))
	changes, ended := make(chan backends.Change, 100), make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- b.Watch(ctx, func(c backends.Change) { changes <- c }) }()
	for notified := false; !notified; { // Watch may not have started
		gw.RemoveMapping(backends.TCP, 9000)
		m = mustRenew(t, gw, b, m, request(8080, 9000))
		select {
		case <-changes:
			notified = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}
