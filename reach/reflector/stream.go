package reflector

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/internal/dialback"
)

// stream is the reply to a request with probes. Only run writes.
type stream struct {
	h          *Handler
	w          http.ResponseWriter
	control    *http.ResponseController
	addr       netip.Addr // the target
	source     netip.Addr // from which to connect, or the zero Addr
	isOperator bool
	probes     []dialback.Probe
	// silent are the probes that have been announced and have no result yet, in the order of the
	// announcements. It is empty for the operator.
	silent []silence
}

// silence is a result that is written at a certain time unless an answer arrives before.
type silence struct {
	probe int
	due   time.Time
}

// event is a line of a probe.
type event struct {
	probe int
	line  dialback.Line
	// written is closed when the line has been sent.
	written chan struct{}
}

// run makes all probes at once and writes their lines. It returns when all have a result, and their
// goroutines have ended. If the client closes the connection, ctx ends.
func (s *stream) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan event)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	for i := range s.probes {
		probes.Go(func() { s.probe(ctx, i, events) })
	}
	ended := make([]bool, len(s.probes)) // a result was written
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for left := len(s.probes); left > 0; {
		if len(s.silent) > 0 {
			timer.Reset(time.Until(s.silent[0].due))
		} else {
			timer.Stop()
		}
		select {
		case e := <-events:
			if ended[e.probe] { // the answer came after the result
				close(e.written)
				continue
			}
			isDone := e.line.State == dialback.StateDone
			if i := slices.IndexFunc(s.silent, func(q silence) bool { return q.probe == e.probe }); i >= 0 {
				s.silent = slices.Delete(s.silent, i, i+1)
			}
			if !s.write(e.line) {
				return
			}
			if isDone {
				ended[e.probe] = true
				left--
			} else if !s.isOperator {
				s.silent = append(s.silent, silence{e.probe, time.Now().Add(s.h.window)})
			}
			close(e.written)
		case <-timer.C:
			q := s.silent[0]
			s.silent = s.silent[1:]
			ended[q.probe] = true
			left--
			if !s.write(s.done(q.probe, dialback.Silent)) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// probe makes one probe. A stranger must not learn from the lines, their order or their times how a
// connection failed. So probe reports only an answer, and run writes the other results at a time that
// depends only on the announcement.
func (s *stream) probe(ctx context.Context, i int, events chan<- event) {
	p := s.probes[i]
	send := func(line dialback.Line) {
		e := event{i, line, make(chan struct{})}
		select {
		case events <- e:
			select {
			case <-e.written:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}
	isAnnounced := false
	// The call ends before its result is due, so that the result does not wait for it.
	call, cancel := context.WithTimeout(ctx, s.h.window-s.h.window/50)
	defer cancel()
	outcome, rtt, err := s.h.dial(dialback.Call{
		Protocol: p.Protocol, To: netip.AddrPortFrom(s.addr, p.Port), From: s.source, Nonce: p.Nonce, Want: p.Want,
	}, call, func(from netip.AddrPort) {
		isAnnounced = true
		send(dialback.Line{State: dialback.StateDialing, Protocol: p.Protocol, Port: p.Port, Address: s.addr, From: from})
	})
	line := s.done(i, outcome)
	switch {
	case err == nil && outcome == dialback.Echoed:
		s.h.echoed.Add(1)
		line.RTT = milliseconds(rtt)
	case s.isOperator && err != nil:
		line.Result, line.Error = dialback.Failed, bounded(err.Error())
	case s.isOperator:
		line.RTT = milliseconds(rtt)
	case !isAnnounced: // this host has no address or no socket for it: nothing has been sent
		line.Result = dialback.Failed
	default:
		return
	}
	send(line)
}

func (s *stream) done(i int, result dialback.Outcome) dialback.Line {
	p := s.probes[i]
	return dialback.Line{State: dialback.StateDone, Protocol: p.Protocol, Port: p.Port, Address: s.addr, Result: result}
}

// write sends a line at once. It returns false if the client does not take it.
func (s *stream) write(line dialback.Line) bool {
	s.h.setWriteDeadline(s.control)
	if _, err := s.w.Write(encode(line)); err != nil {
		return false
	}
	return s.control.Flush() == nil
}

// milliseconds returns a duration with a precision of a microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
