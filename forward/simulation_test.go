package forward_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/testseed"
)

const day = 24 * time.Hour

// simulation has the parameters of a simulated Forwarder with a gateway that misbehaves.
type simulation struct {
	count         int
	duration      time.Duration
	lossRate      float64       // fraction of lost calls
	reportsEpoch  bool          // the epoch in the replies of the gateway shows restarts
	faultInterval time.Duration // mean time between faults
	maxOutage     time.Duration // longest outage
	mixed         bool          // several kinds of mappings instead of one
	lifetime      time.Duration // lifetime of most mappings
	checks        bool          // the Forwarder checks the gateway
	recordCalls   bool          // run returns the calls
}

// TestSimulation simulates weeks of restarts, outages and lost calls. It checks that
// mappings are granted again as soon as the gateway allows it. GOFORWARD_SOAK=1 simulates
// a month, and more mappings.
func TestSimulation(t *testing.T) {
	manyMappings := simulation{count: 5000, duration: 2 * day, lossRate: 0.1, reportsEpoch: true, faultInterval: 30 * time.Hour, maxOutage: 2 * time.Hour, lifetime: 24 * time.Hour}
	few := simulation{count: 200, duration: 10 * day, lossRate: 0.3, faultInterval: 40 * time.Hour, maxOutage: 5 * time.Hour, lifetime: 12 * time.Hour, mixed: true}
	checked := simulation{count: 200, duration: 2 * day, checks: true, reportsEpoch: true, faultInterval: 4 * time.Hour, maxOutage: 10 * time.Minute, lifetime: 2 * time.Hour}
	if os.Getenv("GOFORWARD_SOAK") == "1" {
		checked.duration, few.duration, manyMappings.count = 30*day, 30*day, 10000
		manyMappings.duration, manyMappings.lossRate, manyMappings.faultInterval, manyMappings.maxOutage, manyMappings.lifetime = 30*day, 0.3, 12*time.Hour, 6*time.Hour, 2*time.Hour
	}
	for name, s := range map[string]simulation{
		"few":                   few,
		"with epochs":           {count: 50, duration: 5 * day, lossRate: 0.1, reportsEpoch: true, faultInterval: 20 * time.Hour, maxOutage: 3 * time.Hour, lifetime: 2 * time.Hour, mixed: true},
		"many":                  manyMappings,
		"checked":               checked,
		"checked, long outages": {count: 50, duration: max(checked.duration/3, 32*time.Hour), checks: true, reportsEpoch: true, faultInterval: 8 * time.Hour, maxOutage: 5 * time.Hour, lifetime: 24 * time.Hour},
		"checked, with loss":    {count: 50, duration: max(checked.duration/3, 32*time.Hour), checks: true, lossRate: 0.2, reportsEpoch: true, faultInterval: 8 * time.Hour, maxOutage: time.Hour, lifetime: 2 * time.Hour, mixed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { s.run(t, testseed.Of(t)) })
		})
	}
}

// options returns the options of the i-th mapping.
func (s simulation) options(i int) []forward.Option {
	port := uint16(1024 + i)
	if s.mixed {
		switch i % 40 {
		case 1:
			return []forward.Option{forward.Both(port)}
		case 2:
			return []forward.Option{forward.UDP(port), forward.Lifetime(forward.Forever)}
		case 3:
			return []forward.Option{forward.TCP(port), forward.Lifetime(time.Hour)}
		case 4:
			return []forward.Option{forward.TCP(port), forward.Lifetime(7 * day)}
		case 5:
			return []forward.Option{forward.UDP(port - 1)} // same port as the mapping before it
		case 6:
			return []forward.Option{forward.UDP(port), forward.SamePort(), forward.Exact()}
		}
		if i == 7 {
			return []forward.Option{forward.TCP(port), forward.Lifetime(20 * time.Minute)}
		}
	}
	return []forward.Option{forward.TCP(port)}
}

// queueTime returns how long a call may have to wait for the calls of all other mappings,
// with a safety factor of two.
func (s simulation) queueTime() time.Duration {
	call := maxLatency + time.Duration(s.lossRate*float64(replyTimeout))
	return replyTimeout + time.Duration(2*float64(s.count)*float64(call)/(1-s.lossRate)/forward.MaxCalls)
}

