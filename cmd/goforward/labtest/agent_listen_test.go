package labtest

import (
	"context"
	"io"

	"github.com/natforward/goforward/forward"
)

// listener is what an agent listens on.
type listener struct {
	io.Closer
	mapping *forward.Mapping
}

// doListen does the calls about listeners, and those that watch for the grant. ok is
// false if the call is another.
func (s *server) doListen(ctx context.Context, c call) (a answer, ok bool) {
	switch c.Op {
	case "probe":
		_, err := s.forwarder(c).(*forward.Forwarder).Gateway(ctx)
		return answer{Failure: toFailure(err)}, true
	case "run until mapped":
		return answer{Failure: toFailure(s.runUntilMapped(ctx, c))}, true
	case "listen":
		return s.listen(ctx, c), true
	case "close listener":
		return answer{Failure: toFailure((<-s.listener).Close())}, true
	case "close mapping of listener":
		ln := <-s.listener
		err := ln.mapping.Close()
		_ = ln.Close() // another report of the same
		return answer{Failure: toFailure(err)}, true
	}
	return answer{}, false
}

// listen opens a listener for the first option, and waits until its mapping is granted
// or closed.
func (s *server) listen(ctx context.Context, c call) answer {
	f := s.forwarder(c).(*forward.Forwarder)
	var ln listener
	if c.Options[0].Name == "udp" {
		pc, err := f.ListenPacket(ctx, "udp4", ":0")
		if err != nil {
			return answer{Failure: toFailure(err)}
		}
		ln = listener{pc, pc.Mapping()}
	} else {
		l, err := f.Listen(ctx, "tcp4", ":0")
		if err != nil {
			return answer{Failure: toFailure(err)}
		}
		ln = listener{l, l.Mapping()}
	}
	s.listener <- ln
	err := ln.mapping.Wait(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mappings = append(s.mappings, ln.mapping)
	return answer{Mapping: len(s.mappings) - 1, State: toState(ln.mapping), Failure: toFailure(err)}
}

// runUntilMapped is Run with a context that ends at the first Mapped event.
func (s *server) runUntilMapped(ctx context.Context, c call) error {
	select {
	case <-s.mapped: // of an earlier call
	default:
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.mapped:
			cancel()
		case <-ctx.Done():
		}
	}()
	return s.forwarder(c).Run(ctx, toOptions(c.Options)...)
}

func (s *server) onEvent(e forward.Event) {
	if e.Kind != forward.EventMapped {
		return
	}
	select {
	case s.mapped <- struct{}{}:
	default:
	}
}
