package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/internal/ctxsync"
)

// Key identifies an Owner. There is one owner per pair of gateway and local address, and one
// per ready-made backend.
type Key struct {
	Gateway netip.AddrPort // with the configured port, or the default port of NAT-PMP and PCP
	Local   netip.Addr     // the effective source address; the zero Addr if it is unknown
}

// of returns the key of the owner of a backend. A ready-made backend without a gateway has an
// owner of its own.
func (k Key) of(config BackendConfig) any {
	if config.Ready != nil && k == (Key{}) {
		return config.Ready
	}
	return k
}

// Registry holds the owners of a process. A gateway cannot distinguish two Forwarders on one
// host, so they share its owner.
type Registry struct {
	jitter func(time.Duration) time.Duration

	mu       sync.Mutex
	owners   map[any]*Owner  // by Key, or by ready-made backend
	ended    []endedOwner    // oldest first
	memories map[Key]*memory // also of gateways without an owner
	changes  uint64          // the number of changes of memories
}

// endedOwner holds the deletions that an owner did not finish before it ended.
type endedOwner struct {
	key     any
	deletes []unfinishedDelete
}

// maxEndedOwners is the largest number of ended owners whose unfinished deletions are kept.
const maxEndedOwners = 16

// NewRegistry returns an empty registry. The function jitter returns a duration between 0 and
// its argument; it spreads renewals and retries over time.
func NewRegistry(jitter func(time.Duration) time.Duration) *Registry {
	return &Registry{jitter: jitter, owners: map[any]*Owner{}, memories: map[Key]*memory{}}
}

// Owner owns all state of one gateway. Only code on its loop uses the fields below loop.
type Owner struct {
	key       Key
	registry  *Registry
	refs      int // the number of clients; guarded by the registry's lock
	start     time.Time
	ctx       context.Context //nolint:containedctx // lives as long as the owner; all requests use it
	cancel    context.CancelCauseFunc
	work      ctxsync.Calls // flows, watches and probes
	lastReply atomic.Int64  // time of the gateway's last reply to a deletion, in ns since start
	sinks     atomic.Pointer[[]Sink]

	loop           Loop
	backends       []*Backend
	programsErr    error // why Backend.programs is nil, or nil
	clients        []*Client
	groups         map[groupKey]*group
	runningFlows   int                        // the number of running flows that count towards MaxCalls
	waitingFlows   [ctxsync.Check + 1][]*flow // by priority: flows that are first in the queues of their groups
	unassigned     []unfinishedDelete         // deletions of earlier owners, for whose backends there is no client
	pendingDeletes []*entry                   // pending deletions and restored entries, in the order of attempts
	retryTimer     Timer                      // for pendingDeletes
	retryRunning   bool
	currentProbe   *probeRun
	checks         checks
	portsVary      bool // an entry may have an internal port that differs from its group's
}

func newOwner(r *Registry, key Key) *Owner {
	o := &Owner{key: key, registry: r, groups: map[groupKey]*group{}}
	o.start = time.Now().Add(-time.Hour) // so that the time of a grant is never 0
	o.retryTimer.Fire, o.checks.round.Fire, o.checks.lookUp.Fire = o.retryDeletes, o.startRound, o.lookUpNew
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	return o
}

// Join returns a new client of the owner of a gateway. The first client starts the owner. The
// configs name the backends that the client uses, the preferred one first. Join does no
// network I/O.
func (r *Registry) Join(key Key, configs []BackendConfig, sink Sink) (*Client, error) {
	var keys []any
	for _, config := range configs {
		keys = append(keys, key.of(config))
	}
	r.mu.Lock()
	var o *Owner
	for _, k := range keys {
		o = cmp.Or(o, r.owners[k])
	}
	if o == nil {
		o = newOwner(r, key)
	}
	for _, k := range keys {
		r.owners[k] = cmp.Or(r.owners[k], o)
	}
	var deletes []unfinishedDelete
	r.ended = slices.DeleteFunc(r.ended, func(e endedOwner) bool {
		matches := slices.Contains(keys, e.key)
		if matches {
			deletes = append(deletes, e.deletes...)
		}
		return matches
	})
	o.refs++
	r.mu.Unlock()
	c := &Client{owner: o, sink: sink}
	var err error
	o.loop.Do(func() {
		err = o.addClient(c, configs)
		o.takeOver(deletes)
	})
	if err != nil {
		c.Discard()
		return nil, err
	}
	return c, nil
}

// addClient adds a client and opens its backends.
func (o *Owner) addClient(c *Client, configs []BackendConfig) error {
	for _, config := range configs {
		i := slices.IndexFunc(o.backends, func(b *Backend) bool { return b.config == config })
		if i < 0 {
			b, err := config.open(o)
			if err != nil {
				return err
			}
			i, o.backends = len(o.backends), append(o.backends, b)
		}
		c.backends = append(c.backends, o.backends[i])
	}
	o.clients = append(o.clients, c)
	o.publishSinks()
	if o.programsErr != nil && len(o.clients) == 1 {
		o.log().Info("mappings are deleted even if another program of this user holds them", "err", o.programsErr)
	}
	o.reassignDeletes(nil)
	return nil
}

