package upnp_test

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestRefusals checks the error kind of each fault code, and the number of requests
// after it.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		code     upnp.FaultCode
		kind     error
		attempts int
	}{
		"no such action":                         {401, backends.ErrUnsupported, 1},
		"invalid arguments":                      {402, backends.ErrUnsupported, 4},
		"failed":                                 {501, backends.ErrNoResources, 4},
		"invalid value":                          {600, backends.ErrUnsupported, 4},
		"out of range":                           {601, backends.ErrUnsupported, 4},
		"optional":                               {602, backends.ErrUnsupported, 1},
		"out of memory":                          {603, backends.ErrNoResources, 1},
		"human intervention required":            {604, backends.ErrNotAuthorized, 1},
		"too long":                               {605, backends.ErrUnsupported, 3},
		"not authorized":                         {606, backends.ErrNotAuthorized, 1},
		"no such entry":                          {714, backends.ErrMalformed, 1},
		"remote host needed":                     {715, backends.ErrUnsupported, 1},
		"external port needed":                   {716, backends.ErrUnsupported, 1},
		"conflict":                               {718, backends.ErrConflict, 1},
		"same port":                              {724, backends.ErrUnsupported, 1},
		"permanent leases only":                  {725, backends.ErrUnsupported, 3},
		"any remote host only":                   {726, backends.ErrUnsupported, 1},
		"any external port only":                 {727, backends.ErrUnsupported, 1},
		"table full":                             {728, backends.ErrNoResources, 1},
		"other mechanism":                        {729, backends.ErrConflict, 1},
		"read only":                              {731, backends.ErrNotAuthorized, 1},
		"internal port needed":                   {732, backends.ErrUnsupported, 1},
		"vendor's code":                          {850, backends.ErrNoResources, 3},
		"vendor's code, negative":                {-911, backends.ErrNoResources, 3},
		"vendor's code, after the standard ones": {735, backends.ErrNoResources, 3},
		"code of another action":                 {704, backends.ErrMalformed, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Version: 1})
			injectFault(gw, "AddPortMapping", int(tt.code))
			_, err := b.Map(t.Context(), exactRequest(8080, 9000))
			wantError(t, err, tt.kind, tt.code)
			all := actionCalls(gw, "AddPortMapping")
			if len(all) != tt.attempts {
				t.Errorf("%d requests, want %d: %v", len(all), tt.attempts, all)
			}
			seen := map[string]bool{}
			for _, args := range all {
				if args["NewExternalPort"] != "9000" || args["NewRemoteHost"] != "" {
					t.Errorf("requested port %s for %q", args["NewExternalPort"], args["NewRemoteHost"])
				}
				formKey := args["NewLeaseDuration"] + args["NewPortMappingDescription"]
				if seen[formKey] && tt.code != 501 {
					t.Errorf("requested lease %s and description %q twice", args["NewLeaseDuration"], args["NewPortMappingDescription"])
				}
				seen[formKey] = true
			}
		})
	}
}

// TestInvalidArguments checks in which order the backend changes the arguments of a
// request that a device refuses without a reason.
func TestInvalidArguments(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Version: 1})
	injectFault(gw, "AddPortMapping", 402)
	r := request(8080, 9000)
	r.Lifetime *= 2
	_, err := b.Map(t.Context(), r)
	wantError(t, err, backends.ErrUnsupported, 402)
	var got []string
	for i, args := range actionCalls(gw, "AddPortMapping") {
		if port, _ := strconv.Atoi(args["NewExternalPort"]); i >= 6 && port >= 49152 {
			args["NewExternalPort"] = "high"
		}
		got = append(got, args["NewLeaseDuration"]+" "+args["NewExternalPort"]+" "+args["NewPortMappingDescription"])
	}
	want := "7200 9000 a test, 0 9000 a test, 3600 9000 a test, 7200 9000 goforward, 0 9000 goforward, 7200 8080 a test, " +
		"7200 high a test, 0 high a test, 3600 high a test, 7200 high goforward, 0 high goforward"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("requests\n%s, want\n%s", s, want)
	}
}

