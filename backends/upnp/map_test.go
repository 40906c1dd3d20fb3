package upnp_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestPortTaken checks that the backend does not take a port that another client
// has, even if the device would overwrite the entry silently.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		router    quirks.UPnP
		otherPort bool // whether another port is granted
	}{
		"version 1":                           {quirks.UPnP{Version: 1}, false},
		"version 2":                           {quirks.UPnP{}, true},
		"version 2 without AddAnyPortMapping": {quirks.UPnP{Rules: quirks.Rules{NoAddAny: true}}, false},

		"AddAnyPortMapping resets the connection":   {quirks.UPnP{Rules: quirks.Rules{AddAnyResets: true}}, false},
		"no GetSpecificPortMappingEntry":            {quirks.UPnP{Version: 1, Listing: listing{NoSpecific: true}}, false},
		"no GetSpecificPortMappingEntry, version 2": {quirks.UPnP{Listing: listing{NoSpecific: true}}, true},
		"absent entry reported as 402":              {quirks.UPnP{Version: 1, Listing: listing{Absent: 402}}, false},
		"absent entry reported as 501":              {quirks.UPnP{Version: 1, Listing: listing{Absent: 501}}, false},
	} {
		for occupant, occupyBy := range map[string]func(*testing.T, *gatewaytest.Gateway, *upnp.Backend){
			"host":    func(t *testing.T, gw *gatewaytest.Gateway, _ *upnp.Backend) { occupy(t, gw, 9000) },
			"program": func(t *testing.T, gw *gatewaytest.Gateway, b *upnp.Backend) { mustMap(t, gw, b, request(8081, 9000)) },
		} {
			t.Run(name+", another "+occupant, func(t *testing.T) {
				t.Parallel()
				gw, b := startBackend(t, tt.router)
				occupyBy(t, gw, b)
				before, _ := entry(gw, 9000)
				_, err := b.Map(t.Context(), exactRequest(8080, 9000))
				wantError(t, err, backends.ErrConflict, 0)
				m, err := b.Map(t.Context(), request(8080, 9000))
				switch {
				case !tt.otherPort:
					wantError(t, err, backends.ErrConflict, 0)
				case err != nil || m.External.Port() == 9000:
					t.Errorf("mapped %v, %v", m.External, err)
				default:
					checkEntry(t, gw, m)
				}
				if after, _ := entry(gw, 9000); after.Internal != before.Internal {
					t.Errorf("the port was mapped to %v, and now to %v", before.Internal, after.Internal)
				}
			})
		}
	}
}

// TestPortTakenUnlisted checks that a conflict is recognised even if the device
// does not list the entry.
func TestPortTakenUnlisted(t *testing.T) {
	t.Parallel()
	for _, code := range []int{718, 729} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{OtherMechanism: code}})
			gw.Inject(gatewaytest.Fault{Match: isAction("GetSpecificPortMappingEntry"), Result: 714, Times: 1})
			occupy(t, gw, 9000)
			if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() == 9000 {
				t.Error("mapped the port that is in use")
			}
		})
	}
}

// TestRandomPortTaken checks that a request for any port succeeds if another client has the
// random ports that were tried first.
func TestRandomPortTaken(t *testing.T) {
	t.Parallel()
	for taken := 1; taken <= 3; taken++ {
		gw, b := startBackend(t, quirks.UPnP{Version: 1})
		gw.Inject(gatewaytest.Fault{Match: isAction(addAction), Times: taken, Result: int(upnp.ConflictInMappingEntry)})
		if m := mustMap(t, gw, b, request(8080, 0)); m.External.Port() < 49152 {
			t.Errorf("port %d", m.External.Port())
		}
	}
}

// TestNoAddAnyRemembered checks a device that resets the connection after
// AddAnyPortMapping. The backend does not send that action again, and does not
// search for the device again.
func TestNoAddAnyRemembered(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{AddAnyResets: true}})
	occupy(t, gw, 9000)
	for range 3 {
		_, err := b.Map(t.Context(), request(8080, 9000))
		wantError(t, err, backends.ErrConflict, 0)
	}
	searches := gw.Stats().Requests["upnp describe"]
	if n := count(gw, "AddAnyPortMapping"); n != 1 || searches != 1 {
		t.Errorf("%d requests of AddAnyPortMapping, %d of the description", n, searches)
	}
}

// TestAnyPortAfterTimeout checks that AddAnyPortMapping is sent again in the next
// call after a timeout: the device may have been busy.
func TestAnyPortAfterTimeout(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{Timeout: time.Second / 2})
	occupy(t, gw, 9000)
	end := make(chan struct{})
	defer close(end)
	gw.Inject(gatewaytest.Fault{Match: isAction("AddAnyPortMapping"), Times: 1, Drop: true, Hold: end})
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNoReply, 0)
	if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() == 9000 {
		t.Error("mapped the port that is in use")
	}
	if n := count(gw, "AddAnyPortMapping"); n != 2 {
		t.Errorf("%d requests of AddAnyPortMapping, want 2", n)
	}
}

