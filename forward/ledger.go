package forward

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// ledger is what Config.StateFile is about: what this Forwarder has on gateways,
// written down at each change, and what a run before it has left there. Without
// a file it does nothing.
type ledger struct {
	forwarder *Forwarder
	path      string
	wake      chan struct{} // something is to be written
	opening   sync.Once
	renewed   atomic.Bool // something lasts longer than is written

	mu   sync.Mutex
	file *state.File    // nil: there is none, or somebody else has it
	left []state.Record // not taken over, and not taken away
}

// How long what an earlier run has left waits to be wanted again, and how long
// it is remembered where its gateway is not met.
var wantedWithin = 30 * time.Second // tests do not wait so long

const (
	forgetAfter = 30 * 24 * time.Hour
	staleness   = 10 * time.Minute // of what is written: a mapping lasts longer than it says
)

// open reads the file, once, before anything is asked for.
func (l *ledger) open() {
	if l.path == "" {
		return
	}
	l.opening.Do(func() {
		file, left, err := state.Open(l.path)
		if err != nil {
			l.forwarder.log.Warn("the state file is not as it should be", "file", l.path, "usable", file != nil, "err", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.file, l.left = file, left
	})
}

// inheritance is what an earlier run has left at a gateway for a wish.
type inheritance struct {
	mapping backends.Mapping
	fits    bool // it is what is wished for: else it has to go first
}

// inherited returns what an earlier run has left for a wish, or nil. An address
// that this host no longer has is nobody's to take over from.
func (l *ledger) inherited(way *way, c *candidate, p backends.Protocol, w *wish) *inheritance {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.left {
		if m := r.Mapping; r.Port == w.internal.Port() && m.Protocol == p && l.forwarder.reaches(way, c, m) {
			to := w.internal.Addr()
			return &inheritance{m, m.Remote == w.remote &&
				(!to.IsValid() || to.IsUnspecified() || to == m.Internal.Addr()) &&
				(w.samePort && m.Internal.Port() == m.External.Port() || !w.samePort && m.Internal.Port() == w.internal.Port())}
		}
	}
	return nil
}

// reaches reports whether a mapping is of a candidate's gateway, for this host.
func (f *Forwarder) reaches(w *way, c *candidate, m backends.Mapping) bool {
	gateway := w.key.gateway.Addr()
	return c.backend.String() == m.Backend && (!gateway.IsValid() || gateway == m.Gateway.Addr()) &&
		(!w.local.IsValid() || w.local == m.Internal.Addr())
}

// inheritedPort is the external port that an earlier run had, or 0.
func (l *ledger) inheritedPort(way *way, c *candidate, w *wish) uint16 {
	if old := l.inherited(way, c, w.protocols[0], w); old != nil && old.fits {
		return old.mapping.External.Port()
	}
	return 0
}

// done forgets what was taken over or away.
func (l *ledger) done(old *inheritance) {
	if old == nil {
		return
	}
	m := old.mapping
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = slices.DeleteFunc(l.left, func(r state.Record) bool {
		return r.Mapping.Backend == m.Backend && r.Mapping.Protocol == m.Protocol && r.Mapping.Internal == m.Internal && r.Mapping.External == m.External
	})
}

// leave remembers what could not be taken away, for the next run.
func (l *ledger) leave(port uint16, legs []leg) {
	if l.path == "" {
		return
	}
	l.mu.Lock()
	for _, one := range legs {
		l.left = append(l.left, state.Record{Port: port, Mapping: *one.granted})
	}
	l.mu.Unlock()
	nudge(l.wake)
}

// changed has the file written.
func (l *ledger) changed() {
	if l.path != "" {
		nudge(l.wake)
	}
}

// The pace of writing: at once after a change, but not all the time; and what
// renewals change, which is only how long it lasts, now and then.
const (
	writePause = 250 * time.Millisecond
	writeEvery = time.Minute
)

// run writes the file as often as something changes, and takes away what nobody
// wants any more, until the context ends.
func (l *ledger) run(ctx context.Context) {
	l.open()
	l.forwarder.work.Go(func() {
		for rest(ctx, wantedWithin) {
			l.clean(ctx)
		}
	})
	now := time.NewTicker(writeEvery)
	defer now.Stop()
	for {
		select {
		case <-l.wake:
			l.write()
			rest(ctx, writePause)
		case <-now.C:
			if l.renewed.Swap(false) {
				l.write()
			}
		case <-ctx.Done():
			return
		}
	}
}

// rest waits, and reports whether the context has not ended meanwhile.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// write writes down what is held, and what is left.
func (l *ledger) write() {
	records := l.forwarder.records()
	l.mu.Lock()
	file := l.file
	l.left = slices.DeleteFunc(l.left, isForgotten)
	records = append(records, l.left...)
	l.mu.Unlock()
	if file == nil {
		return
	}
	if err := file.Write(records); err != nil {
		l.forwarder.log.Warn("the state file is not written", "err", err)
		l.renewed.Store(true) // and so tried again
	}
}

// isForgotten reports whether a gateway has nothing any more of what was left
// there, or was not met for long.
func isForgotten(r state.Record) bool {
	at := r.Mapping.Expires()
	if at.IsZero() {
		at = r.Mapping.Granted.Add(forgetAfter)
	}
	return time.Now().After(at.Add(staleness))
}

// records are what is held.
func (f *Forwarder) records() []state.Record {
	records := []state.Record{}
	for _, m := range f.matching(nil) {
		if m.once() {
			continue
		}
		for _, granted := range m.State() {
			records = append(records, state.Record{Port: m.port, Mapping: granted})
		}
	}
	return records
}

// clean takes away what nobody has wanted again, where its gateway is at hand and
// nothing of ours stands in its place.
func (l *ledger) clean(ctx context.Context) {
	l.mu.Lock()
	left := slices.Clone(l.left)
	l.mu.Unlock()
	for _, r := range left {
		if isForgotten(r) {
			continue
		}
		b, id := l.forwarder.backendFor(r.Mapping)
		if b == nil {
			continue
		}
		ctx, cancel := l.forwarder.bound(ctx)
		err := sweep(ctx, b, id, r.Mapping)
		cancel()
		if err != nil {
			l.forwarder.log.Debug("what an earlier run has left stays", "mapping", r.Mapping.External, "err", err)
			continue
		}
		l.forwarder.log.Info("what an earlier run has left is taken away", "protocol", r.Mapping.Protocol, "external", r.Mapping.External)
		l.done(&inheritance{mapping: r.Mapping})
		l.changed()
	}
}

// backendFor returns the backend that made a mapping of an earlier run, and what
// that is known by; or nil where its gateway is not at hand.
func (f *Forwarder) backendFor(m backends.Mapping) (backends.Backend, identity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.current {
		if w == nil {
			continue
		}
		for _, c := range w.candidates {
			if f.reaches(w, c, m) {
				return c.backend, w.identity(c, m.Protocol, m.Internal)
			}
		}
	}
	return nil, identity{}
}

// close writes the file for the last time, and lets others have it.
func (l *ledger) close() {
	l.mu.Lock()
	file := l.file
	l.mu.Unlock()
	if file == nil {
		return
	}
	l.write()
	l.mu.Lock()
	l.file = nil
	l.mu.Unlock()
	if err := file.Close(); err != nil {
		l.forwarder.log.Warn("the state file is not released", "err", err)
	}
}
