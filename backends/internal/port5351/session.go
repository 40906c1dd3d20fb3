package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Session is one user's hold on a Link: what is under way in it ends with its
// Close, whatever others do on the link.
type Session struct {
	link  *Conn
	calls ctxsync.Calls
}

// NewSession opens the way. It does no I/O.
func NewSession(config Config) (*Session, error) {
	link, err := Open(config)
	if err != nil {
		return nil, err
	}
	return &Session{link: link}, nil
}

// Gateway returns the address and port that requests go to.
func (s *Session) Gateway() netip.AddrPort { return s.link.config.Gateway }

// Close ends the calls under way, with net.ErrClosed, and waits for them, but not
// for a Tell of Follow, which may call it. A second call only waits.
func (s *Session) Close() {
	if s.calls.Close(net.ErrClosed) {
		s.link.Close()
	}
}

// Do is [Conn.Do] within the session.
func (s *Session) Do(ctx context.Context, e Transaction) (Reply, error) {
	ctx, end, err := s.calls.Begin(ctx)
	if err != nil {
		return Reply{}, err
	}
	defer end()
	return s.link.Do(ctx, e)
}

// Local is [Conn.Local] within the session.
func (s *Session) Local(ctx context.Context) (netip.Addr, error) {
	ctx, end, err := s.calls.Begin(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer end()
	return s.link.Local(ctx)
}

// Redial makes the next request leave from a new socket, whose local address it
// returns, or the zero Addr where there is none to be had.
func (s *Session) Redial(ctx context.Context) netip.Addr {
	if sock := s.link.current(); sock != nil {
		s.link.drop(sock)
	}
	local, err := s.Local(ctx)
	if err != nil {
		return netip.Addr{}
	}
	return local
}

// ObserveNATPMP is [Conn.ObserveNATPMP].
func (s *Session) ObserveNATPMP(epoch time.Duration, r Reply) { s.link.ObserveNATPMP(epoch, r) }

// ObservePCP is [Conn.ObservePCP].
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
	Tell func(Hint)
}

// Between two questions that signals cause there is at least this: a flood of
// forged announcements costs one small exchange a second.
const followPause = time.Second

// Follow tells of signals until the context ends, and returns its cause.
func (s *Session) Follow(ctx context.Context, f Follower) error {
	ctx, end, err := s.calls.Begin(ctx)
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
				s.calls.Callback(func() { f.Tell(merge(signal, w)) })
			}
		}
		if err := ctxsync.Sleep(ctx, followPause); err != nil {
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
		if ctxsync.Sleep(ctx, wait) != nil {
			return false
		}
	}
	return false
}

// merge takes the signal that the question's own answer gave rise to.
func merge(s Hint, w *Watch) Hint {
	select {
	case later := <-w.Signals:
		if later.Restarted && !s.Restarted {
			return later
		}
	default:
	}
	return s
}
