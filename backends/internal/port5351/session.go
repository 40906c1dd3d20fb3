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

// Session is one user's share of a Conn. Its Close ends the calls of the Session,
// but not the calls of other users of the Conn.
type Session struct {
	conn  *Conn
	calls ctxsync.Calls
}

// NewSession opens the Conn for the config. It does no I/O.
func NewSession(config Config) (*Session, error) {
	conn, err := Open(config)
	if err != nil {
		return nil, err
	}
	return &Session{conn: conn}, nil
}

// Gateway returns the address and port to which requests are sent.
func (s *Session) Gateway() netip.AddrPort { return s.conn.config.Gateway }

// Close ends the calls in progress with net.ErrClosed and waits for them. It does
// not wait for a Notify function of Watch, which may itself call Close. A second
// call only waits.
func (s *Session) Close() {
	if s.calls.Close(net.ErrClosed) {
		s.conn.Close()
	}
}

// Do calls [Conn.Do] as a call of the session.
func (s *Session) Do(ctx context.Context, tx Transaction) (Reply, error) {
	ctx, end, err := s.calls.Begin(ctx)
	if err != nil {
		return Reply{}, err
	}
	defer end()
	return s.conn.Do(ctx, tx)
}

// Local calls [Conn.Local] as a call of the session.
func (s *Session) Local(ctx context.Context) (netip.AddrPort, error) {
	ctx, end, err := s.calls.Begin(ctx)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer end()
	return s.conn.Local(ctx)
}

// Redial discards the socket and opens a new one for the next request. It returns
// the new local address, or the zero Addr if no socket can be opened.
func (s *Session) Redial(ctx context.Context) netip.Addr {
	if sock := s.conn.currentSocket(); sock != nil {
		s.conn.discardSocket(sock)
	}
	local, err := s.Local(ctx)
	if err != nil {
		return netip.Addr{}
	}
	return local.Addr()
}

// ObserveNATPMP calls [Conn.ObserveNATPMP].
func (s *Session) ObserveNATPMP(epoch time.Duration, r Reply) { s.conn.ObserveNATPMP(epoch, r) }

// ObservePCP calls [Conn.ObservePCP].
func (s *Session) ObservePCP(epoch time.Duration, r Reply) { s.conn.ObservePCP(epoch, r) }

// Losses calls [Conn.Losses].
func (s *Session) Losses() int { return s.conn.Losses() }

// SendHint calls [Conn.SendHint].
func (s *Session) SendHint(hint Hint) { s.conn.SendHint(hint) }

// CheckWait is the schedule of a request that a Checker sends: the request is repeated once,
// after a second.
func CheckWait(n int) (wait time.Duration, more bool) {
	const transmissions = 2
	return time.Second, n < transmissions
}

// WatchHandler configures [Session.Watch].
type WatchHandler struct {
	WatchConfig
	// ListenFailed is called with the error if Watch cannot listen for
	// announcements.
	ListenFailed func(error)
	// Probe sends any request to the gateway. A hint is passed on once the gateway
	// has replied, even if the reply was an error.
	Probe func(context.Context) error
	// Notify is called after the reply, with the hint. If the reply itself showed a
	// restart, it is called with that hint instead.
	Notify func(Hint)
}

// watchInterval is the pause after each hint. A flood of forged announcements thus
// causes only about one small request per second.
const watchInterval = time.Second

// Watch calls h.Notify for each confirmed hint until the context ends, and returns
// its cause.
func (s *Session) Watch(ctx context.Context, h WatchHandler) error {
	ctx, end, err := s.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	w, err := s.conn.Watch(h.WatchConfig)
	if err != nil {
		h.ListenFailed(err)
	}
	defer w.Close()
	var reported Hint // the last restart that was passed on
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case hint := <-w.Hints:
			if hint.isSameRestart(reported) {
				continue
			}
			if probeUntilReply(ctx, h.Probe) {
				if hint = mergeNewer(hint, w, reported); hint.Restarted {
					reported = hint
				}
				s.calls.Callback(func() { h.Notify(hint) })
			}
		}
		if err := ctxsync.Sleep(ctx, watchInterval); err != nil {
			return err
		}
	}
}

// isSameRestart reports whether both hints show one restart. The epochs of NAT-PMP and
// PCP show it separately, in whole seconds.
func (h Hint) isSameRestart(other Hint) bool {
	const slack = time.Second
	return h.Restarted && !h.Since.IsZero() && !other.Since.IsZero() && h.Since.Sub(other.Since).Abs() <= slack
}

// probeUntilReply calls probe until the gateway replies, five times at most, and
// reports whether the gateway replied. A gateway that is restarting at first refuses
// the port or does not reply.
func probeUntilReply(ctx context.Context, probe func(context.Context) error) bool {
	for wait := 250 * time.Millisecond; wait < 5*time.Second; wait *= 2 {
		if err := probe(ctx); err == nil || !errors.Is(err, backends.ErrNoReply) && ctx.Err() == nil {
			return true
		}
		if ctxsync.Sleep(ctx, wait) != nil {
			return false
		}
	}
	return false
}

// mergeNewer returns the hint that the reply to the probe caused, if that hint
// reports a restart that is not known, and the given hint does not.
func mergeNewer(hint Hint, w *Watch, reported Hint) Hint {
	select {
	case newer := <-w.Hints:
		if newer.Restarted && !hint.Restarted && !newer.isSameRestart(reported) {
			return newer
		}
	default:
	}
	return hint
}
