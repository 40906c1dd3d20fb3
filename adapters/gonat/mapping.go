package nat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// key is what a mapping is known by.
type key struct {
	protocol backends.Protocol
	port     uint16
}

func newKey(protocol string, internalPort int) (key, error) {
	p, err := backends.ParseProtocol(protocol)
	switch {
	case err != nil || p != backends.TCP && p != backends.UDP:
		return key{}, fmt.Errorf("gonat: %w: protocol %q: there is tcp and udp", backends.ErrInvalid, protocol)
	case internalPort < 1 || internalPort > math.MaxUint16:
		return key{}, fmt.Errorf("gonat: %w: internal port %d", backends.ErrInvalid, internalPort)
	}
	return key{p, uint16(internalPort)}, nil
}

// slot is the place of a mapping. One call changes it at a time.
type slot struct {
	turn chan struct{}

	// Guarded by Gateway.mu.
	users   int
	mapping *forward.Mapping // nil: none
}

// AddPortMapping maps an internal port of this host, TCP or UDP ("tcp" or "udp", in
// any case), and returns the external port: the same number if the gateway
// allows. The mapping is kept alive until DeletePortMapping or Close.
//
// Called again, it returns the external port of now, and sends nothing while the
// mapping stands; where it does not, it is asked for at once. A failure then is
// that of this attempt, and others follow: the mapping is still kept. A failure
// of the first call keeps nothing.
//
// The timeout is how long each grant is to last, and so how long the gateway
// forwards in vain to a program that crashed. Zero and less is the Forwarder's
// Lifetime. It and the description, of which the empty one is the Forwarder's,
// are those of the call that made the mapping.
//
// Another protocol and a port out of range fail with backends.ErrInvalid.
func (g *Gateway) AddPortMapping(ctx context.Context, protocol string, internalPort int, description string, timeout time.Duration) (int, error) {
	k, err := newKey(protocol, internalPort)
	if err != nil {
		return 0, err
	}
	ctx, end, err := g.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	s := g.enter(k)
	defer g.leave(k, s)
	if err := s.take(ctx); err != nil {
		return 0, err
	}
	defer s.give()
	if m := g.mapping(s); m != nil {
		port, err := current(ctx, m)
		if !errors.Is(err, forward.ErrClosed) || ctx.Err() != nil {
			return port, err
		}
		g.keep(s, nil) // somebody else who has the Forwarder has closed it
	}
	m, err := g.forwarder.Enable(ctx, options(k, description, timeout)...)
	if err != nil {
		return 0, err
	}
	g.keep(s, m)
	return current(ctx, m)
}

func options(k key, description string, timeout time.Duration) []forward.Option {
	opts := []forward.Option{forward.Protocol(k.protocol, k.port), forward.NoDefault()}
	if timeout > 0 {
		opts = append(opts, forward.Lifetime(timeout))
	}
	if description != "" {
		opts = append(opts, forward.Description(description))
	}
	return opts
}

// current is the external port of a mapping, which is asked for again where it
// has none.
func current(ctx context.Context, m *forward.Mapping) (int, error) {
	if port := m.External().Port(); port != 0 {
		return int(port), nil
	}
	if err := m.Refresh(ctx); err != nil {
		return 0, err
	}
	port := m.External().Port()
	if port == 0 { // lost again
		return 0, fmt.Errorf("gonat: %w: the mapping was lost", backends.ErrNoReply)
	}
	return int(port), nil
}

// DeletePortMapping takes the mapping away from the gateway. Where there is
// none that this Gateway made, it succeeds. One that the gateway does not take away
// is left to its lifetime, and the error says so. A context that ends is not
// obeyed by the deletion itself, which goes on.
func (g *Gateway) DeletePortMapping(ctx context.Context, protocol string, internalPort int) error {
	k, err := newKey(protocol, internalPort)
	if err != nil {
		return err
	}
	ctx, end, err := g.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	s := g.enter(k)
	defer g.leave(k, s)
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	m := g.mapping(s)
	if m == nil {
		return nil
	}
	g.keep(s, nil)
	deleted := make(chan error, 1)
	g.calls.Go(func() { deleted <- m.Close() })
	select {
	case err := <-deleted:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// closeMappings deletes all mappings, at once: the gateway's queue orders them.
func (g *Gateway) closeMappings() error {
	g.mu.Lock()
	var held []*forward.Mapping
	for _, s := range g.slots { // nobody is inside: each has its mapping
		held = append(held, s.mapping)
	}
	clear(g.slots)
	g.mu.Unlock()
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(held))
	)
	for i, m := range held {
		wg.Go(func() { errs[i] = m.Close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// standing is a mapping that the gateway forwards now, or nil.
func (g *Gateway) standing() *forward.Mapping {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.slots {
		if s.mapping != nil && s.mapping.External().Port() != 0 {
			return s.mapping
		}
	}
	return nil
}

// enter returns the slot of a key, with one user more.
func (g *Gateway) enter(k key) *slot {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.slots[k]
	if s == nil {
		s = &slot{turn: make(chan struct{}, 1)}
		g.slots[k] = s
	}
	s.users++
	return s
}

// leave is enter's inverse: what holds nothing is forgotten.
func (g *Gateway) leave(k key, s *slot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.users--; s.users == 0 && s.mapping == nil {
		delete(g.slots, k)
	}
}

func (g *Gateway) mapping(s *slot) *forward.Mapping {
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.mapping
}

func (g *Gateway) keep(s *slot, m *forward.Mapping) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.mapping = m
}

// take waits for a turn.
func (s *slot) take(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *slot) give() { <-s.turn }
