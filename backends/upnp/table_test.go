package upnp_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	addAction    = "AddPortMapping"
	deleteAction = "DeletePortMapping"
	findAction   = "GetSpecificPortMappingEntry"
	indexAction  = "GetGenericPortMappingEntry"
	rangeAction  = "GetListOfPortMappings"
	addrAction   = "GetExternalIPAddress"
)

// faultFor returns the failures of a device that answers each of the actions with a
// fault.
func faultFor(code int, actions ...string) quirks.Actions {
	a := quirks.Actions{Fault: map[string]int{}}
	for _, action := range actions {
		a.Fault[action] = code
	}
	return a
}

// twoSessions is a device that has two connection services of one type, in one device
// with one UDN. The first service refuses mappings.
func twoSessions(code int) quirks.UPnP {
	return quirks.UPnP{Description: quirks.Description{TwoSessions: true, SharedUDN: true, FirstRefuses: code}}
}

// TestSecondService checks that all requests about a mapping go to the service that
// granted it, also from another process, and that the mapping has the address of this
// service.
func TestSecondService(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, twoSessions(401))
	second := gw.External().Next()
	m, err := b.Map(t.Context(), request(8080, 9000))
	if err != nil || m.External != netip.AddrPortFrom(second, 9000) {
		t.Fatalf("mapped %v, %v; want the address of the second service, %v", m.External, err, second)
	}
	if addr, err := b.ExternalAddr(t.Context()); err != nil || addr != second {
		t.Errorf("ExternalAddr: %v, %v", addr, err)
	}
	// Without its own state, another process would use the first service.
	gw.Advance(30 * time.Minute)
	other := newBackend(t, gw, upnp.Config{})
	renewed, err := other.Renew(t.Context(), m, request(8080, 9000))
	if err != nil || renewed.External != m.External || len(gw.Table()) != 1 || gw.Table()[0].Remaining != time.Hour {
		t.Errorf("renewed %v, %v; the gateway has %v", renewed.External, err, gw.Table())
	}
	other = newBackend(t, gw, upnp.Config{})
	var listed []backends.Mapping
	for e, err := range other.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, e.Mapping)
	}
	if len(listed) != 1 || listed[0].External != m.External || listed[0].Token != m.Token {
		t.Fatalf("listed %v", listed)
	}
	if err := other.Unmap(t.Context(), listed[0]); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestServiceAfterRefusal checks that the second service is used, for the requested port,
// if the first one refuses with any code. If both refuse, the first reason is returned.
func TestServiceAfterRefusal(t *testing.T) {
	t.Parallel()
	for _, code := range []int{401, 402, 501, 606, 725, 899} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, twoSessions(code))
			m, err := b.Map(t.Context(), request(8080, 9000))
			if err != nil || m.External != netip.AddrPortFrom(gw.External().Next(), 9000) || len(gw.Table()) != 1 {
				t.Errorf("mapped %v, %v; the gateway has %v", m.External, err, gw.Table())
			}
			if _, err := b.Map(t.Context(), request(8081, 9001)); err != nil || len(gw.Table()) != 2 {
				t.Errorf("%v; the gateway has %v", err, gw.Table())
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		t.Parallel()
		gw, b := startBackend(t, twoSessions(606))
		gw.Inject(gatewaytest.Fault{Result: 501, Match: func(q gatewaytest.Request) bool {
			return q.Action == addAction && !strings.Contains(string(q.Raw), "POST /ctl/0/WANIPConnection HTTP")
		}})
		_, err := b.Map(t.Context(), request(8080, 9000))
		wantError(t, err, backends.ErrNotAuthorized, 606)
		if n := count(gw, addAction); n < 2 {
			t.Errorf("%d requests, want some to the second service", n)
		}
	})
}

// TestDisconnectedService checks that a service whose connection is down is not asked for
// a mapping that the connected one refuses.
func TestDisconnectedService(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionBoth}})
	injectFault(gw, addAction, 606)
	_, err := b.Map(t.Context(), request(8080, 9000))
	if wantError(t, err, backends.ErrNotAuthorized, 606); count(gw, addAction) != 1 {
		t.Errorf("%d requests, want 1", count(gw, addAction))
	}
}

