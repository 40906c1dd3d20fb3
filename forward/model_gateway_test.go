package forward_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

const (
	modelReadyMade       = 2                     // number of gateways that are ready-made backends; the others are for default routes
	modelLoss            = 2                     // percentage of lost requests, and of lost replies
	modelMaxLatency      = 30 * time.Millisecond // longest latency of a reply
	modelMinTimeout      = 4 * time.Second       // shortest timeout of a backend; the longest is three times as long
	modelFirstRandomPort = 49152                 // lowest port that Enable tries if other ports are taken
)

// modelAddrs are the addresses of the gateways, and the addresses of this host that they
// see. One gateway sees this host with two addresses, and counts as two gateways.
var modelAddrs = []struct{ gateway, local string }{
	{"198.51.100.1", "198.51.100.10"},
	{"198.51.100.2", "198.51.100.10"},
	{"203.0.113.1", "203.0.113.10"},
	{"203.0.113.1", "203.0.113.20"},
	{"203.0.113.2", "203.0.113.10"},
}

// modelKey identifies a row of a gateway.
type modelKey struct {
	protocol backends.Protocol
	internal uint16
}

// keyOf returns the key of a mapping.
func keyOf(m backends.Mapping) modelKey { return modelKey{m.Protocol, m.Internal.Port()} }

// modelRow is a mapping that a gateway has.
type modelRow struct {
	external         uint16
	expires          time.Time // zero: forever
	holders          []*modelForwarder
	requesters       []*modelForwarder // one of these Forwarders requested it, if there are any
	mayRemain        bool              // it may remain until its lifetime ends
	heldByOnce       bool              // it may remain, since a mapping with Once holds it
	deleteUnanswered bool              // a deletion got no reply, or a Shutdown ended before the deletion
	inCloseError     bool              // a Shutdown reported that it remains
	knownUntil       time.Time         // expiry according to the last reply; zero: no reply, or forever
	unrequestedSince time.Time         // since when no handle requests it; zero: a handle requests it
}

// modelRecord has the row of one key at one gateway, if there is one, and the history of
// its requests.
type modelRecord struct {
	row             *modelRow
	serial          uint64 // number of requests so far
	inFlight        int
	unconfirmed     bool      // a request was handled, and no reply has arrived since
	portUnconfirmed bool      // a grant without a reply may have another port, even after later refusals
	lastUnanswered  time.Time // time of the last request without a reply
	lastReply       time.Time // time of the last reply
	changedAt       time.Time // when the gateway last changed the row without a request
	announced       bool      // the gateway announced the change as a restart
}

// live returns the row unless it has expired.
func (r *modelRecord) live(now time.Time) *modelRow {
	if r.row == nil || !r.row.expires.IsZero() && !now.Before(r.row.expires) {
		return nil
	}
	return r.row
}

func (r *modelRecord) String() string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.UTC().Format(modelTimeFormat)
	}
	row := "nothing"
	if r.row != nil {
		row = fmt.Sprintf("port %d until %s, not requested since %s, deletion unanswered %v", r.row.external, at(r.row.expires), at(r.row.unrequestedSince), r.row.deleteUnanswered)
	}
	return fmt.Sprintf("%s (in flight %d, unconfirmed %v, last unanswered %s, last reply %s, changed %s, announced %v)",
		row, r.inFlight, r.unconfirmed, at(r.lastUnanswered), at(r.lastReply), at(r.changedAt), r.announced)
}

// modelGateway is a backend and its gateway in memory. The outcome of a request depends
// on the seed, the key, the number of the request, and the faults.
type modelGateway struct {
	world *modelWorld
	index int
	addr  netip.AddrPort
	local netip.Addr // address of this host as the gateway sees it

	mu          sync.Mutex
	external    netip.Addr
	records     map[modelKey]*modelRecord
	watchers    []chan backends.Change
	announcedAt time.Time // time of the last announced restart
	inUseSince  time.Time // since when handles report rows; zero: no handle does

	lossPercent      int             // percentage of lost requests, and of lost replies
	taken            map[uint16]bool // external ports of other hosts
	maxLifetime      time.Duration   // limit of granted lifetimes; 0: none
	dropsUntil       time.Time       // it drops requests until then
	repliesLostUntil time.Time       // its replies are lost until then
	refusesUntil     time.Time       // it refuses to map until then, with refusal
	refusal          error
	keepsUntil       time.Time // it refuses to delete until then
}

