package forward

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/internal/gateway"
)

// Enable makes the gateway forward a port to this host, and keeps the mapping alive until it
// is closed. Without options, Enable forwards TCP to an internal port that is free at the
// moment, and requests the same external port. The gateway may refuse the external port
// because it is taken, or because it is below 1024. Enable then tries up to eight random
// ports from 49152, unless [Exact] is given.
//
// Mappings with the same protocol and internal port share one mapping on the gateway. It is
// deleted when the last of them is closed. Their options must agree: otherwise the second
// Enable fails with backends.ErrConflict.
//
// If ctx is cancelled while a request is in flight, the gateway may still create the mapping;
// it is deleted when the reply arrives.
func (f *Forwarder) Enable(ctx context.Context, opts ...Option) (*Mapping, error) {
	m, err := f.enable(ctx, opts)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// enable implements Enable. If a request was made and failed, enable returns the mapping as
// well as the error, and what the gateway may have granted is being deleted.
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

// callGateway attaches a mapping to the owner of its gateway, and calls do with the client.
// If the default route changes during the call, callGateway repeats it with the new gateway.
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

// addMapping creates a mapping and adds it to the open mappings. An expired Once mapping for
// the same port is removed. If attach is set, the mapping is requested in the background.
func (f *Forwarder) addMapping(s *spec, attach bool) *Mapping {
	m := &Mapping{forwarder: f, noDefault: s.noDefault, onChange: s.onChange, family: f.familyFor(s)}
	if s.socket != nil {
		m.verified.Store(&verified{socket: s.socket})
	}
	m.handle = gateway.NewHandle(sink{f}, &s.Spec, m)
	f.store.open()
	f.loop.Do(func() {
		for _, old := range slices.Clone(f.held) {
			if s.Once && old.isExpiredOnce() && old.handle.Port() == m.handle.Port() && slices.Equal(old.status().Spec.Members(), s.Members()) {
				f.release(old, true)
			}
		}
		f.held = append(f.held, m)
		f.dispatcher.openMappings.Add(1)
		if attach {
			_ = f.attach(m, time.Now(), "enabled")
		}
	})
	if f.config.VerifyEvery != 0 {
		f.work.Go(m.verifyInBackground)
	}
	return m
}

// Run enables a mapping, waits until ctx ends, deletes the mapping and returns nil. It
// returns an error if the mapping cannot be enabled or deleted. Run also returns when the
// mapping is closed, for example by Disable: it then returns nil, or ErrClosed if the
// Forwarder was closed.
func (f *Forwarder) Run(ctx context.Context, opts ...Option) error {
	m, err := f.enable(ctx, opts)
	if err != nil {
		if m != nil && errors.Is(err, context.Canceled) {
			return m.Shutdown(context.WithoutCancel(ctx))
		}
		return err
	}
	for !m.status().Closed && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-m.Changed():
		}
	}
	if f.ctx.Err() != nil {
		return errClosed("forwarder")
	}
	return m.Shutdown(context.WithoutCancel(ctx))
}