// TestUndeletable checks that the error of a mapping that is not reported says that the
// entry remains, and that the caller must expect this.
func TestUndeletable(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{AddDisabled: true, DeleteIgnored: true}})
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNoResources, 0)
	wantError(t, err, backends.ErrNoReply, 0)
	if text := fmt.Sprint(err); !strings.Contains(text, "the entry is disabled; the entry cannot be deleted") || strings.Contains(text, "no reply") {
		t.Error(text)
	}
	if len(gw.Table()) != 1 {
		t.Errorf("the gateway has %v", gw.Table())
	}
}

// TestSameServiceOfTwo checks that a renewal does not move to another service that has
// the same UDN and type, and that Unmap deletes only in the service that has the entry.
func TestSameServiceOfTwo(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, twoSessions(0))
	m := mustMap(t, gw, b, request(8080, 9000))
	if m.External.Addr() != gw.External() {
		t.Fatalf("mapped %v", m.External)
	}
	// The first service is preferred. Make the second one the only one that grants.
	remove := gw.Inject(gatewaytest.Fault{Match: isAction(addAction), Times: 1, Result: 401})
	other := newBackend(t, gw, upnp.Config{})
	second, err := other.Map(t.Context(), request(8080, 9000))
	remove()
	if err != nil || second.External.Addr() != gw.External().Next() || len(gw.Table()) != 2 {
		t.Fatalf("mapped %v, %v; the gateway has %v", second.External, err, gw.Table())
	}
	for _, mapping := range []backends.Mapping{m, second} {
		renewed, err := newBackend(t, gw, upnp.Config{}).Renew(t.Context(), mapping, request(8080, 9000))
		if err != nil || renewed.External != mapping.External || renewed.Token != mapping.Token || len(gw.Table()) != 2 {
			t.Errorf("renewed %v as %v, %v; the gateway has %v", mapping.External, renewed.External, err, gw.Table())
		}
	}
	if err := newBackend(t, gw, upnp.Config{}).Unmap(t.Context(), m); err != nil || len(gw.Table()) != 1 || gw.Table()[0].External != second.External {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
	// A mapping without a token may be in any service.
	second.Token = backends.Token{}
	if err := newBackend(t, gw, upnp.Config{}).Unmap(t.Context(), second); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestWitnesses checks that a mapping is reported only if the table does not contradict
// it, and that nothing remains otherwise.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	noKey := func(code int) quirks.Actions { return faultFor(code, findAction) }
	for name, tt := range map[string]struct {
		router quirks.UPnP
		want   error
	}{
		"not created":                                         {quirks.UPnP{Rules: quirks.Rules{Unlisted: true}}, backends.ErrNoResources},
		"not created, version 1":                              {quirks.UPnP{Version: 1, Rules: quirks.Rules{Unlisted: true}}, backends.ErrNoResources},
		"not created, lookup has fault 401":                   {quirks.UPnP{Rules: quirks.Rules{Unlisted: true}, Actions: noKey(401)}, backends.ErrNoResources},
		"not created, lookup has fault 402":                   {quirks.UPnP{Rules: quirks.Rules{Unlisted: true}, Actions: noKey(402)}, backends.ErrNoResources},
		"not created, lookup has fault 602":                   {quirks.UPnP{Rules: quirks.Rules{Unlisted: true}, Actions: noKey(602)}, backends.ErrNoResources},
		"not created, only ranges":                            {quirks.UPnP{Rules: quirks.Rules{Unlisted: true}, Actions: faultFor(401, findAction, indexAction)}, backends.ErrNoResources},
		"disabled":                                            {quirks.UPnP{Rules: quirks.Rules{AddDisabled: true}}, backends.ErrNoResources},
		"disabled, lookup has fault 401":                      {quirks.UPnP{Rules: quirks.Rules{AddDisabled: true}, Actions: noKey(401)}, backends.ErrNoResources},
		"disabled, only ranges":                               {quirks.UPnP{Rules: quirks.Rules{AddDisabled: true}, Actions: faultFor(401, findAction, indexAction)}, backends.ErrNoResources},
		"lookup finds nothing, but the index does":            {quirks.UPnP{Actions: noKey(714)}, nil},
		"lookup finds nothing, but the index does, version 1": {quirks.UPnP{Version: 1, Actions: noKey(714)}, nil},
		"not created, lookup has fault 401, version 1":        {quirks.UPnP{Version: 1, Rules: quirks.Rules{Unlisted: true}, Actions: noKey(401)}, backends.ErrNoResources},
		"malformed row, lookup has fault 401, version 1":      {quirks.UPnP{Version: 1, Listing: quirks.Listing{MalformedRow: true}, Actions: noKey(401)}, nil},
		"lookup finds nothing, but the range does":            {quirks.UPnP{Actions: quirks.Actions{Fault: map[string]int{findAction: 714, indexAction: 401}}}, nil},
		"the table cannot be read":                            {quirks.UPnP{Actions: faultFor(401, findAction, indexAction, rangeAction)}, nil},
		"the table cannot be read, connections reset":         {quirks.UPnP{Actions: quirks.Actions{Reset: map[string]bool{findAction: true, indexAction: true, rangeAction: true}}}, nil},
		"client by name":                                      {quirks.UPnP{Listing: quirks.Listing{Client: func(netip.Addr) string { return "laptop.lan" }}}, nil},
		"no client":                                           {quirks.UPnP{Listing: quirks.Listing{Client: func(netip.Addr) string { return "" }}}, nil},
		"malformed row, lookup has fault 401":                 {quirks.UPnP{Listing: quirks.Listing{MalformedRow: true}, Actions: noKey(401)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, tt.router)
			for range 2 { // what was learned in the first call does not change the result of the second
				m, err := b.Map(t.Context(), request(8080, 9000))
				if tt.want != nil {
					wantError(t, err, tt.want, 0)
					if len(gw.Table()) != 0 {
						t.Errorf("the gateway has %v", gw.Table())
					}
					continue
				}
				if err != nil || m.External.Port() != 9000 || len(gw.Table()) != 1 {
					t.Fatalf("mapped %v, %v; the gateway has %v", m.External, err, gw.Table())
				}
				if m, err = b.Renew(t.Context(), m, request(8080, 9000)); err != nil {
					t.Errorf("Renew: %v", err)
				}
				if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
					t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
				}
			}
		})
	}
}

