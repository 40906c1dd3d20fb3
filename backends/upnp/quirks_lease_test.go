package upnp_test

import (
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const week = 7 * 24 * time.Hour

// TestLeases checks that the backend finds a lease that the gateway accepts, and
// that it never reports a longer lifetime than the gateway grants.
func TestLeases(t *testing.T) {
	for name, tt := range map[string]struct {
		router     quirks.UPnP
		ask, want  time.Duration
		tries      int
		renewTries int
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
			if n := count(gw, "AddPortMapping"); m.Lifetime != tt.want || n != tt.tries {
				t.Errorf("granted %v after %d attempts, want %v after %d", m.Lifetime, n, tt.want, tt.tries)
			}
			gw.ResetStats()
			m = mustRenew(t, gw, b, m, r)
			if n := count(gw, "AddPortMapping"); m.Lifetime != tt.want || n != tt.renewTries {
				t.Errorf("renewed for %v after %d attempts, want %v after %d", m.Lifetime, n, tt.want, tt.renewTries)
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
	if _, is := entry(gw, 9000); !is {
		t.Error("the entry expired with the first lease")
	}
}

// TestLeaseTolerance checks that an entry that a renewal does not extend is kept if
// at most a fifth of its lease has passed.
func TestLeaseTolerance(t *testing.T) {
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

// TestLeaseNotExtendedNorDeleted checks that the mapping stays for the rest of its
// lease if the device does not let the entry be created again.
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
	if _, is := entry(gw, 9000); is {
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
