package forward_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// What a call to the simulated gateway takes: an answer comes after a while,
// and the wait for one that was lost is given up later.
const (
	fastest = 4 * time.Millisecond
	slowest = 12 * time.Millisecond
	noReply = 2 * time.Second
)

// simGateway is a gateway that misbehaves as a seed says, and keeps the books.
// What befalls a call depends on the call alone, not on which goroutine came
// first.
type simGateway struct {
	seed    uint64
	loss    float64 // of calls; half of the lost ones are done and not answered
	epoch   bool    // its answers tell of a restart that nothing else told of
	changes chan backends.Change

	mu       sync.Mutex
	external netip.Addr
	watched  bool
	down     bool
	told     bool              // of the last restart
	rows     map[simKey]simRow // also of mappings that ran out
	others   map[uint16]bool   // external ports that another host has
	absences *absences

	serial   map[simKey]uint64
	calls    int
	inFlight int
	peak     int
	second   time.Time     // that is being counted
	burst    int           // calls in it
	calm     time.Time     // from when on nothing but chance makes bursts
	storm    time.Duration // how long what happens takes to be over
	bursts   func(second time.Time, calls int, calm bool)
	asked    []simCall // all calls, if keeps
	keeps    bool
}

// simKey is what the gateway tells mappings apart by.
type simKey struct {
	protocol backends.Protocol
	port     uint16
}

// simRow is what the gateway has for one.
type simRow struct {
	external uint16
	until    time.Time // zero: for ever
}

func (r simRow) runs(now time.Time) bool { return r.until.IsZero() || now.Before(r.until) }

func newSimGateway(seed uint64) *simGateway {
	return &simGateway{
		seed: seed, told: true, external: external, absences: newAbsences(),
		changes: make(chan backends.Change, 64), rows: map[simKey]simRow{}, others: map[uint16]bool{},
		serial: map[simKey]uint64{}, bursts: func(time.Time, int, bool) {},
	}
}

func (g *simGateway) String() string                    { return "sim" }
func (g *simGateway) Close() error                      { return nil }
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

// simCall is a call, with all that decides about its outcome.
type simCall struct {
	at     time.Time
	about  simKey
	serial uint64 // of the calls about this mapping
	what   string
}

// fate is what befalls a call.
type fate struct {
	latency       time.Duration
	lost, unheard bool // the answer; the question, too
	overtaken     bool // by what its answer tells of a restart
}

// fateOf draws a call's fate from the seed, whom it is about and which of its
// calls it is. g.mu is held.
func (g *simGateway) fateOf(k simKey) fate {
	g.serial[k]++
	about := uint64(k.protocol)<<56 | uint64(k.port)<<40 | g.serial[k]
	rng := rand.New(rand.NewPCG(g.seed, about))
	f := fate{latency: fastest + time.Duration(rng.Int64N(int64(slowest-fastest)))}
	f.lost = rng.Float64() < g.loss
	f.unheard, f.overtaken = f.lost && rng.IntN(2) == 0, rng.IntN(2) == 0
	return f
}

// call counts a call, lets time pass, and does it unless it is lost.
func (g *simGateway) call(ctx context.Context, what string, k simKey, do func(now time.Time)) error {
	g.mu.Lock()
	f := g.fateOf(k)
	now := time.Now()
	g.count(now)
	if g.keeps {
		g.asked = append(g.asked, simCall{now, k, g.serial[k], what})
	}
	if g.inFlight++; g.inFlight > g.peak {
		g.peak = g.inFlight
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.inFlight--
		g.mu.Unlock()
	}()
	if err := pause(ctx, f.latency); err != nil {
		return err
	}
	g.mu.Lock()
	silent := g.down || f.lost
	if !g.down && !f.unheard {
		do(time.Now())
	}
	tells := !silent && g.epoch && !g.told
	if silent {
		g.absences.missed(k)
	}
	g.mu.Unlock()
	switch {
	case tells && f.overtaken:
		g.tell()
		return pause(ctx, overtaking)
	case tells:
		time.AfterFunc(overtaking, g.tell)
		return nil
	case !silent:
		return nil
	}
	if err := pause(ctx, noReply+f.latency); err != nil {
		return err
	}
	return fmt.Errorf("sim: %w", backends.ErrNoReply)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// count keeps the number of calls of each second. g.mu is held.
func (g *simGateway) count(now time.Time) {
	g.calls++
	if second := now.Truncate(time.Second); !second.Equal(g.second) {
		g.bursts(g.second, g.burst, g.second.After(g.calm))
		g.second, g.burst = second, 0
	}
	g.burst++
}

// overtaking is the time between an answer and the notice that its clock tells of a
// restart. At one moment, the order of the two would not depend on the seed.
const overtaking = time.Nanosecond

// tell makes an answer tell of a restart, unless another has told of it.
func (g *simGateway) tell() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.told {
		g.announce(backends.Restarted, "the clock of an answer")
	}
}

// announce tells of a change, which is lost if no client listens. g.mu is held.
func (g *simGateway) announce(kind backends.ChangeKind, reason string) {
	g.calm = time.Now().Add(g.storm)
	if !g.watched {
		return
	}
	if kind == backends.Restarted {
		g.told = true
		g.absences.told(time.Now())
	}
	g.changes <- backends.Change{Kind: kind, External: g.external, Reason: reason}
}

func (g *simGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	k := simKey{r.Protocol, r.Internal.Port()}
	m := backends.Mapping{
		Backend: "sim", Gateway: simAddr, Protocol: r.Protocol,
		Internal: netip.AddrPortFrom(here, r.Internal.Port()), Lifetime: r.Lifetime, Granted: time.Now(),
	}
	err := g.call(ctx, fmt.Sprintf("map to %d for %v", r.External.Port(), r.Lifetime), k, func(now time.Time) {
		port := g.free(k, r.External.Port())
		m.External = netip.AddrPortFrom(g.external, port)
		row := simRow{external: port}
		if r.Lifetime != backends.Forever {
			row.until = now.Add(r.Lifetime)
		}
		g.absences.granted(k, row, r.Lifetime, now)
		g.rows[k] = row
	})
	return m, err
}

var simAddr = netip.MustParseAddrPort("192.0.2.1:5351")

// free is the external port to grant: another host may have the one that is
// wished for. g.mu is held.
func (g *simGateway) free(k simKey, wish uint16) uint16 {
	if row, had := g.rows[k]; had && row.external != 0 && !g.others[row.external] {
		return row.external
	}
	for g.others[wish] {
		wish += 20000
	}
	return wish
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

// restart makes the gateway forget what it granted, and say so or not.
func (g *simGateway) restart(loud bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.rows)
	g.absences.forgotten(time.Now())
	g.told = false
	if loud {
		g.announce(backends.Restarted, "announcement")
	}
}

// cut cuts the gateway off, or connects it again.
func (g *simGateway) cut(off bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down = off
	g.calm = time.Now().Add(1000 * time.Hour)
	if !off {
		g.absences.reachable(time.Now())
		g.calm = time.Now().Add(g.storm)
	}
}

// move gives the gateway another external address.
func (g *simGateway) move(to netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.external = to
	g.announce(backends.AddressChanged, "announcement")
}

// set changes the gateway under its lock.
func (g *simGateway) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

var _ interface {
	backends.Backend
	backends.Watcher
} = (*simGateway)(nil)