// newModelGateway returns a gateway without rows.
func newModelGateway(w *modelWorld, index int, gateway, local string) *modelGateway {
	return &modelGateway{
		world: w, index: index, lossPercent: modelLoss,
		addr: netip.AddrPortFrom(netip.MustParseAddr(gateway), 5351), local: netip.MustParseAddr(local),
		external: modelExternal(index, 0), records: map[modelKey]*modelRecord{}, taken: map[uint16]bool{},
	}
}

// modelExternal returns the n-th external address of a gateway.
func modelExternal(index, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{45, 45, byte(10 + index), byte(1 + n)})
}

// gateway returns the gateway that granted a mapping.
func (w *modelWorld) gateway(m backends.Mapping) *modelGateway {
	i := slices.IndexFunc(w.gateways, func(g *modelGateway) bool { return g.addr == m.Gateway && g.local == m.Internal.Addr() })
	return w.gateways[i]
}

func (g *modelGateway) String() string { return fmt.Sprint("model", g.index) }

func (g *modelGateway) Close() error { return nil } // the gateway is used again when the route is back

func (g *modelGateway) Supports(r backends.Request) error {
	if r.Remote.IsValid() {
		return fmt.Errorf("%v: %w: no peers", g, backends.ErrUnsupported)
	}
	return r.Check()
}

// record returns what is known about a key. g.mu is held.
func (g *modelGateway) record(k modelKey) *modelRecord {
	r := g.records[k]
	if r == nil {
		r = &modelRecord{}
		g.records[k] = r
	}
	return r
}

// modelOutcome is the outcome of a request.
type modelOutcome struct {
	latency     time.Duration // differs for each request, so that the order of replies depends on the seed
	requestLost bool          // the request is lost
	replyLost   bool          // the reply is lost, or there is none
}

// drawOutcome draws the outcome of the next request for a key. g.mu is held.
func (g *modelGateway) drawOutcome(k modelKey, r *modelRecord, now time.Time) modelOutcome {
	r.serial++
	internal := min(k.internal, modelFirstRandomPort) // a random port does not depend on the seed
	rng := rand.New(rand.NewPCG(g.world.seed<<8|uint64(g.index), uint64(k.protocol)<<56|uint64(internal)<<40|r.serial))
	f := modelOutcome{latency: 1 + time.Duration(rng.Int64N(int64(modelMaxLatency)))}
	loss := rng.IntN(100)
	f.requestLost = now.Before(g.dropsUntil) || loss < g.lossPercent
	f.replyLost = f.requestLost || now.Before(g.repliesLostUntil) || loss >= 100-g.lossPercent
	if f.replyLost {
		f.latency += modelMinTimeout + time.Duration(rng.Int64N(int64(2*modelMinTimeout)))
	}
	return f
}

// call sends a request. The gateway handles it at once, and replies later.
func (g *modelGateway) call(ctx context.Context, op string, k modelKey, handle func(time.Time, *modelRecord) error) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	g.mu.Lock()
	r := g.record(k)
	outcome := g.drawOutcome(k, r, now)
	r.inFlight++
	if !outcome.requestLost {
		err = handle(now, r)
	}
	g.mu.Unlock()
	g.world.trace("%v: %s %v %d: %+v %v", g, op, k.protocol, k.internal, outcome, err)
	ctxErr := g.world.pause(ctx, outcome.latency)
	g.mu.Lock()
	defer g.mu.Unlock()
	r.inFlight--
	if ctxErr == nil && !outcome.replyLost {
		r.unconfirmed, r.lastReply = false, time.Now()
		r.portUnconfirmed = r.portUnconfirmed && err != nil
		return err
	}
	r.lastUnanswered = time.Now()
	r.unconfirmed, r.portUnconfirmed = r.unconfirmed || !outcome.requestLost, r.portUnconfirmed || !outcome.requestLost && err == nil
	if r.row != nil && op == "unmap" {
		r.row.deleteUnanswered = true
	}
	if ctxErr != nil {
		return ctxErr
	}
	return fmt.Errorf("%v: %w", g, backends.ErrNoReply)
}

func (g *modelGateway) ExternalAddr(ctx context.Context) (addr netip.Addr, err error) {
	err = g.call(ctx, "address", modelKey{}, func(time.Time, *modelRecord) error {
		addr = g.external
		return nil
	})
	return addr, err
}