// TestNoOverwrite checks that only one of many concurrent requests in one process
// gets a port, and keeps it.
func TestNoOverwrite(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]quirks.UPnP{
		"version 1": {Version: 1}, "version 2": {},
		"no GetSpecificPortMappingEntry": {Version: 1, Listing: quirks.Listing{NoSpecific: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, first := startBackend(t, router)
			all := []*upnp.Backend{first, newBackend(t, gw, upnp.Config{})}
			const perBackend = 4
			var wg sync.WaitGroup
			errs := make([]error, perBackend*len(all))
			granted := make([]backends.Mapping, len(errs))
			for i := range errs {
				wg.Go(func() {
					granted[i], errs[i] = all[i%len(all)].Map(t.Context(), exactRequest(8000+uint16(i), 9000))
				})
			}
			wg.Wait()
			winners := 0
			for i, err := range errs {
				if err != nil {
					wantError(t, err, backends.ErrConflict, 0)
					continue
				}
				winners++
				checkEntry(t, gw, granted[i])
			}
			if winners != 1 {
				t.Errorf("%d requests got the port", winners)
			}
		})
	}
}

// TestReAddRefused checks devices that do not overwrite entries. The backend
// deletes the old entry first, both for a renewal and for an entry of an earlier
// run.
func TestReAddRefused(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]quirks.UPnP{
		"version 1":                      {Version: 1, Rules: quirks.Rules{NoReAdd: 718}},
		"version 2":                      {Rules: quirks.Rules{NoReAdd: 718}},
		"no GetSpecificPortMappingEntry": {Version: 1, Rules: quirks.Rules{NoReAdd: 718}, Listing: quirks.Listing{NoSpecific: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, router)
			m := mustMap(t, gw, b, request(8080, 9000))
			gw.Advance(m.Lifetime / 2)
			if m = mustRenew(t, gw, b, m, request(8080, 9000)); m.External.Port() != 9000 {
				t.Errorf("renewed on port %d", m.External.Port())
			}
			gw.Advance(m.Lifetime / 2)
			m = mustMap(t, gw, newBackend(t, gw, upnp.Config{}), exactRequest(8080, 9000))
			if len(gw.Table()) != 1 || m.Lifetime != request(1, 1).Lifetime {
				t.Errorf("granted %v: %v", m.Lifetime, gw.Table())
			}
		})
	}
}

// TestOnePortPerEndpoint checks a device that grants each internal endpoint only
// one port.
func TestOnePortPerEndpoint(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Version: 1, Rules: quirks.Rules{OnePort: true}})
	mustMap(t, gw, b, request(8080, 9000))
	if m := mustMap(t, gw, b, request(8080, 9001)); m.External.Port() != 9000 {
		t.Errorf("mapped port %d, want the existing one", m.External.Port())
	}
	if m := mustMap(t, gw, b, exactRequest(8080, 9002)); m.External.Port() != 9002 || len(gw.Table()) != 1 {
		t.Errorf("mapped port %d: %v", m.External.Port(), gw.Table())
	}
	r := exactRequest(8080, 9003)
	r.Description = "another program"
	_, err := b.Map(t.Context(), r)
	wantError(t, err, backends.ErrConflict, 718)
	if _, ok := entry(gw, 9002); !ok {
		t.Error("the other program's mapping was deleted")
	}
}

// TestVerifyEntry checks that the backend looks for the entry after a success.
func TestVerifyEntry(t *testing.T) {
	t.Parallel()
	type router = quirks.UPnP
	type rules = quirks.Rules
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		router router
		want   error
	}{
		"not listed":                                 {router{Rules: rules{Unlisted: true}}, backends.ErrNoResources},
		"listed for another client":                  {router{Rules: rules{ListedClient: netip.MustParseAddr("192.168.77.9")}}, backends.ErrNoResources},
		"no GetSpecificPortMappingEntry":             {router{Listing: listing{NoSpecific: true}}, nil},
		"GetSpecificPortMappingEntry fails with 402": {router{Listing: listing{Absent: 402}}, nil},
		"GetSpecificPortMappingEntry fails with 501": {router{Listing: listing{Absent: 501}}, nil},
		"not listed, and 402 for all absent entries": {router{Rules: rules{Unlisted: true}, Listing: listing{Absent: 402}}, backends.ErrNoResources},
		"listed, but not forwarding":                 {router{Rules: rules{NoTraffic: true}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, b := startBackend(t, tt.router)
			m, err := b.Map(t.Context(), exactRequest(8080, 9000))
			if tt.want != nil {
				wantError(t, err, tt.want, 0)
				return
			}
			if err != nil || m.External.Port() != 9000 || m.Lifetime != request(1, 1).Lifetime {
				t.Errorf("mapped %v for %v, %v", m.External, m.Lifetime, err)
			}
		})
	}
}

// TestVerifyConflict checks that ErrConflict is returned if another program got the
// port in the meantime.
func TestVerifyConflict(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Corrupt: func(reply []byte) []byte {
		gw.RemoveMapping(backends.TCP, 9000)
		if err := gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:9999"), External: netip.AddrPortFrom(gw.External(), 9000),
		}); err != nil {
			t.Error(err)
		}
		return reply
	}})
	_, err := b.Map(t.Context(), exactRequest(8080, 9000))
	wantError(t, err, backends.ErrConflict, 0)
}

// TestRenewTaken checks that a mapping whose port another host got moves to another
// port, unless the request is exact.
func TestRenewTaken(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
		"missing, code 402":              {quirks.UPnP{Listing: quirks.Listing{Absent: 402}}, func(_ *testing.T, gw *gatewaytest.Gateway) { gw.RemoveMapping(backends.TCP, 9000) }, 0, 0},
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
	token := strings.NewReplacer("WANIPConnection:2", "WANPPPConnection:1", "/WANIPConnection", "/WANPPPConnection").Replace(string(m.Token.Bytes()))
	m.Token = backends.NewToken([]byte(token))
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
