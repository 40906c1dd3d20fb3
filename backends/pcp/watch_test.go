package pcp_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
)

// watch follows a gateway. One that announces in PCP's form does so at an
// address of the test's, several times, so that a listener that starts late
// hears it too; any other does not announce at all.
func watch(t *testing.T, config gatewaytest.Config) (*gatewaytest.Gateway, *pcp.Backend, <-chan backends.Change) {
	t.Helper()
	free, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	announce := netip.MustParseAddrPort(free.LocalAddr().String())
	_ = free.Close()
	if config.AnnounceAs == gatewaytest.AnnouncePCP {
		config.Announce = announce
	}
	gw := start(t, config)
	b := open(t, pcp.Config{Gateway: gw.Addr(), Announce: announce})
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

func next(t *testing.T, changes <-chan backends.Change) backends.Change {
	t.Helper()
	select {
	case c := <-changes:
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no change noticed")
		return backends.Change{}
	}
}

func TestWatchRestart(t *testing.T) {
	gw, b, changes := watch(t, gatewaytest.Config{ManualClock: true, AnnounceAs: gatewaytest.AnnouncePCP})
	gw.Advance(time.Hour)
	if err := b.Probe(t.Context()); err != nil { // see the epoch at an hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	if c := next(t, changes); c.Kind != backends.Restarted {
		t.Errorf("noticed %+v, want a restart", c)
	}
}

func TestWatchAnnouncement(t *testing.T) {
	gw, _, changes := watch(t, gatewaytest.Config{AnnounceAs: gatewaytest.AnnouncePCP})
	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: true})
	if c := next(t, changes); c.Kind != backends.Announced {
		t.Errorf("noticed %+v, want an announcement", c)
	}
}

// A mapping update, which no multicast announces: the gateway tells the client
// that its mapping is at another address (RFC 6887, section 14.2).
func TestWatchMappingUpdate(t *testing.T) {
	gw, b, changes := watch(t, gatewaytest.Config{PCP: gatewaytest.PCP{MappingUpdates: true}})
	m, err := b.Map(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	gw.UpdateMappings() // nothing new in it
	moved := netip.MustParseAddr("45.45.45.99")
	gw.SetExternal(moved)
	var c backends.Change
	for c.Kind == 0 { // the watch may begin late: the gateway says it again
		select {
		case c = <-changes:
		case <-time.After(20 * time.Millisecond):
			gw.UpdateMappings()
		}
	}
	if c.Kind != backends.Announced || !strings.Contains(c.Reason, moved.String()) {
		t.Errorf("noticed %+v, want the new address first", c)
	}
	again, err := b.Renew(t.Context(), m, web)
	if err != nil || again.External.Addr() != moved {
		t.Errorf("Renew: %v, %v", again.External, err)
	}
}
