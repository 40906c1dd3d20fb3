package forward_test

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

var (
	externalAddr = netip.MustParseAddr("45.45.45.1")
	localAddr    = netip.MustParseAddr("192.0.2.10")
)

// fakeKey identifies a mapping of a fakeGateway by the internal port, or by the external
// port if the gateway represents UPnP.
type fakeKey struct {
	protocol backends.Protocol
	port     uint16
}

// fakeGateway is a backend and its gateway in memory. It works with the virtual time of
// synctest.
type fakeGateway struct {
	name string

	mu          sync.Mutex
	external    netip.Addr
	table       map[fakeKey]backends.Mapping
	taken       map[uint16]bool // external ports of other hosts, for any protocol
	maxLifetime time.Duration   // limit of granted lifetimes; 0: none
	requests    []string        // "map tcp 80", …
	sentAt      []time.Time     // times of requests
	changes     chan backends.Change

	// fail, if set, may return an error for a call. The gateway then does not handle it.
	fail func(op string, p backends.Protocol, port uint16) error
	// block makes calls wait until their context ends.
	block bool
	// sendsLate makes the delay of fail happen before the request is sent: Granted is the
	// time after the delay.
	sendsLate bool
	// internal, if set, is the internal address of mappings.
	internal netip.Addr
	// udpPort, if set, is the external port that UDP mappings get.
	udpPort uint16
}

// newFakeGateway returns a gateway without mappings that grants every request.
func newFakeGateway() *fakeGateway {
	return &fakeGateway{
		name: "memory", external: externalAddr,
		table: map[fakeKey]backends.Mapping{}, taken: map[uint16]bool{},
		changes: make(chan backends.Change, 8),
	}
}

// refuseDeletions makes deletions fail with err, except for those of one external port.
// Nil makes them succeed again.
func (gw *fakeGateway) refuseDeletions(err error, except uint16) {
	gw.set(func() {
		gw.fail = func(op string, _ backends.Protocol, suggested uint16) error {
			if op == "unmap" && suggested != except {
				return err
			}
			return nil
		}
	})
}

func (gw *fakeGateway) String() string { return gw.name }

func (gw *fakeGateway) Close() error { return nil }

func (gw *fakeGateway) Supports(r backends.Request) error {
	if r.Remote.IsValid() {
		return fmt.Errorf("%s: %w: no peers", gw.name, backends.ErrUnsupported)
	}
	return r.Check()
}

func (gw *fakeGateway) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	if err := gw.beginCall(ctx, "address", 0, 0); err != nil {
		return netip.Addr{}, err
	}
	gw.mu.Lock()
	defer gw.mu.Unlock()
	return gw.external, nil
}

// beginCall records a call, and returns the error if the call has to fail.
func (gw *fakeGateway) beginCall(ctx context.Context, op string, p backends.Protocol, suggested uint16) error {
	gw.mu.Lock()
	gw.requests = append(gw.requests, fmt.Sprintf("%s %v %d", op, p, suggested))
	gw.sentAt = append(gw.sentAt, time.Now())
	block, fail := gw.block, gw.fail
	gw.mu.Unlock()
	if block {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if fail != nil {
		if err := fail(op, p, suggested); err != nil {
			return fmt.Errorf("%s: %w", gw.name, err)
		}
	}
	return nil
}

func (gw *fakeGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return gw.grant(ctx, "map", r)
}

func (gw *fakeGateway) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.External = old.External
	return gw.grant(ctx, "renew", r)
}

func (gw *fakeGateway) grant(ctx context.Context, op string, r backends.Request) (backends.Mapping, error) {
	suggested, sent := r.External.Port(), time.Now()
	if err := gw.beginCall(ctx, op, r.Protocol, suggested); err != nil {
		return backends.Mapping{}, err
	}
	gw.mu.Lock()
	defer gw.mu.Unlock()
	if gw.sendsLate {
		sent = time.Now()
	}
	port := suggested
	for gw.taken[port] {
		port++
	}
	if gw.udpPort != 0 && r.Protocol == backends.UDP {
		port = gw.udpPort
	}
	if r.Exact && port != suggested {
		return backends.Mapping{}, fmt.Errorf("%s: %w", gw.name, backends.ErrConflict)
	}
	g := backends.Mapping{
		Backend: gw.name, Gateway: netip.MustParseAddrPort("192.0.2.1:5351"),
		Protocol: r.Protocol, Internal: netip.AddrPortFrom(cmp.Or(gw.internal, localAddr), r.Internal.Port()),
		External: netip.AddrPortFrom(gw.external, port), Description: r.Description,
		Lifetime: r.Lifetime, Granted: sent,
	}
	if gw.maxLifetime != 0 {
		g.Lifetime = min(g.Lifetime, gw.maxLifetime)
	}
	gw.table[gw.keyOf(g)] = g
	return g, nil
}