// TestDescriptionsRefused checks that a refused description is replaced by one that
// the device accepts.
func TestDescriptionsRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 60)
	for name, tt := range map[string]struct {
		demands quirks.Demands
		text    string
		want    string
	}{
		"blank":                          {quirks.Demands{BlankDescription: 402}, " ", "goforward"},
		"quotes":                         {quirks.Demands{OddDescription: 402}, `a "b" & <c>`, "a _b_ _ _c_"},
		"odd":                            {quirks.Demands{OddDescription: 402}, "a (b)", "goforward"},
		"odd, code 600":                  {quirks.Demands{OddDescription: 600}, "a (b)", "goforward"},
		"long":                           {quirks.Demands{LongDescription: 605, MaxDescription: 32}, long, "goforward"},
		"long, code 402":                 {quirks.Demands{LongDescription: 402, MaxDescription: 32}, long, "goforward"},
		"maximum length of most devices": {quirks.Demands{LongDescription: 501, MaxDescription: 63}, long + long, (long + long)[:63]},
		"odd, code 501":                  {quirks.Demands{OddDescription: 501}, "a (b)", "goforward"},
		"not ASCII":                      {quirks.Demands{OddDescription: 402}, "Bücher\x1b", "B_cher_"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Demands: tt.demands})
			r := request(8080, 9000)
			r.Description = tt.text
			m, err := b.Map(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if e, _ := entry(gw, m.External.Port()); e.Description != tt.want {
				t.Errorf("description %q, want %q", e.Description, tt.want)
			}
		})
	}
}

// TestPrivateWAN checks a device that refuses mappings because it is behind another
// router. The error contains the external address, if the device reports it. The
// backend does not try other ports.
func TestPrivateWAN(t *testing.T) {
	t.Parallel()
	private := quirks.Rules{RefusePrivate: true}
	for name, tt := range map[string]struct {
		external string
		router   quirks.UPnP
		want     error
		text     string
	}{
		"private, not reported": {"192.168.201.90", quirks.UPnP{Rules: private}, backends.ErrPrivateWAN, "reports no address"},
		"shared, not reported":  {"100.64.3.4", quirks.UPnP{Rules: private}, backends.ErrPrivateWAN, "reports no address"},
		"private, reported": {"10.1.2.3", quirks.UPnP{Rules: private, Status: quirks.Status{
			External: netip.Addr.String,
		}}, backends.ErrPrivateWAN, "10.1.2.3, behind another router"},
		"shared, reported": {"100.64.3.4", quirks.UPnP{Rules: private, Status: quirks.Status{
			External: netip.Addr.String,
		}}, backends.ErrPrivateWAN, "100.64.3.4, behind the provider's NAT"},
		"unknown state": {"10.1.2.3", quirks.UPnP{
			Rules: private, Status: quirks.Status{Unsupported: true},
		}, backends.ErrPrivateWAN, "reports no address"},
		"not connected": {"0.0.0.0", quirks.UPnP{}, backends.ErrNetworkFailure, "Disconnected"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{External: netip.MustParseAddr(tt.external), Quirks: quirks.Quirks{UPnP: tt.router}})
			_, err := newBackend(t, gw, upnp.Config{}).Map(t.Context(), request(8080, 9000))
			wantError(t, err, tt.want, 501)
			if err != nil && !strings.Contains(err.Error(), tt.text) || errors.Is(err, backends.ErrNoResources) {
				t.Errorf("%v, want only %q", err, tt.text)
			}
			if n := count(gw, "AddPortMapping") + count(gw, "AddAnyPortMapping"); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestPrivateWANConflict checks devices that report a conflict instead, although
// the port is free.
func TestPrivateWANConflict(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{External: netip.MustParseAddr("192.168.201.90"), Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: 1}}})
	injectFault(gw, "AddPortMapping", 718)
	_, err := newBackend(t, gw, upnp.Config{}).Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrConflict, 718)
	if err != nil && !strings.Contains(err.Error(), "192.168.201.90, is private") {
		t.Errorf("%v does not mention the private address", err)
	}
}

// TestRetryAfterActionFailed checks that a request is retried after fault 501,
// which gives no reason.
func TestRetryAfterActionFailed(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Result: 501, Times: 1})
	if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() != 9000 || m.Lifetime != time.Hour {
		t.Errorf("mapped port %d for %v", m.External.Port(), m.Lifetime)
	}
}