// TestFalseServiceOfTwo checks that the second service is used if the first one reports
// success, but lists nothing.
func TestFalseServiceOfTwo(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, twoSessions(0))
	gw.Inject(gatewaytest.Fault{Match: isAction(addAction), Times: 1, Corrupt: func(reply []byte) []byte {
		gw.RemoveMapping(backends.TCP, 9000)
		return reply
	}})
	m, err := b.Map(t.Context(), request(8080, 9000))
	if err != nil || m.External != netip.AddrPortFrom(gw.External().Next(), 9000) {
		t.Errorf("mapped %v, %v", m.External, err)
	}
}

// TestLostReply checks that a mapping whose response is lost is found in the table.
func TestLostReply(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		router  quirks.UPnP
		timeout time.Duration
	}{
		"connection closed":            {quirks.UPnP{Actions: quirks.Actions{NoReply: map[string]bool{addAction: true}}}, 5 * time.Second},
		"connection closed, no lookup": {quirks.UPnP{Actions: quirks.Actions{NoReply: map[string]bool{addAction: true}, Fault: map[string]int{findAction: 401}}}, 5 * time.Second},
		"late response":                {quirks.UPnP{Actions: quirks.Actions{Delay: map[string]time.Duration{addAction: time.Hour}}}, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: tt.router}})
			b := newBackend(t, gw, upnp.Config{Timeout: tt.timeout})
			m := mustMap(t, gw, b, request(8080, 9000))
			m = mustRenew(t, gw, b, m, request(8080, 9000))
			if n := count(gw, addAction); n != 2 || len(gw.Table()) != 1 {
				t.Errorf("%d requests, the gateway has %v", n, gw.Table())
			}
			if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestLostRenewal checks that a renewal does not succeed if its response is lost and the
