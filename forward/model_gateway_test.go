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
	modelReady   = 2                     // gateways that are ready-made backends; the others are for default routes
	modelLoss    = 2                     // percent of requests that are lost, and of answers
	modelSlowest = 30 * time.Millisecond // an answer takes at most
	modelGiveUp  = 4 * time.Second       // a backend waits for an answer at least; at most it waits three times as long
	modelRandom  = 49152                 // the lowest of the ports that Enable tries if others are taken
)

// modelAddrs are the addresses of the gateways, and of this host as each sees it.
// One gateway sees this host under two addresses, and counts as two.
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

func keyOf(m backends.Mapping) modelKey { return modelKey{m.Protocol, m.Internal.Port()} }

// modelRow is a mapping that a gateway has.
type modelRow struct {
	external  uint16
	until     time.Time // zero: forever
	holders   []*modelForwarder
	makers    []*modelForwarder // one of these requested it, if there are any
	left      bool              // it may stay until its lifetime is over
	once      bool              // so may it, since a mapping of Once holds it
	undeleted bool              // a deletion was not answered, or a Shutdown ended before it
	reported  bool              // a Shutdown told that it remains
	known     time.Time         // until when the answers of the gateway granted it; zero: none did, or forever
	orphan    time.Time         // since when no handle wants it; zero: one does
}

// modelRecord is all that is known about one key at one gateway.
type modelRecord struct {
	row        *modelRow
	serial     uint64 // requests so far
	inFlight   int
	uncertain  bool      // a request was handled, and no answer arrived since
	untold     bool      // what was granted without an answer may be another port, also after refusals
	unanswered time.Time // the last request without an answer
	delivered  time.Time // the last answer
	stale      time.Time // when the gateway last changed the row without a request
	announced  bool      // it announced that this was a restart
}

// live returns the row unless it has expired.
func (r *modelRecord) live(now time.Time) *modelRow {
	if r.row == nil || !r.row.until.IsZero() && !now.Before(r.row.until) {
		return nil
	}
	return r.row
}

func (r *modelRecord) String() string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.UTC().Format(modelTime)
	}
	row := "nothing"
	if r.row != nil {
		row = fmt.Sprintf("port %d until %s, unwanted since %s, undeleted %v", r.row.external, at(r.row.until), at(r.row.orphan), r.row.undeleted)
	}
	return fmt.Sprintf("%s (in flight %d, uncertain %v, unanswered %s, delivered %s, stale %s, announced %v)",
		row, r.inFlight, r.uncertain, at(r.unanswered), at(r.delivered), at(r.stale), r.announced)
}

// modelGateway is a backend and its gateway, in memory. What happens to a request
// depends on the seed, the key, the number of the request, and the faults.
type modelGateway struct {
	world *modelWorld
	index int
	addr  netip.AddrPort
	local netip.Addr // of this host, as the gateway sees it

	mu       sync.Mutex
	external netip.Addr
	records  map[modelKey]*modelRecord
	watchers []chan backends.Change
	told     time.Time // when it last announced a restart
	active   time.Time // since when handles report rows; zero: none does

	loss    int             // percent
	taken   map[uint16]bool // external ports of other hosts
	limit   time.Duration   // of lifetimes; 0: none
	silent  time.Time       // until when it drops requests
	mute    time.Time       // until when its answers are lost
	refuses time.Time       // until when it refuses to map, with refusal
	refusal error
	keeps   time.Time // until when it refuses to delete
}

func newModelGateway(w *modelWorld, index int, gateway, local string) *modelGateway {
	return &modelGateway{
		world: w, index: index, loss: modelLoss,
		addr: netip.AddrPortFrom(netip.MustParseAddr(gateway), 5351), local: netip.MustParseAddr(local),
		external: modelExternal(index, 0), records: map[modelKey]*modelRecord{}, taken: map[uint16]bool{},
	}
}

// modelExternal is the n-th external address of a gateway.
func modelExternal(index, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{45, 45, byte(10 + index), byte(1 + n)})
}

// gateway returns the gateway that granted a mapping.
func (w *modelWorld) gateway(m backends.Mapping) *modelGateway {
	i := slices.IndexFunc(w.gateways, func(g *modelGateway) bool { return g.addr == m.Gateway && g.local == m.Internal.Addr() })
	return w.gateways[i]
}

