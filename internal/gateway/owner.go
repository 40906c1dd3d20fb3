package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/priority"
)

// MaxCalls bounds the requests in flight at once to one gateway, without those that a
// caller waits for.
const MaxCalls = 8

// Owner owns all state of one gateway. Its loop alone changes what is below it.
type Owner struct {
	key      Key
	registry *Registry
	clients  int // guarded by the registry's lock
	start    time.Time
	loop     *Loop
	ctx      context.Context //nolint:containedctx // the owner's life; requests run under it
	cancel   context.CancelCauseFunc
	work     sync.WaitGroup // ops, watches and probes
	answered atomic.Int64   // when the gateway last answered a deletion, in ns since start
	sinks    atomic.Pointer[[]Sink]

	// Owned by the loop.
	backends  []*Backend
	joined    []*Client
	groups    map[netip.AddrPort]*group
	running   int                     // ops that count for MaxCalls
	waiting   [priority.Check]opQueue // ops whose group is free
	inherited []remains               // of an owner before
	unsettled []*entry                // pending deletions and restored entries, in order
	retry     timerFunc               // of these
	retrying  bool
	wake      timerFunc // of handles that are not granted
	change    string    // why
	probing   *probing
	samePort  bool // an entry has another internal port than its group
}

// timerFunc is a function that the loop calls at a time.
type timerFunc struct {
	Job
	do func()
}

func (t *timerFunc) Fire() { t.do() }

func newOwner(r *Registry, key Key) *Owner {
	o := &Owner{
		key: key, registry: r, loop: NewLoop(), groups: map[netip.AddrPort]*group{},
		start: time.Now().Add(-time.Hour), // so that no time of a grant is 0
	}
	o.retry.do, o.wake.do = o.retryDue, o.wakeUngranted
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	o.loop.Start()
	return o
}

// join adds a client, with its backends.
func (o *Owner) join(c *Client, specs []Spec) error {
	for _, s := range specs {
		i := slices.IndexFunc(o.backends, func(b *Backend) bool { return b.spec == s })
		if i < 0 {
			b, err := s.open(o)
			if err != nil {
				return err
			}
			i, o.backends = len(o.backends), append(o.backends, b)
		}
		c.backends = append(c.backends, o.backends[i])
	}
	o.joined = append(o.joined, c)
	o.publishSinks()
	o.resume(c)
	return nil
}

// part removes a client that holds nothing any more.
func (o *Owner) part(c *Client) {
	o.joined = without(o.joined, c)
	o.publishSinks()
	for _, e := range o.unsettled {
		if e.end.client == c {
			e.end.client = nil
		}
	}
}

func (o *Owner) publishSinks() {
	var sinks []Sink
	for _, c := range o.joined {
		sinks = append(sinks, c.sink)
	}
	o.sinks.Store(&sinks)
}

// stop ends the loop, the watches and the backends, and returns the deletions that
// remain. A request whose backend ignores its context is not awaited longer than ctx.
func (o *Owner) stop(ctx context.Context) (left []remains) {
	o.loop.Do(func() { left = o.remains() })
	o.cancel(net.ErrClosed)
	o.loop.Stop()
	<-o.loop.Ended()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, b := range o.backends {
			if b.spec.Ready == nil { // a ready-made backend is its maker's to close
				_ = b.Close()
			}
		}
		o.work.Wait()
	}()
	select {
	case <-closed:
	case <-ctx.Done():
	}
	return left
}

// log returns a logger for what concerns all clients.
func (o *Owner) log() *slog.Logger { return slog.New(ownerHandler{o}) }

// ownerHandler passes log records to the clients of an owner.
type ownerHandler struct{ owner *Owner }

func (h ownerHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return slices.ContainsFunc(*h.owner.sinks.Load(), func(s Sink) bool { return s.Handler().Enabled(ctx, l) })
}

func (h ownerHandler) Handle(ctx context.Context, r slog.Record) error {
	for _, s := range *h.owner.sinks.Load() {
		if s.Handler().Enabled(ctx, r.Level) {
			_ = s.Handler().Handle(ctx, r.Clone())
		}
	}
	return nil
}

// Backends log flat records only, with the attributes in each.
func (h ownerHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h ownerHandler) WithGroup(string) slog.Handler      { return h }

// op is a piece of work on a group, on a goroutine of its own. Ops of a group run one
// at a time. What an op does with state, it does on the loop, by do.
type op struct {
	*Owner
	group    *group
	client   *Client // whose Close waits for it, or nil
	priority priority.Priority
	inFlight atomic.Bool     // a request is
	requests context.Context //nolint:containedctx // of its requests: with its priority
	run      func(ctx context.Context, p *op)
	after    func() // on the loop, when the group is free again; or nil
}

// do runs f on the loop. If the owner has ended, it does nothing.
func (o *Owner) do(f func()) { o.loop.Do(f) }

// opQueue is a queue of ops.
type opQueue struct {
	ops  []*op
	head int
}

func (q *opQueue) push(p *op) { q.ops = append(q.ops, p) }

func (q *opQueue) pop() *op {
	if q.head == len(q.ops) {
		return nil
	}
	p := q.ops[q.head]
	q.ops[q.head] = nil
	if q.head++; q.head == len(q.ops) {
		q.ops, q.head = q.ops[:0], 0
	}
	return p
}

// enqueue makes the op run when its group is free and it is its turn.
func (o *Owner) enqueue(p *op) {
	p.Owner = o
	if p.client != nil {
		p.client.busy++
	}
	if p.group.busy {
		p.group.queue = append(p.group.queue, p)
		return
	}
	p.group.busy = true
	o.waiting[p.priority].push(p)
	o.dispatch()
}

// dispatch starts ops as long as there is room for them.
func (o *Owner) dispatch() {
	for class := range o.waiting {
		for class == int(priority.Foreground) || o.running < MaxCalls {
			p := o.waiting[class].pop()
			if p == nil {
				break
			}
			if p.priority != priority.Foreground {
				o.running++
			}
			o.work.Go(func() {
				p.requests = priority.With(o.ctx, p.priority)
				p.run(p.requests, p)
				o.loop.Post(func() { o.finish(p) })
			})
		}
	}
}

// finish ends an op: the next of its group may run.
func (o *Owner) finish(p *op) {
	if p.priority != priority.Foreground {
		o.running--
	}
	g := p.group
	g.busy = false
	if len(g.queue) > 0 {
		next := g.queue[0]
		if g.queue = g.queue[1:]; len(g.queue) == 0 {
			g.queue = nil
		}
		g.busy = true
		o.waiting[next.priority].push(next)
	}
	o.arm(g)
	g.drop()
	if p.after != nil {
		p.after()
	}
	if p.client != nil {
		p.client.done()
	}
	o.dispatch()
}

// bound bounds a request.
func bound(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, &TimeoutError{timeout})
}

// TimeoutError is the cause of an end by one of our own bounds.
type TimeoutError struct {
	After time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("%v within %v", backends.ErrNoReply, e.After)
}
func (e *TimeoutError) Unwrap() error { return backends.ErrNoReply }

// IsTimeout reports whether one of our own bounds ended ctx.
func IsTimeout(ctx context.Context) bool {
	var own *TimeoutError
	return errors.As(context.Cause(ctx), &own)
}

// answers reports whether an error is an answer of the gateway.
func (o *Owner) answers(err error) bool {
	return !errors.Is(err, backends.ErrNoReply) && o.ctx.Err() == nil
}
