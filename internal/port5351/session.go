package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// Session is one user's hold on a Link: what is under way in it ends with its
// Close, whatever others do on the link.
type Session struct {
	link   *Link
	ctx    context.Context //nolint:containedctx // the session's life; bounds no call of a caller
	cancel context.CancelCauseFunc

	mu     sync.Mutex // guards closed against new calls
	closed bool
	calls  sync.WaitGroup
}

// NewSession opens the way. It does no I/O.
func NewSession(config Config) (*Session, error) {
	link, err := Open(config)
	if err != nil {
		return nil, err
	}
	s := &Session{link: link}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Close ends the calls under way, with net.ErrClosed, and waits for them. A
// second call does nothing.
func (s *Session) Close() {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	s.cancel(net.ErrClosed)
	s.calls.Wait()
	if first {
		s.link.Close()
	}
}

// begin counts a call in, and bounds its context by the session's life. The
// function that it returns counts the call out.
func (s *Session) begin(ctx context.Context) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, net.ErrClosed
	}
	s.calls.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(net.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); s.calls.Done() }, nil
}

// Do is [Link.Do] within the session.
func (s *Session) Do(ctx context.Context, e Exchange) (Reply, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Reply{}, err
	}
	defer end()
	return s.link.Do(ctx, e)
}

// Local is [Link.Local] within the session.
func (s *Session) Local(ctx context.Context) (netip.Addr, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer end()
	return s.link.Local(ctx)
}

// Redial makes the next request leave from a new socket, whose local address it
// returns, or the zero Addr where there is none to be had.
func (s *Session) Redial(ctx context.Context) netip.Addr {
	s.link.mu.Lock()
	sock := s.link.sock
	s.link.mu.Unlock()
	if sock != nil {
		s.link.drop(sock)
	}
	local, err := s.Local(ctx)
	if err != nil {
		return netip.Addr{}
	}
	return local
}

// ObserveNATPMP is [Link.ObserveNATPMP].
func (s *Session) ObserveNATPMP(epoch time.Duration, r Reply) { s.link.ObserveNATPMP(epoch, r) }

// ObservePCP is [Link.ObservePCP].
func (s *Session) ObservePCP(epoch time.Duration, r Reply) { s.link.ObservePCP(epoch, r) }

// Follower is what makes signals about a gateway into something to tell.
type Follower struct {
	WatchConfig
	// Failed is told why announcements cannot be listened for.
	Failed func(error)
	// Ask asks the gateway anything: what a signal says counts once it has
	// answered, whatever it said.
	Ask func(context.Context) error
	// Tell is called after the answer, with the signal and what the answer itself
	// gave rise to.
	Tell func(Signal)
}

// Between two questions that signals cause there is at least this: a flood of
// forged announcements costs one small exchange a second.
const followPause = time.Second

// Follow tells of signals until the context ends, and returns its cause.
func (s *Session) Follow(ctx context.Context, f Follower) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	w, err := s.link.Watch(f.WatchConfig)
	if err != nil {
		f.Failed(err)
	}
	defer w.Close()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case signal := <-w.Signals:
			if confirm(ctx, f.Ask) {
				f.Tell(merge(signal, w))
			}
		}
		if err := pause(ctx, followPause); err != nil {
			return err
		}
	}
}

// confirm asks until the gateway answers, and reports whether it did. One that
// is restarting refuses or stays silent at first.
func confirm(ctx context.Context, ask func(context.Context) error) bool {
	for wait := 250 * time.Millisecond; wait < 5*time.Second; wait *= 2 {
		if err := ask(ctx); err == nil || !errors.Is(err, backends.ErrNoReply) && ctx.Err() == nil {
			return true
		}
		if pause(ctx, wait) != nil {
			return false
		}
	}
	return false
}

// merge takes the signal that the question's own answer gave rise to.
func merge(s Signal, w *Watch) Signal {
	select {
	case later := <-w.Signals:
		if later.Restarted && !s.Restarted {
			return later
		}
	default:
	}
	return s
}

// pause waits for d, or for the context's end.
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