// TestGatewayPolicies checks the policies of real gateways. The backend does not
// try other ports because of them.
func TestGatewayPolicies(t *testing.T) {
	t.Parallel()
	type rules = quirks.Rules
	other := request(8080, 9000)
	other.Internal = netip.MustParseAddrPort("192.168.77.9:8080")
	peer := request(8080, 9000)
	peer.Remote = netip.MustParseAddrPort("45.45.45.77:0")
	for name, tt := range map[string]struct {
		router  quirks.UPnP
		request backends.Request
		kind    error
		code    upnp.FaultCode
		text    string
	}{
		"switched off":                     {quirks.UPnP{Rules: rules{SwitchedOff: true}}, request(8080, 9000), backends.ErrNotAuthorized, 606, "its settings must permit"},
		"ports below 1024":                 {quirks.UPnP{Rules: rules{LowPorts: 606}}, request(8080, 80), backends.ErrNotAuthorized, 606, "below 1024"},
		"another host":                     {quirks.UPnP{}, other, backends.ErrNotAuthorized, 606, "another host, 192.168.77.9"},
		"another host, version 1":          {quirks.UPnP{Version: 1}, other, backends.ErrNotAuthorized, 718, "another host, 192.168.77.9"},
		"full":                             {quirks.UPnP{}, request(8080, 9000), backends.ErrNoResources, 728, ""},
		"full, version 1":                  {quirks.UPnP{Version: 1}, request(8080, 9000), backends.ErrNoResources, 501, ""},
		"full, code 402":                   {quirks.UPnP{Rules: rules{Full: 402}}, request(8080, 9000), backends.ErrUnsupported, 402, ""},
		"full, reported as success":        {quirks.UPnP{Rules: rules{FullSilent: true}}, request(8080, 9000), backends.ErrNoResources, 0, "does not list it"},
		"remote host needed":               {quirks.UPnP{Rules: rules{SourceNeeded: true}}, request(8080, 9000), backends.ErrUnsupported, 715, ""},
		"no remote host":                   {quirks.UPnP{Rules: rules{AnySourceOnly: true}}, peer, backends.ErrUnsupported, 726, ""},
		"no external port":                 {quirks.UPnP{Rules: rules{AnyPortOnly: true}}, request(8080, 9000), backends.ErrUnsupported, 727, ""},
		"same port only, another is exact": {quirks.UPnP{Rules: rules{SamePort: true}}, exactRequest(8080, 9000), backends.ErrUnsupported, 724, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := gatewaytest.Config{Quirks: quirks.Quirks{UPnP: tt.router}}
			if strings.HasPrefix(name, "full") {
				config.TableLimit = 1
			}
			gw := start(t, config)
			occupy(t, gw, 7)
			_, err := newBackend(t, gw, upnp.Config{}).Map(t.Context(), tt.request)
			wantError(t, err, tt.kind, tt.code)
			if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v, want it to contain %q", err, tt.text)
			}
			if errors.Is(err, backends.ErrConflict) || len(gw.Table()) != 1 {
				t.Errorf("%v; the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestSamePort checks that a device that supports only equal ports gets the
// internal port as the external one.
func TestSamePort(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{SamePort: true}})
	if m := mustMap(t, gw, b, request(8080, 9000)); m.External.Port() != 8080 {
		t.Errorf("mapped port %d", m.External.Port())
	}
	occupy(t, gw, 8081)
	_, err := b.Map(t.Context(), request(8081, 9001))
	wantError(t, err, backends.ErrConflict, 0)
}

// TestOtherService checks that the backend tries another service of the device if
// one does not support the action. It looks for an existing entry there first.
func TestOtherService(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionBoth}})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool {
		return q.Action == "AddPortMapping" && strings.Contains(string(q.Raw), "WANIPConnection")
	}, Result: 401})
	_, err := b.Map(t.Context(), request(8080, 9000))
	wantError(t, err, backends.ErrNetworkFailure, 501) // from the service that is not connected
	actions := map[string]bool{}
	for _, q := range gw.Requests() {
		if strings.Contains(string(q.Raw), "WANPPPConnection:1#") {
			actions[q.Action] = true
		}
	}
	if !actions["GetSpecificPortMappingEntry"] || !actions["AddPortMapping"] {
		t.Errorf("actions of the other service: %v", actions)
	}
}

