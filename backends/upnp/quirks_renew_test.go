package upnp_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestRenewTaken checks that a mapping whose port another host got moves to another
// port, unless the request is exact.
func TestRenewTaken(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"version 1": {Version: 1}, "version 2": {}, "no AddAnyPortMapping": {Rules: quirks.Rules{AddAnyResets: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, router)
			m := mustMap(t, gw, b, request(8080, 9000))
			gw.RemoveMapping(backends.TCP, 9000)
			occupy(t, gw, 9000)
			_, err := b.Renew(t.Context(), m, exactRequest(8080, 9000))
			wantError(t, err, backends.ErrConflict, 0)
			if renewed := mustRenew(t, gw, b, m, request(8080, 9000)); renewed.External.Port() == 9000 {
				t.Error("renewed on the port that is in use")
			}
			if e, _ := entry(gw, 9000); e.Internal.Addr() != netip.MustParseAddr("192.168.77.9") {
				t.Errorf("the other host's entry is %+v", e)
			}
		})
	}
}

// TestRenewInPlace checks that renewals add no entries to the table.
func TestRenewInPlace(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	m := mustMap(t, gw, b, request(8080, 9000))
	for range 3 {
		gw.Advance(30 * time.Minute)
		m = mustRenew(t, gw, b, m, request(8080, 9000))
	}
	if len(gw.Table()) != 1 || m.External.Port() != 9000 || count(gw, "DeletePortMapping") != 0 {
		t.Errorf("on port %d: %v", m.External.Port(), gw.Table())
	}
}

// TestDeviceMoved checks that a device that uses another port after a restart is
// found within the same call.
func TestDeviceMoved(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{MovePort: true})
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	m = mustRenew(t, gw, b, m, request(8080, 9000))
	gw.Restart(gatewaytest.RestartOptions{Silent: true, KeepTable: true})
	if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if _, err := b.ExternalAddr(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestControlPathNotFound checks that a new search follows if the control path is
// unknown after a restart.
func TestControlPathNotFound(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	mustMap(t, gw, b, request(8080, 9000))
	gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Times: 1, Reply: func([]byte) [][]byte {
		return [][]byte{[]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")}
	}})
	before := gw.Stats().Requests["upnp describe"]
	mustMap(t, gw, b, request(8081, 9001))
	if n := gw.Stats().Requests["upnp describe"] - before; n != 1 {
		t.Errorf("%d requests of the description", n)
	}
}

// TestUnmap checks that only this host's mapping is deleted, as far as the device
// reports it.
func TestUnmap(t *testing.T) {
	for name, tt := range map[string]struct {
		router    quirks.UPnP
		interfere func(*testing.T, *gatewaytest.Gateway)
		remaining int
		deletes   int
	}{
		"own":     {quirks.UPnP{}, nil, 0, 1},
		"missing": {quirks.UPnP{}, func(_ *testing.T, gw *gatewaytest.Gateway) { gw.RemoveMapping(backends.TCP, 9000) }, 0, 0},
		"taken":   {quirks.UPnP{AnyClient: true}, func(t *testing.T, gw *gatewaytest.Gateway) { gw.RemoveMapping(backends.TCP, 9000); occupy(t, gw, 9000) }, 1, 0},
		"taken by another program": {quirks.UPnP{}, func(t *testing.T, gw *gatewaytest.Gateway) {
			gw.RemoveMapping(backends.TCP, 9000)
			mustMap(t, gw, newBackend(t, gw, upnp.Config{}), exactRequest(8099, 9000))
		}, 1, 0},
		"unknown":                        {quirks.UPnP{Listing: quirks.Listing{NoSpecific: true}}, nil, 0, 1},
		"missing, code 402":              {quirks.UPnP{Listing: quirks.Listing{Absent: 402}}, func(_ *testing.T, gw *gatewaytest.Gateway) { gw.RemoveMapping(backends.TCP, 9000) }, 0, 1},
		"listed with another lease":      {leases(quirks.Leases{Reported: 48 * time.Hour}), nil, 0, 1},
		"absent entries reported as 501": {quirks.UPnP{Version: 1, Listing: quirks.Listing{Absent: 501}}, nil, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, tt.router)
			m := mustMap(t, gw, b, request(8080, 9000))
			if tt.interfere != nil {
				tt.interfere(t, gw)
			}
			if err := b.Unmap(t.Context(), m); err != nil {
				t.Errorf("Unmap: %v", err)
			}
			if n := count(gw, "DeletePortMapping"); len(gw.Table()) != tt.remaining || n != tt.deletes {
				t.Errorf("%d deletions, the gateway has %v", n, gw.Table())
			}
		})
	}
}

// TestUnmapFromAnotherProcess checks that a Mapping has all that another process
// needs to delete it.
func TestUnmapFromAnotherProcess(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionBoth}})
	m := mustMap(t, gw, b, request(8080, 9000))
	m.Internal = netip.AddrPortFrom(netip.Addr{}, m.Internal.Port()) // this host
	if err := newBackend(t, gw, upnp.Config{}).Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestServiceRemembered checks that requests for a mapping use the service that
// granted it.
func TestServiceRemembered(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionBoth}})
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.ResetStats()
	m.Token = backends.NewToken(bytes.Replace(m.Token.Bytes(), []byte("WANIPConnection:2"), []byte("WANPPPConnection:1"), 1))
	_ = b.Unmap(t.Context(), m)
	for _, q := range gw.Requests() {
		if !bytes.Contains(q.Raw, []byte("WANPPPConnection:1#")) {
			t.Errorf("request to another service: %s", q.Raw)
		}
	}
	if len(gw.Requests()) == 0 {
		t.Error("no requests")
	}
}