// lease was not extended.
func TestLostRenewal(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{})
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Advance(m.Lifetime / 2)
	gw.Inject(gatewaytest.Fault{Match: isAction(addAction), Drop: true})
	_, err := b.Renew(t.Context(), m, request(8080, 9000))
	wantError(t, err, backends.ErrNoReply, 0)
}

// TestNoFalseLoss checks that a device on which the lookup finds no entry at all is not
// reported to have lost its entries.
func TestNoFalseLoss(t *testing.T) {
	t.Parallel()
	w := watch(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Actions: faultFor(714, findAction)}}})
	m := mustMap(t, w.Gateway, w.backend, request(8080, 9000))
	for range 3 {
		m = mustRenew(t, w.Gateway, w.backend, m, request(8080, 9000))
	}
	w.expectNoChange(t)
}

// TestLostRequest checks that a request that the device did not process is sent once
// more: after a closed connection and after a status that shows an overload.
func TestLostRequest(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]gatewaytest.Fault{
		"connection closed": {Drop: true},
		"status 503": {Reply: func([]byte) [][]byte {
			return [][]byte{[]byte("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			f.Match, f.Times = isAction(addAction), 1
			gw.Inject(f)
			mustMap(t, gw, b, request(8080, 9000))
			if n := count(gw, addAction); n != 2 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestDeletionVerified checks that Unmap succeeds only if the entry is deleted.
func TestDeletionVerified(t *testing.T) {
	t.Parallel()
	type rules = quirks.Rules
	for name, tt := range map[string]struct {
		router  quirks.UPnP
		deleted bool
	}{
		"ignored":                            {quirks.UPnP{Rules: rules{DeleteIgnored: true}}, false},
		"ignored, no lookup":                 {quirks.UPnP{Rules: rules{DeleteIgnored: true}, Actions: faultFor(401, findAction)}, false},
		"ignored, lookup finds nothing":      {quirks.UPnP{Rules: rules{DeleteIgnored: true}, Actions: faultFor(714, findAction)}, false},
		"ignored, only ranges":               {quirks.UPnP{Rules: rules{DeleteIgnored: true}, Actions: faultFor(401, findAction, indexAction)}, false},
		"ignored, client by name":            {quirks.UPnP{Rules: rules{DeleteIgnored: true}, Listing: quirks.Listing{Client: func(netip.Addr) string { return "laptop.lan" }}}, false},
		"714 for a listed entry":             {quirks.UPnP{Rules: rules{DeleteFault: 714}}, false},
		"713 for a listed entry":             {quirks.UPnP{Rules: rules{DeleteFault: 713}}, false},
		"714, lookup finds nothing":          {quirks.UPnP{Rules: rules{DeleteFault: 714}, Actions: faultFor(714, findAction)}, false},
		"refused":                            {quirks.UPnP{Rules: rules{DeleteFault: 606}}, false},
		"fails once":                         {quirks.UPnP{Rules: rules{DeleteFailures: 1}}, true},
		"no response":                        {quirks.UPnP{Actions: quirks.Actions{NoReply: map[string]bool{deleteAction: true}}}, true},
		"the table cannot be read":           {quirks.UPnP{Actions: faultFor(401, findAction, indexAction, rangeAction)}, true},
		"the table cannot be read, no reply": {quirks.UPnP{Actions: quirks.Actions{Reset: map[string]bool{findAction: true, indexAction: true, rangeAction: true}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, tt.router)
			m, err := b.Map(t.Context(), request(8080, 9000))
			if err != nil {
				t.Fatal(err)
			}
			err = b.Unmap(t.Context(), m)
			if remaining := len(gw.Table()); (err == nil) != tt.deleted || (remaining == 0) != tt.deleted {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestDeleteAbsent checks that every code for an absent entry means that it is deleted.
func TestDeleteAbsent(t *testing.T) {
	t.Parallel()
	for _, code := range []int{713, 714} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{DeleteAbsent: code}, Actions: faultFor(401, findAction, indexAction, rangeAction)})
			m, err := b.Map(t.Context(), request(8080, 9000))
			if err != nil {
				t.Fatal(err)
			}
			gw.RemoveMapping(backends.TCP, 9000)
			if err := b.Unmap(t.Context(), m); err != nil {
				t.Errorf("Unmap: %v", err)
			}
		})
	}
}

// TestOptionalRequests checks that requests that a device need not answer never prevent a
// mapping, and are not repeated in each call.
func TestOptionalRequests(t *testing.T) {
	t.Parallel()
	optional := map[string]bool{addrAction: true, findAction: true}
	for name, actions := range map[string]quirks.Actions{
		"reset": {Reset: optional},
		"hang":  {Hang: optional},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Actions: actions}}})
			b := newBackend(t, gw, upnp.Config{Timeout: time.Hour})
			for i := range uint16(3) {
				m, err := b.Map(t.Context(), request(8080+i, 9000+i))
				if err != nil || m.External != netip.AddrPortFrom(netip.Addr{}, 9000+i) {
					t.Fatalf("mapped %v, %v", m.External, err)
				}
				if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
					t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
				}
			}
			if n := count(gw, findAction); name == "hang" && n != 2 {
				t.Errorf("%d requests of %s, want 2", n, findAction)
			}
		})
	}
}

