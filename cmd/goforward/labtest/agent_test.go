package labtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// agentProgram is the program under test. It has Forwarders in a host and executes the
// calls of a test, several at once if necessary.
var agentProgram = lab.Func("agent", func(p *lab.Proc) {
	s := &agentServer{proc: p, mapped: make(chan struct{}, 1), listener: make(chan listener, 1)}
	for {
		var c call
		p.Receive(&c)
		if c.Op == "exit" {
			return
		}
		if c.Op == "forwarder" { // not in a goroutine: the order of these calls determines the numbers
			p.Send(s.newForwarder(c))
			continue
		}
		ctx, cancel := s.context(c) // before a later call cancels it
		go func() {
			defer cancel()
			start := time.Now()
			a := s.do(ctx, c)
			a.ID, a.Took = c.ID, time.Since(start)
			p.Send(a)
		}()
	}
})

// forwarder is a *forward.Forwarder, or the package-level functions.
type forwarder interface {
	Enable(context.Context, ...forward.Option) (*forward.Mapping, error)
	Disable(context.Context, ...forward.Selector) error
	DisableAll(context.Context, ...forward.Selector) (int, error)
	ExternalIP(context.Context) (netip.Addr, error)
	Mappings(context.Context) ([]forward.Entry, error)
	Run(context.Context, ...forward.Option) error
	Shutdown(context.Context) error
	Close() error
}

var (
	_ forwarder = (*forward.Forwarder)(nil)
	_ forwarder = packageLevel{}
)

type packageLevel struct{}

func (packageLevel) Enable(_ context.Context, o ...forward.Option) (*forward.Mapping, error) {
	return forward.Enable(o...)
}

func (packageLevel) Disable(_ context.Context, s ...forward.Selector) error {
	return forward.Disable(s...)
}

func (packageLevel) DisableAll(_ context.Context, s ...forward.Selector) (int, error) {
	return forward.DisableAll(s...)
}

func (packageLevel) ExternalIP(context.Context) (netip.Addr, error) { return forward.ExternalIP() }

func (packageLevel) Mappings(context.Context) ([]forward.Entry, error) { return forward.Mappings() }

func (packageLevel) Run(ctx context.Context, o ...forward.Option) error {
	return forward.Run(ctx, o...)
}

func (packageLevel) Shutdown(context.Context) error { return errors.ErrUnsupported }
func (packageLevel) Close() error                   { return forward.Close() }

// agentServer executes the calls in the agent.
type agentServer struct {
	proc *lab.Proc

	mu         sync.Mutex
	forwarders []forwarder
	mappings   []*forward.Mapping
	cancels    map[int]context.CancelFunc // the cancel functions of calls, by the number of the call

	mapped   chan struct{} // receives a value after each Mapped event
	listener chan listener // the listener that was opened last
}

func (s *agentServer) newForwarder(c call) result {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.forwarders)
	config := &forward.Config{
		Gateway: c.Config.Gateway, Interface: c.Config.Interface, DiscoveryTimeout: c.Config.DiscoveryTimeout, RequestTimeout: c.Config.RequestTimeout, Lifetime: c.Config.Lifetime, CheckEvery: c.Config.CheckEvery,
		Protocols: c.Config.Protocols, UPnPURL: c.Config.UPnPURL, StateFile: c.Config.StateFile,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OnEvent: func(e forward.Event) {
			if e.Kind == forward.EventFailed { // the number of failed attempts depends on the speed of the router
				return
			}
			s.onEvent(e)
			s.proc.Send(result{Event: toEvent(n, e)})
		},
	}
	var (
		f   forwarder
		err error
	)
	if c.Config.Package {
		f, err = packageLevel{}, forward.Configure(config)
	} else {
		f, err = forward.New(config)
	}
	s.forwarders = append(s.forwarders, f)
	return result{ID: c.ID, Failure: toFailure(err)}
}

func toEvent(forwarder int, e forward.Event) *event {
	first := func(ms []backends.Mapping) netip.AddrPort {
		if len(ms) == 0 {
			return netip.AddrPort{}
		}
		return ms[0].External
	}
	return &event{
		Forwarder: forwarder, Kind: e.Kind, Reason: e.Reason, Time: e.Time,
		External: first(e.Grants), Previous: first(e.Previous),
	}
}

func toState(m *forward.Mapping) state {
	return state{
		External: m.External().AddrPort, Internal: m.Internal(), Grants: m.Grants(), Backend: m.Backend(),
		Gateway: m.Gateway(), Expires: m.Expires(), Scope: m.Scope().String(), NextAttempt: m.Status().NextAttempt, Failure: toFailure(m.Err()),
	}
}