// clientOf returns a client that uses the backend, or nil. It prefers a client that is being
// closed, because that one attempts a deletion at once and reports a failure to its caller.
func (o *Owner) clientOf(b *Backend) (found *Client) {
	for _, c := range o.clients {
		if slices.Contains(c.backends, b) && (found == nil || c.closing && !found.closing) {
			found = c
		}
	}
	return found
}

// removeClient removes a client. Its deletions are assigned to other clients.
func (o *Owner) removeClient(c *Client) {
	o.clients = without(o.clients, c)
	o.publishSinks()
	o.reassignDeletes(c)
	for _, e := range o.allEntries() { // the other holders delete a shared entry
		if slices.ContainsFunc(e.holders, func(h *Handle) bool { return !c.owns(h) }) {
			e.holders = slices.DeleteFunc(e.holders, c.owns)
		}
	}
}

// reassignDeletes assigns the pending deletions of a removed client to other clients. If
// client is nil, it assigns the deletions that have no client.
func (o *Owner) reassignDeletes(client *Client) {
	for _, e := range o.allEntries() {
		if e.deletion == nil || e.deletion.client != client {
			continue
		}
		c := o.clientOf(e.backend)
		if e.deletion.client = c; c == nil {
			continue
		}
		if c.sink.RecordsChanged(); c.closing {
			c.retryNow(e)
		}
	}
}

// release removes a client from its owner. If it was the last one, release stops the owner
// and waits for that. A successor takes over the deletions that the owner did not finish: an
// owner that has replaced it already, or the next one for the same gateway.
func (r *Registry) release(ctx context.Context, c *Client) {
	o := c.owner
	r.mu.Lock()
	o.refs--
	last := o.refs == 0
	if last {
		maps.DeleteFunc(r.owners, func(_ any, other *Owner) bool { return other == o })
	}
	r.mu.Unlock()
	if !last {
		return
	}
	for _, ended := range o.stop(ctx) {
		r.mu.Lock()
		successor := r.owners[ended.key]
		if successor != nil {
			successor.refs++ // so that it does not end now
		} else {
			r.ended = append(r.ended, ended)
			r.ended = r.ended[max(0, len(r.ended)-maxEndedOwners):]
		}
		r.mu.Unlock()
		if successor != nil {
			successor.loop.Do(func() { successor.takeOver(ended.deletes) })
			r.release(ctx, &Client{owner: successor})
		}
	}
}

// takeOver adds deletions that ended owners did not finish. A deletion for whose backend
// there is no client is kept for later clients.
func (o *Owner) takeOver(deletes []unfinishedDelete) {
	o.unassigned = append(o.unassigned, deletes...)
	for _, c := range o.clients {
		o.unassigned = slices.DeleteFunc(o.unassigned, c.takeOver)
	}
}

// stop ends the flows, watches and backends and then the loop. It returns the unfinished
// deletions. It waits for the flows and backends until ctx ends at the latest, because a
// backend may ignore its own context.
func (o *Owner) stop(ctx context.Context) (unfinished []endedOwner) {
	o.cancel(net.ErrClosed)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, b := range o.backends {
			if b.config.Ready == nil { // the creator of a ready-made backend closes it
				_ = b.Close()
			}
		}
		o.work.Close(net.ErrClosed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
	}
	o.loop.Do(func() {
		unfinished = o.unfinishedDeletes()
		for _, e := range o.allEntries() {
			e.release()
		}
	})
	o.loop.Stop()
	return unfinished
}

// spawn runs work on a goroutine for which stop waits. It returns false, and work does not
// run, if the owner has ended.
func (o *Owner) spawn(work func()) bool {
	if !o.work.Add() {
		return false
	}
	go func() {
		defer o.work.End()
		work()
	}()
	return true
}

// publishSinks updates the list of sinks that logHandler reads.
func (o *Owner) publishSinks() {
	sinks := make([]Sink, len(o.clients))
	for i, c := range o.clients {
		sinks[i] = c.sink
	}
	o.sinks.Store(&sinks)
}

// log returns a logger whose records go to all clients.
func (o *Owner) log() *slog.Logger { return slog.New(logHandler{o}) }

// logHandler passes the log records of an owner and its backends to the clients.
type logHandler struct{ owner *Owner }

func (h logHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return slices.ContainsFunc(*h.owner.sinks.Load(), func(s Sink) bool { return s.Handler().Enabled(ctx, l) })
}

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	for _, s := range *h.owner.sinks.Load() {
		if s.Handler().Enabled(ctx, r.Level) {
			_ = s.Handler().Handle(ctx, r.Clone())
		}
	}
	return nil
}

// WithAttrs and WithGroup change nothing. Backends put all attributes into each record and
// use no groups.
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h logHandler) WithGroup(string) slog.Handler      { return h }
