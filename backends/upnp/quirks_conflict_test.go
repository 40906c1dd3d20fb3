package upnp_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestPortTaken checks that the backend does not take a port that another client
// has, even if the device would overwrite the entry silently.
func TestPortTaken(t *testing.T) {
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		router    quirks.UPnP
		otherPort bool // whether another port is granted
	}{
		"version 1":                                 {quirks.UPnP{Version: 1}, false},
		"version 2":                                 {quirks.UPnP{}, true},
		"version 2 without AddAnyPortMapping":       {quirks.UPnP{Rules: quirks.Rules{NoAddAny: true}}, false},
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

// TestNoOverwrite checks that only one of many concurrent requests in one process
// gets a port, and keeps it.
func TestNoOverwrite(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"version 1": {Version: 1}, "version 2": {},
		"no GetSpecificPortMappingEntry": {Version: 1, Listing: quirks.Listing{NoSpecific: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, first := startBackend(t, router)
			all := []*upnp.Backend{first, newBackend(t, gw, upnp.Config{})}
			const each = 4
			var wg sync.WaitGroup
			errs := make([]error, each*len(all))
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
	if _, is := entry(gw, 9002); !is {
		t.Error("the other program's mapping was deleted")
	}
}