func (g *modelGateway) String() string { return fmt.Sprint("model", g.index) }
func (g *modelGateway) Close() error   { return nil } // it is used again when the route comes back

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

// modelFate is what happens to a request.
type modelFate struct {
	latency time.Duration // differs from request to request, so that the order of answers depends on the seed
	unheard bool          // the request is lost
	lost    bool          // the answer is lost, or not given
}

// fate draws what happens to the next request about a key. g.mu is held.
func (g *modelGateway) fate(k modelKey, r *modelRecord, now time.Time) modelFate {
	r.serial++
	internal := min(k.internal, modelRandom) // a random port does not depend on the seed
	rng := rand.New(rand.NewPCG(g.world.seed<<8|uint64(g.index), uint64(k.protocol)<<56|uint64(internal)<<40|r.serial))
	f := modelFate{latency: 1 + time.Duration(rng.Int64N(int64(modelSlowest)))}
	loss := rng.IntN(100)
	f.unheard = now.Before(g.silent) || loss < g.loss
	f.lost = f.unheard || now.Before(g.mute) || loss >= 100-g.loss
	if f.lost {
		f.latency += modelGiveUp + time.Duration(rng.Int64N(int64(2*modelGiveUp)))
	}
	return f
}

// call sends a request. The gateway handles it at once, and answers later.
func (g *modelGateway) call(ctx context.Context, op string, k modelKey, handle func(time.Time, *modelRecord) error) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	g.mu.Lock()
	r := g.record(k)
	fate := g.fate(k, r, now)
	r.inFlight++
	if !fate.unheard {
		err = handle(now, r)
	}
	g.mu.Unlock()
	g.world.trace("%v: %s %v %d: %+v %v", g, op, k.protocol, k.internal, fate, err)
	ended := g.world.pause(ctx, fate.latency)
	g.mu.Lock()
	defer g.mu.Unlock()
	r.inFlight--
	if ended == nil && !fate.lost {
		r.uncertain, r.delivered = false, time.Now()
		r.untold = r.untold && err != nil
		return err
	}
	r.unanswered = time.Now()
	r.uncertain, r.untold = r.uncertain || !fate.unheard, r.untold || !fate.unheard && err == nil
	if r.row != nil && op == "unmap" {
		r.row.undeleted = true
	}
	if ended != nil {
		return ended
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
		if now.Before(g.refuses) {
			return fmt.Errorf("%v: %w", g, g.refusal)
		}
		port := g.choose(k, r.External.Port(), now)
		if r.Exact && port != r.External.Port() {
			return fmt.Errorf("%v: %w", g, backends.ErrConflict)
		}
		if g.limit != 0 {
			m.Lifetime = min(m.Lifetime, g.limit)
		}
		row := modelRow{external: port}
		if m.Lifetime != backends.Forever {
			row.until = now.Add(m.Lifetime)
		}
		if before := record.live(now); before != nil {
			row.holders, row.once, row.known = before.holders, before.once, before.known
			row.makers = slices.Concat(before.makers, g.world.enabling(g, k))
			row.left = before.left && !g.world.wanted(g, k, false) // requested to find out what to delete
		} else {
			row.makers, row.once = g.world.enabling(g, k), g.world.wantedOnce(g, k)
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
			row.known = m.Expires()
		}
	})
	return m, nil
}

// choose returns the external port to grant: the one that the key has, or else the
// suggested one, unless another host or another key has it. g.mu is held.
func (g *modelGateway) choose(k modelKey, suggested uint16, now time.Time) uint16 {
	if row := g.record(k).live(now); row != nil && !g.taken[row.external] {
		return row.external
	}
	port := suggested
	for g.taken[port] || g.used(k, port, now) {
		port++
	}
	return port
}

// used reports whether another key has an external port. g.mu is held.
func (g *modelGateway) used(k modelKey, port uint16, now time.Time) bool {
	for other, r := range g.records {
		if row := r.live(now); row != nil && other != k && other.protocol == k.protocol && row.external == port {
			return true
		}
	}
	return false
}

func (g *modelGateway) Unmap(ctx context.Context, m backends.Mapping) error {
	return g.call(ctx, "unmap", keyOf(m), func(now time.Time, r *modelRecord) error {
		if row := r.live(now); row != nil && now.Before(g.keeps) {
			row.left = true
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

// set reads or changes the gateway under its lock.
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