// TestUnknownCodes checks that a refusal with a code of the vendor, which does not show
// the reason, leads to a request with another lease or for another port.
func TestUnknownCodes(t *testing.T) {
	t.Parallel()
	for _, code := range []int{501, -1, -911, 899} {
		t.Run(fmt.Sprint("lease ", code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, leases(quirks.Leases{PermanentOnly: code}))
			if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() != 9000 || m.Lifetime != backends.Forever {
				t.Errorf("mapped port %d for %v", m.External.Port(), m.Lifetime)
			}
		})
		t.Run(fmt.Sprint("port ", code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{PortFault: code, Port: 80}})
			if m := mustMap(t, gw, b, request(8080, 80)); m.External.Port() != 8080 { // a device may support only equal ports
				t.Errorf("mapped port %d", m.External.Port())
			}
			if m := mustMap(t, gw, b, request(80, 80)); m.External.Port() < 49152 {
				t.Errorf("mapped port %d, want a high one", m.External.Port())
			}
			before := count(gw, addAction)
			if mustMap(t, gw, b, request(80, 80)); count(gw, addAction) != before+1 {
				t.Errorf("%d more requests, want 1: the refusal is known", count(gw, addAction)-before)
			}
			_, err := b.Map(t.Context(), exactRequest(81, 80))
			if wantError(t, err, backends.ErrNoResources, upnp.FaultCode(code)); len(gw.Table()) != 3 {
				t.Errorf("the gateway has %v", gw.Table())
			}
		})
	}
}

// TestRefusedPortForgotten checks that a port is requested again if a device refused every
// request: then the refusal is not about the port.
func TestRefusedPortForgotten(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	remove := injectFault(gw, addAction, 899)
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNoResources, 899)
	remove()
	if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() != 9000 {
		t.Errorf("mapped port %d", m.External.Port())
	}
}

