package forward

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/internal/gateway"
)

// Enable makes the gateway forward a port to this host, and keeps it so until
// the mapping is closed. Without options: TCP, an internal port that is free
// just now, and the same external port if the gateway allows. Where the
// external port is taken, or below 1024 and refused, it tries up to eight
// random ones from 49152, unless Exact.
//
// Two mappings with the same protocol and internal port are one on the gateway:
// it goes when the last of them is closed, and they must agree, else the second
// fails with backends.ErrConflict.
//
// If ctx is cancelled while a request is in flight, the gateway may still create
// the mapping; it is deleted when the reply arrives.
func (f *Forwarder) Enable(ctx context.Context, opts ...Option) (*Mapping, error) {
	m, err := f.enable(ctx, opts)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// enable is Enable. If a request was made and failed, the mapping is returned beside the
// error, and what the gateway may have granted is being deleted.
func (f *Forwarder) enable(ctx context.Context, opts []Option) (*Mapping, error) {
	s, err := f.newSpec(opts)
	if err != nil {
		return nil, err
	}
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if s.Internal.Port() == 0 {
		port := s.External
		if !s.SamePort || port == 0 {
			if port, err = openLocalPort(s.Protocols); err != nil {
				return nil, err
			}
		}
		s.Internal = netip.AddrPortFrom(s.Internal.Addr(), port)
	}
	f.callHook(ctx)
	m := f.addMapping(&s, s.Background)
	if s.Background {
		return m, nil
	}
	if err := f.callGateway(ctx, m, func(c *gateway.Client) error { return c.Enable(ctx, m.handle) }); err != nil {
		f.loop.Do(func() { f.release(m, false) })
		f.work.Go(func() { _ = m.Close() })
		return m, err
	}
	return m, nil
}

// ask attaches a mapping to the owner of its gateway, and asks that. If the default route
// changes meanwhile, it asks the next.
func (f *Forwarder) callGateway(ctx context.Context, m *Mapping, do func(*gateway.Client) error) error {
	for {
		var err error
		f.loop.Do(func() { err = f.attach(m, time.Time{}, "") })
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c := m.handle.Client()
		if c == nil {
			return errClosed("mapping")
		}
		switch err := do(c); {
		case errors.Is(err, gateway.ErrMoved), errors.Is(err, gateway.ErrEnded) && f.ctx.Err() == nil:
		case errors.Is(err, gateway.ErrEnded), err != nil && ctx.Err() == nil && m.status().Closed:
			return errClosed("mapping")
		default:
			return err
		}
	}
}

// hold makes the Forwarder answer for a new mapping. What ran out and was not to be
// renewed makes room for it.
func (f *Forwarder) addMapping(s *spec, attach bool) *Mapping {
	m := &Mapping{forwarder: f, noDefault: s.noDefault, onChange: s.onChange, family: f.familyFor(s)}
	m.handle = gateway.NewHandle(sink{f}, &s.Spec, m)
	f.store.open()
	f.loop.Do(func() {
		for _, old := range slices.Clone(f.held) {
			if s.Once && old.isExpiredOnce() && old.handle.Port() == m.handle.Port() && slices.Equal(old.status().Spec.Members(), s.Members()) {
				f.release(old, true)
			}
		}
		f.held = append(f.held, m)
		f.dispatcher.mappings.Add(1)
		if attach {
			_ = f.attach(m, time.Now(), "enabled")
		}
	})
	return m
}