// context returns a context with the timeout of the call, which a "cancel" call can
// cancel.
func (s *agentServer) context(c call) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	if c.Within > 0 {
		ctx, cancel = context.WithTimeout(context.Background(), c.Within)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancels == nil {
		s.cancels = map[int]context.CancelFunc{}
	}
	s.cancels[c.ID] = cancel
	return ctx, cancel
}

func (s *agentServer) forwarder(c call) forwarder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forwarders[c.Forwarder]
}

func (s *agentServer) mapping(c call) *forward.Mapping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mappings[c.Mapping]
}

// do executes one call.
func (s *agentServer) do(ctx context.Context, c call) result {
	switch c.Op {
	case "enable":
		m, err := s.forwarder(c).Enable(ctx, toOptions(c.Options)...)
		if err != nil {
			return result{Failure: toFailure(err)}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mappings = append(s.mappings, m)
		return result{Mapping: len(s.mappings) - 1, State: toState(m)}
	case "disable":
		return result{Failure: toFailure(s.forwarder(c).Disable(ctx, toSelectors(c.Options)...))}
	case "disable all":
		n, err := s.forwarder(c).DisableAll(ctx, toSelectors(c.Options)...)
		return result{Count: n, Failure: toFailure(err)}
	case "external IP":
		addr, err := s.forwarder(c).ExternalIP(ctx)
		return result{Addr: addr, Failure: toFailure(err)}
	case "mappings":
		entries, err := s.forwarder(c).Mappings(ctx)
		return result{Entries: entries, Failure: toFailure(err)}
	case "run":
		return result{Failure: toFailure(s.forwarder(c).Run(ctx, toOptions(c.Options)...))}
	case "cancel":
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cancels[c.Cancel]()
		return result{}
	case "close":
		return result{Failure: toFailure(s.forwarder(c).Close())}
	case "shutdown":
		return result{Failure: toFailure(s.forwarder(c).Shutdown(ctx))}
	case "state":
		return result{State: toState(s.mapping(c))}
	case "wait":
		err := s.mapping(c).Wait(ctx)
		return result{State: toState(s.mapping(c)), Failure: toFailure(err)}
	case "refresh":
		err := s.mapping(c).Refresh(ctx, toOptions(c.Options)...)
		return result{State: toState(s.mapping(c)), Failure: toFailure(err)}
	case "close mapping":
		return result{Failure: toFailure(s.mapping(c).Close())}
	}
	if a, ok := s.doListen(ctx, c); ok {
		return a
	}
	if n, ok := resourceUse(c.Op); ok {
		return result{Count: n}
	}
	return result{Failure: toFailure(fmt.Errorf("no such call: %q", c.Op))}
}

// listener is a listener of the agent and its mapping.
type listener struct {
	io.Closer
	mapping *forward.Mapping
}

// doListen executes the calls that concern listeners, and the calls that wait for a grant. ok is
// false if c is another call.
func (s *agentServer) doListen(ctx context.Context, c call) (a result, ok bool) {
	switch c.Op {
	case "probe":
		_, err := s.forwarder(c).(*forward.Forwarder).Gateway(ctx)
		return result{Failure: toFailure(err)}, true
	case "run until mapped":
		return result{Failure: toFailure(s.runUntilMapped(ctx, c))}, true
	case "listen":
		return s.listen(ctx, c), true
	case "close listener":
		return result{Failure: toFailure((<-s.listener).Close())}, true
	case "close mapping of listener":
		ln := <-s.listener
		err := ln.mapping.Close()
		_ = ln.Close() // it returns the same error
		return result{Failure: toFailure(err)}, true
	}
	return result{}, false
}

// listen opens a listener for the first option, and waits until its mapping is granted or
// closed.
func (s *agentServer) listen(ctx context.Context, c call) result {
	f := s.forwarder(c).(*forward.Forwarder)
	var ln listener
	if c.Options[0].Name == "udp" {
		pc, err := f.ListenPacket(ctx, "udp4", ":0")
		if err != nil {
			return result{Failure: toFailure(err)}
		}
		ln = listener{pc, pc.Mapping()}
	} else {
		l, err := f.Listen(ctx, "tcp4", ":0")
		if err != nil {
			return result{Failure: toFailure(err)}
		}
		ln = listener{l, l.Mapping()}
	}
	s.listener <- ln
	err := ln.mapping.Wait(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mappings = append(s.mappings, ln.mapping)
	return result{Mapping: len(s.mappings) - 1, State: toState(ln.mapping), Failure: toFailure(err)}
}

// runUntilMapped calls Run with a context that is cancelled at the first Mapped event.
func (s *agentServer) runUntilMapped(ctx context.Context, c call) error {
	select {
	case <-s.mapped: // left by an earlier call
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

func (s *agentServer) onEvent(e forward.Event) {
	if e.Kind != forward.EventMapped {
		return
	}
	select {
	case s.mapped <- struct{}{}:
	default:
	}
}
