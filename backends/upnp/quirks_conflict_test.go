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

// TestPortTaken: a port that somebody else has is left alone, also where the device
// would overwrite it without a word.
func TestPortTaken(t *testing.T) {
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		router    quirks.UPnP
		otherPort bool // another port is granted
	}{
		"version 1":                        {quirks.UPnP{Version: 1}, false},
		"version 2":                        {quirks.UPnP{}, true},
		"version 2 without any port":       {quirks.UPnP{Rules: quirks.Rules{NoAddAny: true}}, false},
		"any port cuts the connection":     {quirks.UPnP{Rules: quirks.Rules{AddAnyResets: true}}, false},
		"no single entry":                  {quirks.UPnP{Version: 1, Listing: listing{NoSpecific: true}}, false},
		"no single entry, version 2":       {quirks.UPnP{Listing: listing{NoSpecific: true}}, true},
		"absent entries are bad arguments": {quirks.UPnP{Version: 1, Listing: listing{Absent: 402}}, false},
		"absent entries are failures":      {quirks.UPnP{Version: 1, Listing: listing{Absent: 501}}, false},
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
					t.Errorf("the port was %v's and is %v's", before.Internal, after.Internal)
				}
			})
		}
	}
}

// TestPortTakenUnlisted: what the device does not list may be taken too.
func TestPortTakenUnlisted(t *testing.T) {
	for _, code := range []int{718, 729} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{OtherMechanism: code}})
			gw.Inject(gatewaytest.Fault{Match: isAction("GetSpecificPortMappingEntry"), Result: 714, Times: 1})
			occupy(t, gw, 9000)
			if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() == 9000 {
				t.Error("mapped the port that is taken")
			}
		})
	}
}

// TestNoAddAnyRemembered: a device that cuts the connection at a question is not
// asked it again, nor taken for one that has gone.
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
		t.Errorf("asked %d times for any port, and %d for the description", n, searches)
	}
}

// TestNoOverwrite: of many who want a port at once, in one process, one gets it,
// and keeps it.
func TestNoOverwrite(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"version 1": {Version: 1}, "version 2": {},
		"no single entry": {Version: 1, Listing: quirks.Listing{NoSpecific: true}},
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
				t.Errorf("%d got the port", winners)
			}
		})
	}
}

// TestReAddRefused: devices that do not overwrite get the entry deleted first,
// when it is renewed and when it was left over.
func TestReAddRefused(t *testing.T) {
	for name, router := range map[string]quirks.UPnP{
		"version 1":       {Version: 1, Rules: quirks.Rules{NoReAdd: 718}},
		"version 2":       {Rules: quirks.Rules{NoReAdd: 718}},
		"no single entry": {Version: 1, Rules: quirks.Rules{NoReAdd: 718}, Listing: quirks.Listing{NoSpecific: true}},
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

// TestOnePortPerEndpoint: a device that gives an endpoint one port only.
func TestOnePortPerEndpoint(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Version: 1, Rules: quirks.Rules{OnePort: true}})
	mustMap(t, gw, b, request(8080, 9000))
	if m := mustMap(t, gw, b, request(8080, 9001)); m.External.Port() != 9000 {
		t.Errorf("mapped port %d, want the one that there is", m.External.Port())
	}
	if m := mustMap(t, gw, b, exactRequest(8080, 9002)); m.External.Port() != 9002 || len(gw.Table()) != 1 {
		t.Errorf("mapped port %d: %v", m.External.Port(), gw.Table())
	}
	r := exactRequest(8080, 9003)
	r.Description = "another program"
	_, err := b.Map(t.Context(), r)
	wantError(t, err, backends.ErrConflict, 718)
	if _, is := entry(gw, 9002); !is {
		t.Error("another program's mapping is gone")
	}
}