const week = 7 * 24 * time.Hour

// TestLeases checks that the backend finds a lease that the gateway accepts, and
// that it never reports a longer lifetime than the gateway grants.
func TestLeases(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		router        quirks.UPnP
		ask, want     time.Duration
		attempts      int
		renewAttempts int
	}{
		"well behaved":                                {quirks.UPnP{}, time.Hour, time.Hour, 1, 1},
		"permanent only":                              {leases(quirks.Leases{PermanentOnly: 725}), time.Hour, backends.Forever, 2, 0},
		"permanent only, code 402":                    {leases(quirks.Leases{PermanentOnly: 402}), time.Hour, backends.Forever, 2, 0},
		"no permanent leases":                         {leases(quirks.Leases{NoPermanent: 402}), 2 * time.Hour, 2 * time.Hour, 1, 1},
		"no permanent leases, infinite requested":     {leases(quirks.Leases{NoPermanent: 402}), backends.Forever, time.Hour, 2, 1},
		"a week at most":                              {leases(quirks.Leases{NoLong: 402, NoPermanent: 402}), 2 * week, time.Hour, 3, 1},
		"shortened to a week":                         {quirks.UPnP{}, 2 * week, week, 1, 1},
		"infinite shortened to a week":                {quirks.UPnP{}, backends.Forever, week, 1, 1},
		"infinite, version 1":                         {quirks.UPnP{Version: 1}, backends.Forever, backends.Forever, 1, 0},
		"infinite shortened to a week, reported as 0": {leases(quirks.Leases{ReportedZero: true}), backends.Forever, week, 1, 1},
		"reported as 0":                               {leases(quirks.Leases{ReportedZero: true}), time.Hour, time.Hour, 1, 1},
		"reported as a day":                           {leases(quirks.Leases{Reported: 24 * time.Hour}), time.Hour, time.Hour, 1, 1},
		"reported as a minute":                        {leases(quirks.Leases{Reported: time.Minute}), time.Hour, time.Minute, 1, 1},
		"an hour at most":                             {leases(quirks.Leases{Max: time.Hour}), 3 * time.Hour, time.Hour, 1, 1},
		"fractions of a second are rounded up":        {quirks.UPnP{}, 1500 * time.Millisecond, 2 * time.Second, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, tt.router)
			r := request(8080, 9000)
			r.Lifetime = tt.ask
			m := mustMap(t, gw, b, r)
			if n := count(gw, "AddPortMapping"); m.Lifetime != tt.want || n != tt.attempts {
				t.Errorf("granted %v after %d attempts, want %v after %d", m.Lifetime, n, tt.want, tt.attempts)
			}
			gw.ResetStats()
			m = mustRenew(t, gw, b, m, r)
			if n := count(gw, "AddPortMapping"); m.Lifetime != tt.want || n != tt.renewAttempts {
				t.Errorf("renewed for %v after %d attempts, want %v after %d", m.Lifetime, n, tt.want, tt.renewAttempts)
			}
			if n := count(gw, "DeletePortMapping"); n != 0 {
				t.Errorf("%d deletions", n)
			}
			if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

func leases(l quirks.Leases) quirks.UPnP { return quirks.UPnP{Leases: l} }

// TestLeaseRemembered checks that the backend requests a lease that the device
// accepted before, without another failed attempt.
func TestLeaseRemembered(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, leases(quirks.Leases{PermanentOnly: 725}))
	mustMap(t, gw, b, request(8080, 9000))
	mustMap(t, gw, b, request(8081, 9001))
	all := actionCalls(gw, "AddPortMapping")
	if len(all) != 3 || all[2]["NewLeaseDuration"] != "0" || all[2]["NewExternalPort"] != "9001" {
		t.Errorf("requests %v", all)
	}
}