func (gw *fakeGateway) Unmap(ctx context.Context, g backends.Mapping) error {
	if err := gw.beginCall(ctx, "unmap", g.Protocol, g.External.Port()); err != nil {
		return err
	}
	gw.mu.Lock()
	defer gw.mu.Unlock()
	delete(gw.table, gw.keyOf(g))
	return nil
}

// keyOf returns the key of a mapping in the table.
func (gw *fakeGateway) keyOf(g backends.Mapping) fakeKey {
	if gw.name == upnp.Name {
		return fakeKey{g.Protocol, g.External.Port()}
	}
	return fakeKey{g.Protocol, g.Internal.Port()}
}

func (gw *fakeGateway) Watch(ctx context.Context, notify func(backends.Change)) error {
	for {
		select {
		case c := <-gw.changes:
			notify(c)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// restart makes the gateway forget all mappings and announce the restart.
func (gw *fakeGateway) restart() {
	gw.mu.Lock()
	gw.table = map[fakeKey]backends.Mapping{}
	gw.mu.Unlock()
	gw.changes <- backends.Change{Kind: backends.Restarted, Reason: "test"}
}

// live returns the mappings that have not expired.
func (gw *fakeGateway) live() []backends.Mapping {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	var out []backends.Mapping
	for _, g := range gw.table {
		if expires := g.Expires(); expires.IsZero() || time.Now().Before(expires) {
			out = append(out, g)
		}
	}
	return out
}

// takeCalls returns the calls since the last takeCalls.
func (gw *fakeGateway) takeCalls() []string {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	requests := gw.requests
	gw.requests, gw.sentAt = nil, nil
	return requests
}

// set changes the gateway while its lock is held.
func (gw *fakeGateway) set(change func()) {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	change()
}

// rows returns the mappings that have not expired, sorted, as "udp 9000→8000".
func (gw *fakeGateway) rows() []string {
	out := []string{}
	for _, g := range gw.live() {
		out = append(out, fmt.Sprintf("%v %d→%d", g.Protocol, g.External.Port(), g.Internal.Port()))
	}
	slices.Sort(out)
	return out
}

// failMapAt makes Map fail with err if one of these external ports is suggested.
func failMapAt(err error, ports ...uint16) func(string, backends.Protocol, uint16) error {
	return func(op string, _ backends.Protocol, suggested uint16) error {
		for _, port := range ports {
			if op == "map" && port == suggested {
				return err
			}
		}
		return nil
	}
}

// failMap makes every Map fail with err.
func failMap(err error) func(string, backends.Protocol, uint16) error {
	return func(op string, _ backends.Protocol, _ uint16) error {
		if op == "map" {
			return err
		}
		return nil
	}
}

// failAll makes every call fail with err.
func failAll(err error) func(string, backends.Protocol, uint16) error {
	return func(string, backends.Protocol, uint16) error { return err }
}

// noReplyFor makes calls for one external port fail with ErrNoReply.
func noReplyFor(port uint16) func(string, backends.Protocol, uint16) error {
	return func(_ string, _ backends.Protocol, suggested uint16) error {
		if suggested == port {
			return backends.ErrNoReply
		}
		return nil
	}
}

const (
	// dropRequest as a delay means that the gateway drops the request.
	dropRequest time.Duration = -1
	// backendTimeout is how long a backend that retransmits waits for a reply.
	backendTimeout = 13750 * time.Millisecond
)

// slowGateway is a fakeGateway that replies after a delay. It handles each request at
// once and replies later. Requests are sent one at a time.
type slowGateway struct {
	*fakeGateway
	inFlight chan struct{} // holds one element while a request is in flight

	// Guarded by fakeGateway.mu.
	delays        map[string]time.Duration // by operation and protocol, as "unmap tcp"
	ignoreContext bool                     // the backend returns only after the reply
	unmapReplies  int                      // number of deletions that get a reply; negative: all
	dropAddress   bool                     // requests for the external address are dropped
}

// newSlowGateway returns a gateway, and a Forwarder that uses only this gateway. The
// Forwarder is closed at the end of the test, which waits for every request.
func newSlowGateway(t *testing.T, delays map[string]time.Duration) (*slowGateway, *forward.Forwarder) {
	t.Helper()
	d := &slowGateway{fakeGateway: newFakeGateway(), inFlight: make(chan struct{}, 1), delays: delays, unmapReplies: -1}
	f := newForwarder(t, forward.Config{Backends: []backends.Backend{d}})
	t.Cleanup(func() {
		_ = f.Close()
		time.Sleep(time.Minute) // by then, a backend that ignores its context has returned
	})
	return d, f
}

// send sends one request and waits for the reply. If ctx ends first, the gateway has
// still handled the request.
func (d *slowGateway) send(ctx context.Context, op string, p backends.Protocol, handle func(context.Context) error) error {
	d.mu.Lock()
	delay, ignoreContext := d.delays[fmt.Sprintf("%s %v", op, p)], d.ignoreContext
	d.mu.Unlock()
	if ignoreContext {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case d.inFlight <- struct{}{}:
		defer func() { <-d.inFlight }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if delay == dropRequest || op == "unmap" && !d.takeUnmapReply() {
		if err := sleepContext(ctx, backendTimeout); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", d.name, backends.ErrNoReply)
	}
	result := handle(ctx)
	if err := sleepContext(ctx, delay); err != nil {
		return err
	}
	return result
}

// takeUnmapReply reports whether the next deletion gets a reply, and counts it.
func (d *slowGateway) takeUnmapReply() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unmapReplies > 0 {
		d.unmapReplies--
		return true
	}
	return d.unmapReplies < 0
}

// ExternalAddr does not wait for other requests.
func (d *slowGateway) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	d.mu.Lock()
	silent := d.dropAddress
	d.mu.Unlock()
	if !silent {
		return d.fakeGateway.ExternalAddr(ctx)
	}
	if err := sleepContext(ctx, backendTimeout); err != nil {
		return netip.Addr{}, err
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", d.name, backends.ErrNoReply)
}

func (d *slowGateway) Map(ctx context.Context, r backends.Request) (g backends.Mapping, err error) {
	err = d.send(ctx, "map", r.Protocol, func(ctx context.Context) (err error) {
		g, err = d.fakeGateway.Map(ctx, r)
		return err
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	return g, nil
}

func (d *slowGateway) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (g backends.Mapping, err error) {
	err = d.send(ctx, "renew", r.Protocol, func(ctx context.Context) (err error) {
		g, err = d.fakeGateway.Renew(ctx, old, r)
		return err
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	return g, nil
}

func (d *slowGateway) Unmap(ctx context.Context, g backends.Mapping) error {
	return d.send(ctx, "unmap", g.Protocol, func(ctx context.Context) error { return d.fakeGateway.Unmap(ctx, g) })
}

var _ interface {
	backends.Backend
	backends.Watcher
} = (*slowGateway)(nil)

// lossyGateway is a fakeGateway whose successful replies are lost until delivers is set.
type lossyGateway struct {
	*fakeGateway
	delivers atomic.Bool
}

func (u *lossyGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return u.reply(u.fakeGateway.Map(ctx, r))
}

func (u *lossyGateway) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return u.reply(u.fakeGateway.Renew(ctx, old, r))
}

// reply returns the reply, or ErrNoReply if the reply is lost.
func (u *lossyGateway) reply(granted backends.Mapping, err error) (backends.Mapping, error) {
	if err == nil && !u.delivers.Load() {
		return backends.Mapping{}, fmt.Errorf("%s: %w", u.name, backends.ErrNoReply)
	}
	return granted, err
}

// slowWatchGateway is a fakeGateway whose Watch returns one second after its context
// ended.
type slowWatchGateway struct{ *fakeGateway }

func (l slowWatchGateway) Watch(ctx context.Context, notify func(backends.Change)) error {
	err := l.fakeGateway.Watch(ctx, notify)
	time.Sleep(time.Second)
	return err
}

// foreverGateway is a slowWatchGateway that grants every mapping without an end.
type foreverGateway struct{ slowWatchGateway }

func (f foreverGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	r.Lifetime = backends.Forever
	return f.slowWatchGateway.Map(ctx, r)
}