func (g *modelGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return g.grant(ctx, "map", r)
}

func (g *modelGateway) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.Protocol, r.Internal, r.External = m.Protocol, m.Internal, m.External
	return g.grant(ctx, "renew", r)
}

func (g *modelGateway) grant(ctx context.Context, op string, r backends.Request) (backends.Mapping, error) {
	k := modelKey{r.Protocol, r.Internal.Port()}
	m := backends.Mapping{
		Backend: g.String(), Gateway: g.addr, Protocol: r.Protocol, Internal: netip.AddrPortFrom(g.local, k.internal),
		Description: r.Description, Lifetime: r.Lifetime, Granted: time.Now(),
	}
	err := g.call(ctx, op, k, func(now time.Time, record *modelRecord) error {
		if now.Before(g.refusesUntil) {
			return fmt.Errorf("%v: %w", g, g.refusal)
		}
		port := g.choosePort(k, r.External.Port(), now)
		if r.Exact && port != r.External.Port() {
			return fmt.Errorf("%v: %w", g, backends.ErrConflict)
		}
		if g.maxLifetime != 0 {
			m.Lifetime = min(m.Lifetime, g.maxLifetime)
		}
		row := modelRow{external: port}
		if m.Lifetime != backends.Forever {
			row.expires = now.Add(m.Lifetime)
		}
		if previous := record.live(now); previous != nil {
			row.holders, row.heldByOnce, row.knownUntil = previous.holders, previous.heldByOnce, previous.knownUntil
			row.requesters = slices.Concat(previous.requesters, g.world.enabling(g, k))
			row.mayRemain = previous.mayRemain && !g.world.isRequested(g, k, false) // it may have been requested only to find the mapping to delete
		} else {
			row.requesters, row.heldByOnce = g.world.enabling(g, k), g.world.isRequestedOnce(g, k)
		}
		record.row = &row
		m.External = netip.AddrPortFrom(g.external, port)
		return nil
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	g.set(func() {
		if row := g.record(k).row; row != nil {
			row.knownUntil = m.Expires()
		}
	})
	return m, nil
}

// choosePort returns the external port to grant: the port that the key has, or else the
// suggested one. If another host or another key has it, the next free port is returned.
// g.mu is held.
func (g *modelGateway) choosePort(k modelKey, suggested uint16, now time.Time) uint16 {
	if row := g.record(k).live(now); row != nil && !g.taken[row.external] {
		return row.external
	}
	port := suggested
	for g.taken[port] || g.portUsed(k, port, now) {
		port++
	}
	return port
}

// portUsed reports whether another key has an external port. g.mu is held.
func (g *modelGateway) portUsed(k modelKey, port uint16, now time.Time) bool {
	for other, r := range g.records {
		if row := r.live(now); row != nil && other != k && other.protocol == k.protocol && row.external == port {
			return true
		}
	}
	return false
}

func (g *modelGateway) Unmap(ctx context.Context, m backends.Mapping) error {
	return g.call(ctx, "unmap", keyOf(m), func(now time.Time, r *modelRecord) error {
		if row := r.live(now); row != nil && now.Before(g.keepsUntil) {
			row.mayRemain = true
			return fmt.Errorf("%v: %w", g, backends.ErrNotAuthorized)
		}
		r.row = nil
		return nil
	})
}

func (g *modelGateway) Watch(ctx context.Context, notify func(backends.Change)) error {
	changes := make(chan backends.Change, 64)
	g.set(func() { g.watchers = append(g.watchers, changes) })
	defer g.set(func() {
		g.watchers = slices.DeleteFunc(g.watchers, func(c chan backends.Change) bool { return c == changes })
	})
	for {
		select {
		case c := <-changes:
			notify(c)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// set reads or changes the gateway while its lock is held.
func (g *modelGateway) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// keys returns the keys of the rows that have not expired, in order. g.mu is held.
func (g *modelGateway) keys(now time.Time) []modelKey {
	var keys []modelKey
	for k, r := range g.records {
		if r.live(now) != nil {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b modelKey) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.internal, b.internal))
	})
	return keys
}

var _ interface {
	backends.Backend
	backends.Watcher
} = (*modelGateway)(nil)

// injectFault injects a random fault at one gateway. Most faults end after some time.
func (w *modelWorld) injectFault() {
	g, kind := w.gateways[w.rng.IntN(len(w.gateways))], w.rng.IntN(16)
	duration := w.randDuration([]time.Duration{time.Second, 20 * time.Second, 5 * time.Minute}[w.rng.IntN(3)])
	until := time.Now().Add(duration)
	refusal := []error{backends.ErrNotAuthorized, backends.ErrNoResources, backends.ErrNetworkFailure, backends.ErrConflict}[w.rng.IntN(4)]
	address, choice := modelExternal(g.index, w.rng.IntN(5)), w.rng.IntN(100)
	w.trace("%v: fault %d for %v, refusal %v, address %v, choice %d", g, kind, duration, refusal, address, choice)
	switch kind {
	case 0, 1:
		g.set(func() { g.dropsUntil = until })
	case 2:
		g.set(func() { g.repliesLostUntil = until })
	case 3, 4:
		g.set(func() { g.refusesUntil, g.refusal = until, refusal })
	case 5, 6:
		g.restart(true)
	case 7:
		g.restart(false)
	case 8: // the announcement is late
		g.restart(false)
		since := time.Now()
		time.Sleep(min(duration, 30*time.Second))
		g.set(func() { g.announceRestart(since) })
	case 9:
		g.setExternal(address, choice < 50)
	case 10, 11:
		g.set(func() { g.takePort(choice) })
	case 12:
		g.set(func() { clear(g.taken) })
	case 13:
		g.set(func() { g.deleteRow(choice) })
	case 14:
		g.set(func() { g.maxLifetime = time.Duration(choice%3) * 90 * time.Second })
	case 15:
		g.set(func() { g.keepsUntil = time.Now().Add(min(duration, time.Second)) })
	}
}

// endFaults ends all faults.
func (g *modelGateway) endFaults() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for _, until := range []*time.Time{&g.dropsUntil, &g.repliesLostUntil, &g.refusesUntil, &g.keepsUntil} {
		if until.After(now) {
			*until = now
		}
	}
	g.maxLifetime, g.lossPercent = 0, 0
}

// answeringSince returns the time since which the gateway has replied to requests for a key,
// or now if it does not reply. g.mu is held.
func (g *modelGateway) answeringSince(r *modelRecord, now time.Time) time.Time {
	since := r.lastUnanswered
	for _, until := range []time.Time{g.dropsUntil, g.repliesLostUntil, g.refusesUntil} {
		if until.After(now) {
			return now
		}
		since = later(since, until)
	}
	return since
}

// later returns the later one of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// markChanged records that the gateway changed a row without a request. g.mu is held.
func (r *modelRecord) markChanged() { r.changedAt, r.announced = time.Now(), false }

// restart makes the gateway forget all rows.
func (g *modelGateway) restart(announced bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.records {
		r.row = nil
		r.markChanged()
	}
	if announced {
		g.announceRestart(time.Now())
	}
}

// announceRestart announces that rows were lost at a time. g.mu is held.
func (g *modelGateway) announceRestart(since time.Time) {
	g.announcedAt = time.Now()
	for _, r := range g.records {
		if !r.changedAt.After(since) {
			r.announced = len(g.watchers) > 0
		}
	}
	g.announce(backends.Change{Kind: backends.Restarted, Since: since})
}

// announce reports a change to all watchers. g.mu is held.
func (g *modelGateway) announce(c backends.Change) {
	c.Reason = "the model"
	for _, w := range g.watchers {
		w <- c
	}
}

// setExternal changes the external address of the gateway.
func (g *modelGateway) setExternal(addr netip.Addr, announced bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.external = addr
	for _, r := range g.records {
		r.markChanged()
	}
	if announced {
		g.announce(backends.Change{Kind: backends.AddressChanged, External: addr})
	}
}

// takePort gives the external port of one row to another host at the next renewal. g.mu
// is held.
func (g *modelGateway) takePort(choice int) {
	if keys := g.keys(time.Now()); len(keys) > 0 {
		g.taken[g.records[keys[choice%len(keys)]].row.external] = true
	}
}

// deleteRow deletes one row. g.mu is held.
func (g *modelGateway) deleteRow(choice int) {
	if keys := g.keys(time.Now()); len(keys) > 0 {
		r := g.records[keys[choice%len(keys)]]
		r.row = nil
		r.markChanged()
	}
}
