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

// Key identifies an Owner: there is one per gateway, as one of this host's addresses
// sees it, or per ready-made backend.
type Key struct {
	Gateway netip.AddrPort // with the port that was named, or the protocols' own
	Local   netip.Addr     // the effective source; the zero Addr: not known
}

// of returns what identifies the owner of a backend: a ready-made one is a gateway of its
// own.
func (k Key) of(config BackendConfig) any {
	if config.Ready != nil && k == (Key{}) {
		return config.Ready
	}
	return k
}

// Registry holds the owners of a process. A gateway cannot tell two Forwarders of one
// host apart, so they share its owner.
type Registry struct {
	jitter func(time.Duration) time.Duration

	mu     sync.Mutex
	owners map[any]*Owner // by Key, and by ready-made backend
	ended  []endedOwner   // the oldest first
}

// endedOwner is the deletions that an owner could not finish before it ended.
type endedOwner struct {
	key     any
	deletes []unfinishedDelete
}

// maxEnded is for how many ended owners their pending deletions are kept.
const maxEndedOwners = 16

// NewRegistry returns an empty registry. Jitter returns a duration from 0 to its
// argument, by which renewals and retries are spread.
func NewRegistry(jitter func(time.Duration) time.Duration) *Registry {
	return &Registry{jitter: jitter, owners: map[any]*Owner{}}
}

// Owner owns all state of one gateway. Its loop alone changes what is below it.
type Owner struct {
	key      Key
	registry *Registry
	refs     int // guarded by the registry's lock
	start    time.Time
	ctx      context.Context //nolint:containedctx // the owner's life; requests run under it
	cancel   context.CancelCauseFunc
	work     ctxsync.Calls // flows, watches and probes
	answered atomic.Int64  // when the gateway last answered a deletion, in ns since start
	sinks    atomic.Pointer[[]Sink]

	loop           Loop
	backends       []*Backend
	clients        []*Client
	groups         map[groupKey]*group
	runningFlows   int                    // flows that count for MaxCalls
	waitingFlows   [ctxsync.Check][]*flow // the first flows of their groups
	unassigned     []unfinishedDelete     // of an owner before
	pendingDeletes []*entry               // pending deletions and restored entries, in order
	retryTimer     Timer                  // of these
	retryRunning   bool
	currentProbe   *probeRun
	portsVary      bool // an entry may have another internal port than its group
}

func newOwner(r *Registry, key Key) *Owner {
	o := &Owner{key: key, registry: r, groups: map[groupKey]*group{}}
	o.start = time.Now().Add(-time.Hour) // so that no time of a grant is 0
	o.retryTimer.Fire = o.retryDeletes
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	return o
}

// Join returns a client of the owner of a gateway, which starts with its first client.
// Configs are the backends that the client uses, the preferred first. Join does no
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
	var inherited []unfinishedDelete
	r.ended = slices.DeleteFunc(r.ended, func(e endedOwner) bool {
		matches := slices.Contains(keys, e.key)
		if matches {
			inherited = append(inherited, e.deletes...)
		}
		return matches
	})
	o.refs++
	r.mu.Unlock()
	c := &Client{owner: o, sink: sink}
	var err error
	o.loop.Do(func() {
		err = o.addClient(c, configs)
		o.takeOver(inherited)
	})
	if err != nil {
		c.Discard()
		return nil, err
	}
	return c, nil
}

// join adds a client, with its backends.
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
	o.reassignDeletes(nil)
	return nil
}

// clientOf returns a client that uses a backend, or nil. One that is being closed comes
// first: it attempts a deletion at once, and tells its user if that fails.
func (o *Owner) clientOf(b *Backend) (found *Client) {
	for _, c := range o.clients {
		if slices.Contains(c.backends, b) && (found == nil || c.closing && !found.closing) {
			found = c
		}
	}
	return found
}

// part is the inverse of join.
func (o *Owner) removeClient(c *Client) {
	o.clients = without(o.clients, c)
	o.publishSinks()
	o.reassignDeletes(c)
	for _, e := range o.allEntries() { // what others hold too is theirs to delete
		if slices.ContainsFunc(e.holders, func(h *Handle) bool { return !c.owns(h) }) {
			e.holders = slices.DeleteFunc(e.holders, c.owns)
		}
	}
}

// handOver makes other clients answer for the deletions of a client that has left. Nil
// stands for those that nobody answers for.
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

// leave is the end of Join: the last client ends the owner, and waits for that. What the
// owner could not delete is left to those that took its place meanwhile or will.
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

// inherit takes over deletions that ended owners could not finish. What no client has a
// backend for is kept for those to come.
func (o *Owner) takeOver(deletes []unfinishedDelete) {
	o.unassigned = append(o.unassigned, deletes...)
	for _, c := range o.clients {
		o.unassigned = slices.DeleteFunc(o.unassigned, c.takeOver)
	}
}

// stop ends the flows, the watches, the backends and the loop, and returns the deletions
// that remain. A request whose backend ignores its context is not awaited longer than ctx.
func (o *Owner) stop(ctx context.Context) (unfinished []endedOwner) {
	o.cancel(net.ErrClosed)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, b := range o.backends {
			if b.config.Ready == nil { // a ready-made backend is its maker's to close
				_ = b.Close()
			}
		}
		o.work.Close(net.ErrClosed)
	}()
	select {
	case <-closed:
	case <-ctx.Done():
	}
	o.loop.Do(func() { unfinished = o.unfinishedDeletes() })
	o.loop.Stop()
	return unfinished
}

// spawn runs work on a goroutine that stop waits for. It returns false if the owner has
// ended; then the work is not done.
func (o *Owner) spawn(work func()) bool {
	_, end, err := o.work.Begin(o.ctx)
	if err != nil {
		return false
	}
	go func() {
		defer end()
		work()
	}()
	return true
}

// publishSinks makes the sinks known to those who log.
func (o *Owner) publishSinks() {
	sinks := make([]Sink, len(o.clients))
	for i, c := range o.clients {
		sinks[i] = c.sink
	}
	o.sinks.Store(&sinks)
}

// log returns a logger for what concerns all clients.
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

// Backends log flat records only, with the attributes in each.
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h logHandler) WithGroup(string) slog.Handler      { return h }
