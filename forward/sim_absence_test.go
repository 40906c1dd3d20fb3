package forward_test

import (
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
)

// The rules for how long a gateway that answers may be without a mapping that
// is held, by what took it away, where no call is lost:
//
//   - a restart that the gateway tells of: the wait for a round of recovery;
//   - one that it does not tell of: until the next renewal, which comes by five
//     eighths of the lifetime, of a day at most (RFC 6887, section 11.2.1), or by
//     the next look at what has no end;
//   - a lease that ran out, since nobody could be asked: the longest pause
//     between tries.
//
// To each comes the turn behind all the others. A call that is lost adds a
// pause; before the lease is over, all of these end with it.
const (
	roundWait  = 15 * time.Second
	retryWait  = time.Minute + time.Minute/8 + noReply + slowest
	verifyWait = 20*time.Minute + 20*time.Minute/8
)

// absence is what is known of a mapping that the gateway does not have.
type absence struct {
	kind   string
	since  time.Time
	misses int // calls lost since
}

// simLease is the books on one mapping, absent or not.
type simLease struct {
	row      simRow
	lifetime time.Duration
	gone     absence // the zero value: it is there, unless it has run out
}

// absences keeps the books on what the gateway should have and has not. The
// gateway's lock guards it.
type absences struct {
	up      time.Time // since when the gateway can be reached
	turn    time.Duration
	leases  map[simKey]*simLease
	longest map[string]time.Duration
	wrong   []string
}

func newAbsences() *absences {
	return &absences{leases: map[simKey]*simLease{}, longest: map[string]time.Duration{}}
}

// forgotten takes note of a restart.
func (a *absences) forgotten(now time.Time) {
	for _, l := range a.leases {
		if l.absent(now).kind == "" {
			l.gone = absence{kind: "silent restart", since: now}
		}
	}
}

// told takes note that the gateway told of its restart.
func (a *absences) told(now time.Time) {
	for _, l := range a.leases {
		if l.gone.kind == "silent restart" {
			l.gone.kind, l.gone.since, l.gone.misses = "announced restart", now, 0
		}
	}
}

// reachable takes note of the end of an outage. Whoever asked meanwhile missed.
func (a *absences) reachable(now time.Time) {
	a.up = now
	for _, l := range a.leases {
		l.gone = l.absent(now)
		if l.gone.kind != "" {
			l.gone.misses = 1
		}
	}
}

// missed takes note of a call that was lost. Of two protocols that are one unit
// the other is not even asked for.
func (a *absences) missed(k simKey) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if l := a.leases[simKey{p, k.port}]; l != nil {
			l.gone.misses++
		}
	}
}

func (a *absences) deleted(k simKey) { delete(a.leases, k) }

// absent says since when and why the gateway has it no more, if so.
func (l *simLease) absent(now time.Time) absence {
	if l.gone.kind == "" && !l.row.runs(now) {
		return absence{"lease ran out", l.row.until, max(l.gone.misses, 1)}
	}
	return l.gone
}

// granted takes note of a grant, and ends an absence.
func (a *absences) granted(k simKey, row simRow, lifetime time.Duration, now time.Time) {
	l := a.leases[k]
	if l == nil {
		a.leases[k] = &simLease{row: row, lifetime: lifetime}
		return
	}
	a.check(k, l, now)
	*l = simLease{row: row, lifetime: lifetime}
}

// check compares an absence with its rule.
func (a *absences) check(k simKey, l *simLease, now time.Time) {
	gone := l.absent(now)
	if gone.kind == "" {
		return
	}
	since := gone.since
	if since.Before(a.up) {
		since = a.up
	}
	lasted := now.Sub(since)
	a.longest[gone.kind] = max(a.longest[gone.kind], lasted)
	if allowed := a.allowed(gone, l.lifetime); lasted > allowed {
		a.wrong = append(a.wrong, fmt.Sprintf("%v port %d: absent for %v after %s and %d lost calls, allowed is %v (at %v)",
			k.protocol, k.port, lasted, gone.kind, gone.misses, allowed, now.UTC()))
	}
}

// checkAll compares what is absent just now.
func (a *absences) checkAll(now time.Time) {
	for k, l := range a.leases {
		a.check(k, l, now)
	}
}

func (a *absences) allowed(gone absence, lifetime time.Duration) time.Duration {
	allowed := a.turn + time.Duration(gone.misses)*retryWait
	switch {
	case gone.kind == "announced restart":
		allowed += roundWait
	case gone.kind == "lease ran out":
	case lifetime == backends.Forever:
		allowed += verifyWait
	case gone.misses == 0:
		allowed += min(lifetime, 24*time.Hour) * 5 / 8
	default:
		allowed += lifetime
	}
	return allowed
}