// TestRenewalByOtherService checks a renewal that the first service refuses and the second
// one grants. This host's old entry is deleted, also from a table that both services share,
// but no entry of another host is.
func TestRenewalByOtherService(t *testing.T) {
	t.Parallel()
	gatewayAfterRefusal := func(t *testing.T, u quirks.UPnP) (*gatewaytest.Gateway, func() (backends.Mapping, error)) {
		t.Parallel()
		u.Description.TwoSessions = true
		gw, b := startBackend(t, u)
		m, err := b.Map(t.Context(), request(8080, 9000))
		if err != nil {
			t.Fatal(err)
		}
		return gw, func() (backends.Mapping, error) {
			gw.Inject(gatewaytest.Fault{Match: isAction(addAction), Times: 1, Result: 606})
			return b.Renew(t.Context(), m, request(8080, 9000))
		}
	}
	checkEntries := func(t *testing.T, gw *gatewaytest.Gateway, err error, want ...netip.AddrPort) {
		t.Helper()
		var got []netip.AddrPort
		for _, e := range gw.Table() {
			got = append(got, e.Internal)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Renew: %v, the gateway has entries for %v, want %v", err, got, want)
		}
	}
	t.Run("own table", func(t *testing.T) {
		gw, renew := gatewayAfterRefusal(t, quirks.UPnP{})
		m, err := renew()
		checkEntries(t, gw, err, m.Internal)
	})
	t.Run("shared table", func(t *testing.T) {
		gw, renew := gatewayAfterRefusal(t, quirks.UPnP{})
		gw.Inject(gatewaytest.Fault{
			Match: isAction(deleteAction),
			Corrupt: func(reply []byte) []byte {
				gw.RemoveMapping(backends.TCP, 9000) // from the table of the second service
				return reply
			},
		})
		m, err := renew()
		checkEntries(t, gw, err, m.Internal)
	})
	t.Run("entry of another host", func(t *testing.T) {
		gw, renew := gatewayAfterRefusal(t, quirks.UPnP{AnyClient: true, Listing: quirks.Listing{NoSpecific: true}})
		gw.RemoveMapping(backends.TCP, 9000)
		other := netip.MustParseAddrPort("127.9.9.9:80")
		if err := gw.AddMapping(gatewaytest.Entry{Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 9000), Internal: other}); err != nil {
			t.Fatal(err)
		}
		m, err := renew()
		checkEntries(t, gw, err, other, m.Internal)
	})
}

// TestSilentConflict checks that the entry of another host is not deleted on a device that
// finds no entry by its key, and reports success for a port in use.
func TestSilentConflict(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{AnyClient: true, Actions: faultFor(714, findAction), Rules: quirks.Rules{Unlisted: true}})
	other := gatewaytest.Entry{
		Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 9000), Internal: netip.MustParseAddrPort("127.9.9.9:80"), Description: "other",
	}
	if err := gw.AddMapping(other); err != nil {
		t.Fatal(err)
	}
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNoResources, 0)
	if len(gw.Table()) != 1 {
		t.Error("the entry of another host was deleted")
	}
}

// TestNeitherExtendedNorDeleted checks that a renewal reports the remaining lifetime on a
// device that does not extend leases and deletes nothing.
func TestNeitherExtendedNorDeleted(t *testing.T) {
	for _, rules := range []quirks.Rules{{DeleteIgnored: true}, {DeleteFault: 501}, {DeleteFault: 606}} {
		gw, b := startBackend(t, quirks.UPnP{Leases: quirks.Leases{NoRefresh: true}, Rules: rules})
		m, err := b.Map(t.Context(), request(8080, 9000))
		if err != nil {
			t.Fatal(err)
		}
		gw.Advance(30 * time.Minute)
		if m, err = b.Renew(t.Context(), m, request(8080, 9000)); err != nil || m.Lifetime != 30*time.Minute {
			t.Errorf("%+v: renewed for %v, %v", rules, m.Lifetime, err)
		}
	}
}

// TestUndeletableEarlierEntry checks a device that neither overwrites nor deletes the entry
// of an earlier run: another port is mapped.
func TestUndeletableEarlierEntry(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{NoReAdd: 718, DeleteIgnored: true}})
	mustMap(t, gw, b, request(8080, 9000))
	if m := mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000)); m.External.Port() == 9000 {
		t.Errorf("mapped port %d", m.External.Port())
	}
}

// TestOutage checks that a device that did not reply to any action is asked everything again
// when it replies.
func TestOutage(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{Timeout: 100 * time.Millisecond})
	m := mustMap(t, gw, b, request(8080, 9000))
	end := gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Action != "" }, Hold: make(chan struct{})})
	for range 3 {
		_, err := b.Renew(t.Context(), m, request(8080, 9000))
		wantError(t, err, backends.ErrNoReply, 0)
	}
	end()
	gw.ResetStats()
	if m := mustRenew(t, gw, b, m, request(8080, 9000)); m.External.Addr() != gw.External() || count(gw, findAction) == 0 {
		t.Errorf("renewed %v with %d requests of %s", m.External, count(gw, findAction), findAction)
	}
}
