package natpmp_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// startWatch starts a gateway and watches it. The gateway repeats each announcement
// (RFC 6886, section 3.2.1), so a listener that starts late also receives it.
func startWatch(t *testing.T, config gatewaytest.Config) (*gatewaytest.Gateway, *natpmp.Backend, <-chan backends.Change) {
	t.Helper()
	gw := start(t, config)
	b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Announce: gw.AnnounceAddr(), FirstWait: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if _, err := b.ExternalAddr(t.Context()); err != nil {
		t.Fatal(err)
	}
	changes := make(chan backends.Change, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Watch(ctx, func(c backends.Change) { changes <- c }) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return gw, b, changes
}

func nextChange(t *testing.T, changes <-chan backends.Change) backends.Change {
	t.Helper()
	select {
	case c := <-changes:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no change reported")
		return backends.Change{}
	}
}

func TestWatchRestart(t *testing.T) {
	for name, form := range map[string]quirks.AnnounceForm{
		"NAT-PMP": quirks.AnnounceNATPMP, "PCP": quirks.AnnouncePCP,
	} {
		t.Run(name, func(t *testing.T) {
			gw, b, changes := startWatch(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceAs: form}})
			gw.Advance(time.Hour)
			if _, err := b.ExternalAddr(t.Context()); err != nil { // record an epoch of one hour
				t.Fatal(err)
			}
			gw.Restart(gatewaytest.RestartOptions{})
			if c := nextChange(t, changes); c.Kind != backends.Restarted || c.External != gw.External() {
				t.Errorf("reported %+v, want a restart", c)
			}
		})
	}
}

// TestWatchAnnouncement checks that an announcement of a gateway whose epoch
// continues, as it does if it counts the uptime, is reported as Announced.
func TestWatchAnnouncement(t *testing.T) {
	gw, _, changes := startWatch(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceAs: quirks.AnnouncePCP}})
	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: true})
	if c := nextChange(t, changes); c.Kind != backends.Announced {
		t.Errorf("reported %+v, want an announcement", c)
	}
}

func TestWatchAddress(t *testing.T) {
	gw, _, changes := startWatch(t, gatewaytest.Config{})
	newAddr := netip.MustParseAddr("45.45.45.99")
	gw.SetExternal(newAddr)
	if c := nextChange(t, changes); c.Kind != backends.AddressChanged || c.External != newAddr {
		t.Errorf("reported %+v, want address %v", c, newAddr)
	}
}

// TestWatchAddressAndEpoch checks that another address is reported as such even if the
// epoch goes back at the same time.
func TestWatchAddressAndEpoch(t *testing.T) {
	gw, b, changes := startWatch(t, gatewaytest.Config{ManualClock: true})
	gw.Advance(time.Hour)
	if _, err := b.ExternalAddr(t.Context()); err != nil { // record an epoch of one hour
		t.Fatal(err)
	}
	newAddr := netip.MustParseAddr("45.45.45.99")
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	gw.SetExternal(newAddr)
	if c := nextChange(t, changes); c.Kind != backends.AddressChanged || c.External != newAddr {
		t.Errorf("reported %+v, want address %v", c, newAddr)
	}
}

// TestWatchEpoch checks that the epoch in any response shows a restart, without an
// announcement. The gateway restarts again until Watch, which starts in parallel,
// receives a response after a restart.
func TestWatchEpoch(t *testing.T) {
	gw, b, changes := startWatch(t, gatewaytest.Config{})
	timeout := time.After(30 * time.Second)
	for {
		gw.Advance(time.Hour)
		if _, err := b.ExternalAddr(t.Context()); err != nil {
			t.Fatal(err)
		}
		gw.Restart(gatewaytest.RestartOptions{Silent: true})
		if _, err := b.ExternalAddr(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case c := <-changes:
			if c.Kind != backends.Restarted {
				t.Errorf("reported %+v, want a restart", c)
			}
			return
		case <-time.After(100 * time.Millisecond):
		case <-timeout:
			t.Fatal("no change reported")
		}
	}
}
