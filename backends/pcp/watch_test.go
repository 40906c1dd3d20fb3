package pcp_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// startWatch is startWatchFunc with a channel of changes.
func startWatch(t *testing.T, config gatewaytest.Config) (*gatewaytest.Gateway, *pcp.Backend, <-chan backends.Change) {
	t.Helper()
	changes := make(chan backends.Change, 16)
	gw, b := startWatchFunc(t, config, func(c backends.Change) { changes <- c })
	return gw, b, changes
}

// startWatchFunc starts a gateway and watches it until the test ends. A gateway
// that announces in PCP's form repeats each announcement, so a listener that starts
// late also receives it. Any other gateway does not announce.
func startWatchFunc(t *testing.T, config gatewaytest.Config, notify func(backends.Change)) (*gatewaytest.Gateway, *pcp.Backend) {
	t.Helper()
	if config.Quirks.AnnounceAs != quirks.AnnouncePCP {
		config.Announce = netip.MustParseAddrPort("127.0.0.1:0")
	}
	gw := start(t, config)
	b := open(t, pcp.Config{Gateway: gw.Addr(), Announce: gw.AnnounceAddr()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Watch(ctx, notify) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return gw, b
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
	gw, b, changes := startWatch(t, gatewaytest.Config{ManualClock: true, Quirks: quirks.Quirks{AnnounceAs: quirks.AnnouncePCP}})
	gw.Advance(time.Hour)
	if err := b.Probe(t.Context()); err != nil { // record an epoch of one hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	if c := nextChange(t, changes); c.Kind != backends.Restarted {
		t.Errorf("reported %+v, want a restart", c)
	}
}

func TestWatchAnnouncement(t *testing.T) {
	gw, _, changes := startWatch(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceAs: quirks.AnnouncePCP}})
	gw.Restart(gatewaytest.RestartOptions{KeepEpoch: true})
	if c := nextChange(t, changes); c.Kind != backends.Announced {
		t.Errorf("reported %+v, want an announcement", c)
	}
}

// TestWatchMappingUpdate checks a mapping update, which has no multicast
// announcement: the gateway informs the client that its mapping has another address
// (RFC 6887, section 14.2).
func TestWatchMappingUpdate(t *testing.T) {
	gw, b, changes := startWatch(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{MappingUpdates: true}}})
	m, err := b.Map(t.Context(), webRequest)
	if err != nil {
		t.Fatal(err)
	}
	gw.UpdateMappings() // an update without a change
	newAddr := netip.MustParseAddr("45.45.45.99")
	gw.SetExternal(newAddr)
	var c backends.Change
	for c.Kind == 0 { // the watch may start late, so the gateway repeats the update
		select {
		case c = <-changes:
		case <-time.After(20 * time.Millisecond):
			gw.UpdateMappings()
		}
	}
	if c.Kind != backends.Announced || !strings.Contains(c.Reason, newAddr.String()) {
		t.Errorf("reported %+v, want the new address first", c)
	}
	renewed, err := b.Renew(t.Context(), m, webRequest)
	if err != nil || renewed.External.Addr() != newAddr {
		t.Errorf("Renew: %v, %v", renewed.External, err)
	}
}

// TestWatchUpdateAfterUnmap checks that a mapping update is a hint only until the
// mapping is deleted.
func TestWatchUpdateAfterUnmap(t *testing.T) {
	for name, deleted := range map[string]bool{"active": false, "deleted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changes, release := make(chan backends.Change, 16), make(chan struct{})
			proceed := sync.OnceFunc(func() { close(release) })
			defer proceed()
			gw, b := startWatchFunc(t, gatewaytest.Config{ManualClock: true}, func(c backends.Change) {
				changes <- c
				<-release
			})
			m, err := b.Map(t.Context(), webRequest)
			if err != nil {
				t.Fatal(err)
			}
			if deleted {
				if err := b.Unmap(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			probe := func() {
				t.Helper()
				if err := b.Probe(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for started := false; !started; { // until the watch has started
				gw.Advance(time.Hour)
				probe()
				select {
				case <-changes:
					started = true
				case <-time.After(20 * time.Millisecond):
				}
			}
			// The watch is processing that change. The next two hints become one
			// change, with the reason of the later hint.
			gw.Advance(time.Hour)
			probe()
			newEndpoint := netip.MustParseAddrPort("45.45.45.99:9999")
			gw.Inject(gatewaytest.Fault{Times: 1, Reply: func([]byte) [][]byte {
				update, _ := pcp.MapResponse{
					Lifetime: time.Hour, Epoch: gw.Stats().Epoch, Nonce: pcp.Nonce(m.Token.Bytes()),
					Protocol: m.Protocol, InternalPort: m.Internal.Port(),
					ExternalPort: newEndpoint.Port(), External: newEndpoint.Addr(),
				}.MarshalBinary()
				announce, _ := pcp.AnnounceResponse{Epoch: gw.Stats().Epoch}.MarshalBinary()
				return [][]byte{update, announce}
			}})
			probe()
			proceed()
			c := nextChange(t, changes)
			if reported := strings.Contains(c.Reason, newEndpoint.String()); reported == deleted {
				t.Errorf("the gateway reports the mapping at %v, and the reason of the change is %q", newEndpoint, c.Reason)
			}
		})
	}
}

// TestRefusalEndsWithRestart checks that a cached refusal ends when the server
// restarts: the same request is then sent again.
func TestRefusalEndsWithRestart(t *testing.T) {
	gw, b, changes := startWatch(t, gatewaytest.Config{ManualClock: true, Quirks: quirks.Quirks{AnnounceAs: quirks.AnnouncePCP}})
	gw.Advance(time.Hour)
	if err := b.Probe(t.Context()); err != nil { // record an epoch of one hour
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return r.Op == "map" }, Times: 1, Result: int(pcp.NotAuthorized),
	})
	for _, when := range []string{"first request", "second request"} {
		if _, err := b.Map(t.Context(), webRequest); !errors.Is(err, backends.ErrNotAuthorized) {
			t.Fatalf("%s: %v, want a refusal", when, err)
		}
	}
	gw.Restart(gatewaytest.RestartOptions{})
	if c := nextChange(t, changes); c.Kind != backends.Restarted {
		t.Errorf("reported %+v, want a restart", c)
	}
	if _, err := b.Map(t.Context(), webRequest); err != nil || len(gw.Table()) != 1 {
		t.Errorf("request after the restart: %v, the gateway has %v", err, gw.Table())
	}
}