// TestLeaseNotExtended checks that an entry that a renewal does not extend is
// deleted and created again, once.
func TestLeaseNotExtended(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, leases(quirks.Leases{NoRefresh: true}))
	m := mustMap(t, gw, b, request(8080, 9000))
	m = mustRenew(t, gw, b, m, request(8080, 9000))
	if n := count(gw, "DeletePortMapping"); n != 0 {
		t.Errorf("%d deletions of a fresh mapping", n)
	}
	gw.Advance(30 * time.Minute)
	m = mustRenew(t, gw, b, m, request(8080, 9000))
	if n := count(gw, "DeletePortMapping"); n != 1 || m.Lifetime != time.Hour {
		t.Errorf("%d deletions, granted %v", n, m.Lifetime)
	}
	gw.Advance(45 * time.Minute)
	if _, ok := entry(gw, 9000); !ok {
		t.Error("the entry expired with the first lease")
	}
}

// TestLeaseTolerance checks that an entry that a renewal does not extend is kept if
// at most a fifth of its lease has passed.
func TestLeaseTolerance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		age, want time.Duration
		deletions int
	}{
		{time.Minute, 59 * time.Minute, 0},
		{12 * time.Minute, 48 * time.Minute, 0},
		{12*time.Minute + time.Second, time.Hour, 1},
	} {
		t.Run(tt.age.String(), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, leases(quirks.Leases{NoRefresh: true}))
			m := mustMap(t, gw, b, request(8080, 9000))
			gw.Advance(tt.age)
			m = mustRenew(t, gw, b, m, request(8080, 9000))
			if n := count(gw, "DeletePortMapping"); n != tt.deletions || m.Lifetime != tt.want {
				t.Errorf("%d deletions, granted %v; want %d, %v", n, m.Lifetime, tt.deletions, tt.want)
			}
		})
	}
}

// TestLeaseNotExtendedNorDeleted checks that the mapping stays active for the rest
// of its lease if the device neither extends the lease nor deletes the entry.
func TestLeaseNotExtendedNorDeleted(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, leases(quirks.Leases{NoRefresh: true}))
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Advance(30 * time.Minute)
	injectFault(gw, "DeletePortMapping", int(upnp.ActionNotAuthorized))
	if m, err := b.Renew(t.Context(), m, request(8080, 9000)); err != nil || m.Lifetime != 30*time.Minute {
		t.Errorf("renewed for %v, %v", m.Lifetime, err)
	}
}

// TestPermanentVerified checks that renewing a permanent mapping creates it again
// only if the entry is missing. It also checks that Unmap deletes it.
func TestPermanentVerified(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, leases(quirks.Leases{PermanentOnly: 725}))
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.ResetStats()
	m = mustRenew(t, gw, b, m, request(8080, 9000))
	if n := count(gw, "AddPortMapping"); n != 0 {
		t.Errorf("added %d times although the entry existed", n)
	}
	gw.RemoveMapping(backends.TCP, 9000)
	m = mustRenew(t, gw, b, m, request(8080, 9000))
	if n := count(gw, "AddPortMapping"); n != 1 {
		t.Errorf("added %d times after the entry was deleted", n)
	}
	if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestEntryOfEarlierRun checks that an entry of an earlier run of the program is
// taken over, with the new lease.
func TestEntryOfEarlierRun(t *testing.T) {
	t.Parallel()
	gw, before := startBackend(t, quirks.UPnP{Version: 1})
	r := request(8080, 9000)
	r.Lifetime = backends.Forever
	mustMap(t, gw, before, r)
	m := mustMap(t, gw, newBackend(t, gw, upnp.Config{}), exactRequest(8080, 9000))
	if m.Lifetime != time.Hour || len(gw.Table()) != 1 {
		t.Errorf("taken over for %v: %v", m.Lifetime, gw.Table())
	}
}

// TestIdleEntryDeleted checks that a renewal creates an entry again, on the same
// port, after the gateway deleted it because it was idle.
func TestIdleEntryDeleted(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Rules: quirks.Rules{IdleAfter: 10 * time.Minute}})
	m := mustMap(t, gw, b, request(8080, 9000))
	gw.Advance(11 * time.Minute)
	if _, ok := entry(gw, 9000); ok {
		t.Fatal("the gateway kept the idle entry")
	}
	for range 3 {
		if m = mustRenew(t, gw, b, m, request(8080, 9000)); m.External.Port() != 9000 {
			t.Errorf("renewed on port %d", m.External.Port())
		}
	}
	if len(gw.Table()) != 1 {
		t.Errorf("the table has grown: %v", gw.Table())
	}
}