// simRun is the state of a running simulation.
type simRun struct {
	simulation
	t                *testing.T
	rng              *rand.Rand
	gateway          *simGateway
	events           *eventChecker
	forwarder        *forward.Forwarder
	mappings         []*forward.Mapping
	goroutinesBefore int // goroutines before the first mapping
}

// run runs the simulation, and returns the calls that the gateway received if recordCalls
// is set.
func (s simulation) run(t *testing.T, seed uint64) []simCall {
	r := simRun{
		simulation: s, t: t, rng: rand.New(rand.NewPCG(seed, 1)),
		gateway: newSimGateway(seed), events: newEventChecker(), goroutinesBefore: runtime.NumGoroutine(),
	}
	r.gateway.lossRate, r.gateway.reportsEpoch, r.gateway.absences.queueTime = s.lossRate, s.reportsEpoch, s.queueTime()
	r.gateway.recordCalls, r.gateway.absences.lossRate = s.recordCalls, s.lossRate
	var err error
	r.forwarder, err = forward.New(&forward.Config{
		Backends: []backends.Backend{r.backend()}, Lifetime: s.lifetime, OnEvent: r.events.record,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.forwarder.SetJitter(seededJitter(seed))
	r.limitCallRate()
	start := time.Now()
	r.enable()
	for end := start.Add(s.duration); time.Now().Before(end) && !t.Failed(); {
		r.injectFault()
		r.advance(min(time.Duration(r.rng.ExpFloat64()*float64(s.faultInterval)), time.Until(end)))
	}
	days := float64(time.Since(start)) / float64(day)
	calls := r.gateway.calls
	r.endFaults()
	r.shutdown()
	t.Logf("%d calls, %.1f per day and mapping; events %v; longest absences %v; queue time %v",
		calls, float64(calls)/float64(s.count)/days, r.events.count, r.gateway.absences.longest, s.queueTime())
	return r.gateway.recorded
}

// backend returns the backend that the Forwarder uses.
func (r *simRun) backend() backends.Backend {
	if r.checks {
		r.gateway.absences.checked = true
		return checkedSimGateway{r.gateway}
	}
	return r.gateway
}

// advance lets time pass, and checks the mappings every hour. When it returns, all
// goroutines are idle, even if d is 0. All effects of one event are then complete before
// the next event. Otherwise the order of the goroutines would determine how many requests
// the two events cause.
func (r *simRun) advance(d time.Duration) {
	const interval = time.Hour
	synctest.Wait()
	for end := time.Now().Add(d); time.Now().Before(end) && !r.t.Failed(); {
		time.Sleep(min(interval, time.Until(end)))
		synctest.Wait()
		r.gateway.set(func() {
			if !r.gateway.down {
				r.gateway.absences.checkAll(time.Now())
			}
		})
		for _, m := range r.mappings {
			for _, granted := range m.Grants() {
				if expires := granted.Expires(); !expires.IsZero() && !time.Now().Before(expires) {
					r.t.Errorf("%v: Grants reports a mapping that expired at %v", m, expires)
				}
			}
		}
		if n := runtime.NumGoroutine(); n > r.goroutinesBefore+3*(4+2*forward.MaxCalls) { // includes the goroutines of parallel simulations
			r.t.Errorf("%d goroutines, %d before the first mapping", n, r.goroutinesBefore)
		}
	}
}

// seededJitter returns a jitter that depends only on the seed and the time, not on the
// order of the callers at that time.
func seededJitter(seed uint64) func(time.Duration) time.Duration {
	return func(d time.Duration) time.Duration {
		rng := rand.New(rand.NewPCG(seed, uint64(time.Now().UnixNano())))
		return time.Duration(rng.Int64N(int64(d) + 1))
	}
}

// enable enables all mappings in the background.
func (r *simRun) enable() {
	for i := range r.count {
		m, err := r.forwarder.Enable(r.t.Context(), append(r.options(i), forward.Background())...)
		if err != nil {
			r.t.Fatal(err)
		}
		r.mappings = append(r.mappings, m)
	}
	synctest.Wait()
}

// limitCallRate checks the number of calls in each second.
func (r *simRun) limitCallRate() {
	limit := int(forward.MaxCalls * (time.Second / minLatency))
	// Jitter distributes the renewals over one eighth of the lifetime.
	quietLimit := 3*r.count/int(r.lifetime/8/time.Second) + 20
	r.gateway.set(func() {
		r.gateway.settleTime = 2*r.queueTime() + 4*maxRetryTime
		r.gateway.quietSince = time.Now().Add(r.gateway.settleTime)
		r.gateway.onSecond = func(second time.Time, calls int, quiet bool) {
			if calls > limit || quiet && calls > quietLimit {
				r.t.Errorf("%d calls in the second %v, quiet: %v; want at most %d, and at most %d if quiet",
					calls, second.UTC(), quiet, limit, quietLimit)
			}
		}
	})
}

// injectFault restarts the gateway, changes its address, or interrupts it for a time.
func (r *simRun) injectFault() {
	g := r.gateway
	switch kind := r.rng.IntN(6); kind {
	case 0, 1:
		g.restart(kind == 0)
	case 2:
		g.setExternal(netip.AddrFrom4([4]byte{45, 45, 45, byte(1 + r.rng.IntN(250))}))
	default:
		g.setDown(true)
		r.advance(time.Minute + time.Duration(r.rng.Int64N(int64(r.maxOutage))))
		if kind == 4 { // another host gets a port meanwhile
			g.set(func() { g.takenPorts = map[uint16]bool{uint16(1024 + r.rng.IntN(r.count)): true} })
		}
		if kind != 3 {
			g.restart(kind == 4)
		}
		g.setDown(false)
	}
}

// endFaults ends all faults. It then checks that all mappings are granted, and that the
// last events report the same.
func (r *simRun) endFaults() {
	r.gateway.set(func() { r.gateway.lossRate, r.gateway.reportsEpoch, r.gateway.takenPorts = 0, false, nil })
	r.gateway.restart(true)
	r.advance(10*time.Minute + 2*r.queueTime())
	synctest.Wait()
	r.events.compareWithMappings(r.mappings)
	for _, m := range r.mappings {
		if err := m.Err(); err != nil || len(m.Grants()) == 0 {
			r.t.Errorf("%v: %v", m, err)
		}
		for _, granted := range m.Grants() {
			row, found := r.gateway.rows[simKey{granted.Protocol, granted.Internal.Port()}]
			if !found || row.external != granted.External.Port() || !row.active(time.Now()) {
				r.t.Errorf("%v: the gateway has %v", m, row)
			}
		}
	}
	reportProblems(r.t, r.gateway.absences.problems)
	reportProblems(r.t, r.events.problems)
}

// shutdown checks that the gateway has no mappings after Shutdown.
func (r *simRun) shutdown() {
	maxCalls := forward.MaxCalls
	if r.checks {
		maxCalls++ // a check is made in parallel
	}
	if n := r.gateway.maxInFlight; n > maxCalls {
		r.t.Errorf("%d concurrent calls", n)
	}
	r.gateway.set(func() { r.gateway.quietSince = time.Now().Add(day) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := r.forwarder.Shutdown(ctx); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	if n := len(r.gateway.rows); n != 0 {
		r.t.Errorf("after Shutdown the gateway has %d mappings", n)
	}
	if n := r.gateway.maxInFlight; n > maxCalls+1 { // a pending deletion is attempted in parallel
		r.t.Errorf("%d concurrent calls during Shutdown", n)
	}
}

// reportProblems reports the first problems as errors, and the number of the others.
func reportProblems(t *testing.T, problems []string) {
	const limit = 10
	for _, problem := range problems[:min(limit, len(problems))] {
		t.Error(problem)
	}
	if more := len(problems) - limit; more > 0 {
		t.Error(fmt.Sprint("and ", more, " more problems"))
	}
}

// TestSimulationRepeats checks that two runs with one seed send the same calls at the
// same times.
//
// The scheduler may run goroutines that are ready at the same time in any order, so no
// event may depend on another event at that time. The simulation ensures this: all goroutines are
// idle before each fault, and each call takes a different number of nanoseconds. The
// mappings are of one kind. Mappings with Both, and mappings with the same internal port,
// share locks, for which two goroutines may wait at the same time.
func TestSimulationRepeats(t *testing.T) {
	s := simulation{
		count: 50, duration: day, lossRate: 0.3, faultInterval: 3 * time.Hour, maxOutage: 3 * time.Hour, lifetime: 2 * time.Hour, recordCalls: true,
	}
	seed := testseed.Of(t)
	var runs [2][]simCall
	for i := range runs {
		synctest.Test(t, func(t *testing.T) { runs[i] = s.run(t, seed) })
		// Several goroutines send the calls of the same time, in any order.
		slices.SortStableFunc(runs[i], simCall.compare)
	}
	for i := range max(len(runs[0]), len(runs[1])) {
		if a, b := callText(runs[0], i), callText(runs[1], i); a != b {
			t.Fatalf("two runs with seed %d differ: call %d of the first is %s, of the second %s", seed, i, a, b)
		}
	}
}

// callText returns the n-th call as text.
func callText(calls []simCall, n int) string {
	if n >= len(calls) {
		return "missing"
	}
	c := calls[n]
	return fmt.Sprintf("%s of %v port %d, call %d for this mapping, at %v", c.op, c.key.protocol, c.key.port, c.serial, c.at.UTC())
}

func (c simCall) compare(d simCall) int {
	return cmp.Or(c.at.Compare(d.at), cmp.Compare(c.key.port, d.key.port), cmp.Compare(c.key.protocol, d.key.protocol),
		cmp.Compare(c.serial, d.serial))
}

// eventChecker checks that each event of a mapping is consistent with the event before
// it.
type eventChecker struct {
	mu       sync.Mutex
	last     map[*forward.Mapping]forward.Event
	count    map[forward.EventKind]int
	problems []string
}

func newEventChecker() *eventChecker {
	return &eventChecker{last: map[*forward.Mapping]forward.Event{}, count: map[forward.EventKind]int{}}
}

func (c *eventChecker) record(e forward.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[e.Kind]++
	previous := c.last[e.Mapping]
	if e.Kind != forward.EventFailed { // EventFailed does not change the grants
		c.last[e.Mapping] = e
	}
	if problem := sequenceError(previous, e); problem != "" {
		c.problems = append(c.problems, fmt.Sprintf("%v: %v after %v: %s", e.Mapping, e.Kind, previous.Kind, problem))
	}
}

// found returns the problems so far.
func (c *eventChecker) found() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.problems
}

// sequenceError returns why an event cannot follow the previous one, or an empty string.
// The zero Event precedes the first event.
func sequenceError(previous, e forward.Event) string {
	if e.Kind == forward.EventFailed {
		switch {
		case e.Reason == "":
			return "no reason"
		case !sameGrants(previous.Grants, e.Grants):
			return fmt.Sprintf("Grants is %v, want %v as before", e.Grants, previous.Grants)
		}
		return ""
	}
	granted := previous.Kind != 0 && previous.Kind != forward.EventLost
	var valid bool
	switch e.Kind {
	case forward.EventMapped:
		valid = previous.Kind == 0
	case forward.EventRestored:
		valid = previous.Kind == forward.EventLost
	case forward.EventChanged, forward.EventLost:
		valid = granted
	}
	switch {
	case !valid:
		return "not allowed in this state"
	case e.Time.Before(previous.Time):
		return "its time is earlier"
	case !sameGrants(previous.Grants, e.Previous):
		return fmt.Sprintf("Previous is %v, want %v", e.Previous, previous.Grants)
	case e.Kind == forward.EventChanged && sameGrants(e.Grants, e.Previous):
		return "nothing changed"
	case (len(e.Grants) == 0) != (e.Kind == forward.EventLost):
		return fmt.Sprintf("Grants is %v", e.Grants)
	case len(e.Grants) == 2 && e.Grants[0].External.Port() != e.Grants[1].External.Port():
		return fmt.Sprintf("the protocols have different ports: %v", e.Grants)
	}
	return ""
}

// sameGrants reports whether the endpoints and protocols of two lists are equal.
func sameGrants(a, b []backends.Mapping) bool {
	return slices.EqualFunc(a, b, func(a, b backends.Mapping) bool {
		return a.External == b.External && a.Internal == b.Internal && a.Protocol == b.Protocol
	})
}

// compareWithMappings checks that the last event of each mapping reports the same grants
// as the mapping.
func (c *eventChecker) compareWithMappings(ms []*forward.Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range ms {
		if state := m.Grants(); !sameGrants(c.last[m].Grants, state) {
			c.problems = append(c.problems, fmt.Sprintf("%v: the last event, %v, reports %v, Grants returns %v", m, c.last[m].Kind, c.last[m].Grants, state))
		}
	}
}

// The limits of how long an active mapping may be absent on a gateway that replies, if no
// call is lost. They depend on the cause:
//
//   - an announced restart: the delay of the next round of verification;
//   - a restart without an announcement: the time until the next renewal, which is after
//     five eighths of the lifetime at the latest (a lifetime counts as one day at
//     most; RFC 6887, section 11.2.1), or until the next check of a mapping without an
//     end;
//   - a lease that expired during an outage: the longest pause between attempts.
//
// The time in the queue behind all other mappings is added to each limit. Each lost call
// adds a pause. Before the lease expires, the end of the lease is the upper limit.
const (
	maxRecoveryTime = 15 * time.Second
	maxRetryTime    = time.Minute + time.Minute/8 + replyTimeout + maxLatency
	maxCheckTime    = 20*time.Minute + 20*time.Minute/8

	// How long the repair after an unannounced restart may take if the gateway is checked:
	// after an outage of at most silentTime, and after a longer one.
	maxRepairTime     = 45 * time.Second
	silentTime        = 15 * time.Minute
	maxLateRepairTime = 4*forward.DefaultCheckEvery + 15*time.Second
)

// absence describes why the gateway does not have a mapping, and since what time.
type absence struct {
	kind      string
	since     time.Time
	lostCalls int // calls lost since then
}

// simLease records one mapping and its absence.
type simLease struct {
	row      simRow
	lifetime time.Duration
	absence  absence // zero: the gateway has the mapping, unless it expired
}

// absenceLog records which mappings the gateway should have but does not have. The lock
// of the gateway guards it.
type absenceLog struct {
	reachableSince   time.Time // end of the last outage
	unreachableSince time.Time
	lossRate         float64
	outage           time.Duration // duration of the last outage
	checked          bool          // the Forwarder checks the gateway
	queueTime        time.Duration
	leases           map[simKey]*simLease
	longest          map[string]time.Duration
	problems         []string
}

func newAbsenceLog() *absenceLog {
	return &absenceLog{leases: map[simKey]*simLease{}, longest: map[string]time.Duration{}}
}

// restarted records a restart.
func (a *absenceLog) restarted(now time.Time) {
	for _, l := range a.leases {
		if l.absenceAt(now).kind == "" {
			l.absence = absence{kind: "unannounced restart", since: now}
		}
	}
}

// announced records that the gateway announced its restart.
func (a *absenceLog) announced(now time.Time) {
	for _, l := range a.leases {
		if l.absence.kind == "unannounced restart" {
			l.absence.kind, l.absence.since, l.absence.lostCalls = "announced restart", now, 0
		}
	}
}

// outageEnded records the end of an outage. A call may have been lost meanwhile.
func (a *absenceLog) outageEnded(now time.Time) {
	a.reachableSince, a.outage = now, now.Sub(a.unreachableSince)
	for _, l := range a.leases {
		l.absence = l.absenceAt(now)
		if l.absence.kind != "" {
			l.absence.lostCalls = 1
		}
	}
}

// checkLost records a lost check, which delays all mappings.
func (a *absenceLog) checkLost() {
	for _, l := range a.leases {
		l.absence.lostCalls++
	}
}

// callLost records a lost call. If two protocols are one unit, the loss of one call also
// delays the other.
func (a *absenceLog) callLost(k simKey) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if l := a.leases[simKey{p, k.port}]; l != nil {
			l.absence.lostCalls++
		}
	}
}

// deleted records that a mapping was deleted.
func (a *absenceLog) deleted(k simKey) { delete(a.leases, k) }

// absenceAt returns why the gateway does not have the mapping, and since what time. The
// zero value means that it has the mapping.
func (l *simLease) absenceAt(now time.Time) absence {
	if l.absence.kind == "" && !l.row.active(now) {
		return absence{"lease expired", l.row.expires, max(l.absence.lostCalls, 1)}
	}
	return l.absence
}

// granted records a grant, which ends an absence.
func (a *absenceLog) granted(k simKey, row simRow, lifetime time.Duration, now time.Time) {
	l := a.leases[k]
	if l == nil {
		a.leases[k] = &simLease{row: row, lifetime: lifetime}
		return
	}
	a.check(k, l, now)
	*l = simLease{row: row, lifetime: lifetime}
}

// check compares the duration of an absence with the allowed one.
func (a *absenceLog) check(k simKey, l *simLease, now time.Time) {
	current := l.absenceAt(now)
	if current.kind == "" {
		return
	}
	since := current.since
	if since.Before(a.reachableSince) {
		since = a.reachableSince
	}
	duration := now.Sub(since)
	a.longest[current.kind] = max(a.longest[current.kind], duration)
	if allowed := a.allowed(current, l.lifetime); duration > allowed {
		a.problems = append(a.problems, fmt.Sprintf("%v port %d: absent for %v after %s and %d lost calls, allowed is %v (at %v)",
			k.protocol, k.port, duration, current.kind, current.lostCalls, allowed, now.UTC()))
	}
}

// checkAll checks all current absences.
func (a *absenceLog) checkAll(now time.Time) {
	for k, l := range a.leases {
		a.check(k, l, now)
	}
}

// allowed returns the allowed duration of an absence.
func (a *absenceLog) allowed(current absence, lifetime time.Duration) time.Duration {
	allowed := a.queueTime + time.Duration(current.lostCalls)*maxRetryTime
	switch {
	case current.kind == "announced restart":
		allowed += maxRecoveryTime
	case current.kind == "lease expired":
	case a.checked && a.lossRate == 0:
		const calls = 200
		allowed = maxRepairTime + calls*maxLatency
		if a.outage > silentTime {
			allowed = maxLateRepairTime + calls*maxLatency
		}
	case a.checked:
		allowed += forward.DefaultCheckEvery
		if a.outage > silentTime {
			allowed += maxLateRepairTime
		}
	case lifetime == backends.Forever:
		allowed += maxCheckTime
	case current.lostCalls == 0:
		allowed += min(lifetime, 24*time.Hour) * 5 / 8
	default:
		allowed += lifetime
	}
	return allowed
}

// The duration of a call to the simulated gateway: the latency of a reply, and the timeout
// if there is none.
const (
	minLatency   = 4 * time.Millisecond
	maxLatency   = 12 * time.Millisecond
	replyTimeout = 2 * time.Second
)

// simGateway is a gateway whose faults depend on a seed. It records the absences of
// mappings. The outcome of a call depends on the call alone, not on the order of the
// goroutines.
type simGateway struct {
	seed         uint64
	lossRate     float64 // fraction of lost calls; in half of them only the reply is lost
	reportsEpoch bool    // the epoch of its replies shows a restart that was not announced
	changes      chan backends.Change

	mu         sync.Mutex
	external   netip.Addr
	watched    bool
	down       bool
	announced  bool              // the last restart was announced
	rows       map[simKey]simRow // includes expired mappings
	takenPorts map[uint16]bool   // external ports of other hosts
	absences   *absenceLog

	callCounts    map[simKey]uint64
	calls         int
	inFlight      int
	maxInFlight   int
	second        time.Time     // the second that is being counted
	callsInSecond int           // calls in this second
	quietSince    time.Time     // from then on, only jitter causes bursts
	settleTime    time.Duration // how long the effects of a fault may last
	onSecond      func(second time.Time, calls int, calm bool)
	recorded      []simCall // all calls, if recordCalls is set
	recordCalls   bool
}

// simKey identifies a mapping of the gateway.
type simKey struct {
	protocol backends.Protocol
	port     uint16
}

// simRow is a mapping of the gateway.
type simRow struct {
	external uint16
	expires  time.Time // zero: never
}

func (r simRow) active(now time.Time) bool { return r.expires.IsZero() || now.Before(r.expires) }

func newSimGateway(seed uint64) *simGateway {
	return &simGateway{
		seed: seed, announced: true, external: externalAddr, absences: newAbsenceLog(),
		changes: make(chan backends.Change, 64), rows: map[simKey]simRow{}, takenPorts: map[uint16]bool{},
		callCounts: map[simKey]uint64{}, onSecond: func(time.Time, int, bool) {},
	}
}

func (g *simGateway) String() string { return "sim" }

func (g *simGateway) Close() error { return nil }

func (g *simGateway) Supports(r backends.Request) error { return r.Check() }

func (g *simGateway) ExternalAddr(context.Context) (netip.Addr, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.external, nil
}

func (g *simGateway) Watch(ctx context.Context, notify func(backends.Change)) error {
	g.set(func() { g.watched = true })
	defer g.set(func() { g.watched = false })
	for {
		select {
		case c := <-g.changes:
			notify(c)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// simCall is a call with everything that determines its outcome.
type simCall struct {
	at     time.Time
	key    simKey
	serial uint64 // number of the call for this mapping
	op     string
}

// callOutcome is the outcome of a call.
type callOutcome struct {
	latency                time.Duration
	replyLost, requestLost bool // the reply is lost; the request is lost
	announcedFirst         bool // the restart that the reply shows is reported before the reply
}

// drawOutcome draws the outcome of a call. It depends on the seed, the mapping and the
// number of the call. g.mu is held.
func (g *simGateway) drawOutcome(k simKey) callOutcome {
	g.callCounts[k]++
	source := uint64(k.protocol)<<56 | uint64(k.port)<<40 | g.callCounts[k]
	rng := rand.New(rand.NewPCG(g.seed, source))
	f := callOutcome{latency: minLatency + time.Duration(rng.Int64N(int64(maxLatency-minLatency)))}
	f.replyLost = rng.Float64() < g.lossRate
	f.requestLost, f.announcedFirst = f.replyLost && rng.IntN(2) == 0, rng.IntN(2) == 0
	return f
}

// call counts a call, lets time pass, and handles the call unless it is lost.
func (g *simGateway) call(ctx context.Context, op string, k simKey, handle func(now time.Time)) error {
	g.mu.Lock()
	f := g.drawOutcome(k)
	now := time.Now()
	g.count(now)
	if g.recordCalls {
		g.recorded = append(g.recorded, simCall{now, k, g.callCounts[k], op})
	}
	if g.inFlight++; g.inFlight > g.maxInFlight {
		g.maxInFlight = g.inFlight
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.inFlight--
		g.mu.Unlock()
	}()
	if err := sleepContext(ctx, f.latency); err != nil {
		return err
	}
	g.mu.Lock()
	silent := g.down || f.replyLost
	if !g.down && !f.requestLost {
		handle(time.Now())
	}
	reportsRestart := !silent && g.reportsEpoch && !g.announced
	if silent {
		g.absences.callLost(k)
		if op == "check" {
			g.absences.checkLost()
		}
	}
	g.mu.Unlock()
	switch {
	case reportsRestart && f.announcedFirst:
		g.announceRestart()
		return sleepContext(ctx, announceDelay)
	case reportsRestart:
		time.AfterFunc(announceDelay, g.announceRestart)
		return nil
	case !silent:
		return nil
	}
	if err := sleepContext(ctx, replyTimeout+f.latency); err != nil {
		return err
	}
	return fmt.Errorf("sim: %w", backends.ErrNoReply)
}

// count counts the calls of each second. g.mu is held.
func (g *simGateway) count(now time.Time) {
	g.calls++
	if second := now.Truncate(time.Second); !second.Equal(g.second) {
		g.onSecond(g.second, g.callsInSecond, g.second.After(g.quietSince))
		g.second, g.callsInSecond = second, 0
	}
	g.callsInSecond++
}

// byEpoch is the reason of a change that the epoch of a reply shows.
const byEpoch = "epoch of a reply"

// announceDelay is the time between a reply and the notification that its epoch shows a
// restart. If both had the same time, their order would not depend on the seed.
const announceDelay = time.Nanosecond

// announceRestart reports that the epoch of a reply shows a restart, unless an earlier
// reply has shown it.
func (g *simGateway) announceRestart() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.announced {
		g.announce(backends.Restarted, byEpoch)
	}
}

// announce announces a change. It is lost if no client listens. g.mu is held.
func (g *simGateway) announce(kind backends.ChangeKind, reason string) {
	g.quietSince = time.Now().Add(g.settleTime)
	if !g.watched {
		return
	}
	if kind == backends.Restarted {
		g.announced = true
		if !g.absences.checked || reason != byEpoch { // otherwise the absence began with the restart
			g.absences.announced(time.Now())
		}
	}
	g.changes <- backends.Change{Kind: kind, External: g.external, Reason: reason}
}

func (g *simGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	k := simKey{r.Protocol, r.Internal.Port()}
	m := backends.Mapping{
		Backend: "sim", Gateway: simAddr, Protocol: r.Protocol,
		Internal: netip.AddrPortFrom(localAddr, r.Internal.Port()), Lifetime: r.Lifetime, Granted: time.Now(),
	}
	err := g.call(ctx, fmt.Sprintf("map to %d for %v", r.External.Port(), r.Lifetime), k, func(now time.Time) {
		port := g.choosePort(k, r.External.Port())
		m.External = netip.AddrPortFrom(g.external, port)
		row := simRow{external: port}
		if r.Lifetime != backends.Forever {
			row.expires = now.Add(r.Lifetime)
		}
		g.absences.granted(k, row, r.Lifetime, now)
		g.rows[k] = row
	})
	return m, err
}

var simAddr = netip.MustParseAddrPort("192.0.2.1:5351")

// choosePort returns the external port to grant. Another host may have the suggested one.
// g.mu is held.
func (g *simGateway) choosePort(k simKey, suggested uint16) uint16 {
	if row, found := g.rows[k]; found && row.external != 0 && !g.takenPorts[row.external] {
		return row.external
	}
	for g.takenPorts[suggested] {
		suggested += 20000
	}
	return suggested
}

func (g *simGateway) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.External = m.External
	return g.Map(ctx, r)
}

func (g *simGateway) Unmap(ctx context.Context, m backends.Mapping) error {
	k := simKey{m.Protocol, m.Internal.Port()}
	return g.call(ctx, "unmap", k, func(time.Time) {
		delete(g.rows, k)
		g.absences.deleted(k)
	})
}

// checkedSimGateway is a simGateway whose epoch can be requested.
type checkedSimGateway struct{ *simGateway }

func (g checkedSimGateway) Check(ctx context.Context, _ backends.Mapping) error {
	changed := false
	err := g.call(ctx, "check", simKey{}, func(time.Time) { changed = g.reportsEpoch && !g.announced })
	switch {
	case err != nil:
		return err
	case changed:
		return errors.New("sim: the gateway has restarted")
	}
	return fmt.Errorf("sim: %w", backends.ErrUnsupported)
}

// restart makes the gateway forget its mappings, and announces this if announced is set.
func (g *simGateway) restart(announced bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.rows)
	g.absences.restarted(time.Now())
	g.announced = false
	if announced {
		g.announce(backends.Restarted, "announcement")
	}
}

// setDown starts or ends an outage.
func (g *simGateway) setDown(down bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = down
	g.quietSince = time.Now().Add(1000 * time.Hour)
	if down {
		g.absences.unreachableSince = time.Now()
	} else {
		g.absences.outageEnded(time.Now())
		g.quietSince = time.Now().Add(g.settleTime)
	}
}

// setExternal changes the external address of the gateway.
func (g *simGateway) setExternal(addr netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.external = addr
	g.announce(backends.AddressChanged, "announcement")
}

// set changes the gateway while its lock is held.
func (g *simGateway) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

var _ interface {
	backends.Backend
	backends.Watcher
} = (*simGateway)(nil)
