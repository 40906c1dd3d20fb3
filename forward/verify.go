package forward

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

// DefaultVerifyEvery is the default of Config.VerifyEvery if Config.Verify has probers.
const DefaultVerifyEvery = 10 * time.Minute

const (
	// minVerifyEvery is the shortest interval of verifications in the background.
	minVerifyEvery = 10 * time.Second
	// maxVerifying is the number of ports that are measured at once.
	maxVerifying = 4
)

// Verify finds out whether the internet can reach the mapping, and returns what is proven and
// how. The probers measure at the same time. Without probers, Verify uses those of Config.Verify,
// or else those of reach.Default, which contact only the gateway. With several ports, such as
// those of Both, all are measured, and the result is of the worst.
//
// What arrives is observed in the socket of a Listener or PacketConn. For other mappings, Verify
// opens the internal port while it measures, if no program listens there yet. If another socket
// has the port, even one of this program, its connections are recognized in the system's table
// of sockets.
//
// An inconclusive measurement is no error. Verify fails with ErrNoMapping if the mapping is not
// granted at the moment, with ErrClosed after Close, and with the cause of the end of ctx. It has no
// time limit of its own. For up to four ports, it takes at most 20 seconds, or 45 seconds with
// reach.Reflector, reach.SSH or reach.STUN. It takes longer for more ports; with reach.Phone it
// takes up to two minutes for each port.
func (m *Mapping) Verify(ctx context.Context, probers ...reach.Prober) (reach.Result, error) {
	ctx, end, err := m.forwarder.beginCall(ctx)
	if err != nil {
		return reach.Result{}, err
	}
	defer end()
	return m.verify(ctx, probers, false)
}

// verify implements Verify. If inBackground is set, no port is opened, because the program may
// be about to listen on it.
func (m *Mapping) verify(ctx context.Context, probers []reach.Prober, inBackground bool) (reach.Result, error) {
	f, s := m.forwarder, m.status()
	switch {
	case s.Closed:
		return reach.Result{}, errClosed("mapping")
	case !s.IsActive():
		return reach.Result{}, fmt.Errorf("forward: %w: the gateway has not granted it", ErrNoMapping)
	}
	if len(probers) == 0 {
		probers = f.config.Verify
	}
	ctx, end := m.whileOpen(ctx)
	defer end()
	grants := s.Grants()
	results, errs := make([]reach.Result, len(grants)), make([]error, len(grants))
	var running sync.WaitGroup
	for i, g := range grants {
		running.Go(func() {
			select {
			case f.verifying <- struct{}{}:
				defer func() { <-f.verifying }()
			case <-ctx.Done():
				return
			}
			results[i], errs[i] = m.verifyGrant(ctx, g, probers, inBackground)
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		return reach.Result{}, context.Cause(ctx)
	}
	if err := errors.Join(errs...); err != nil {
		return reach.Result{}, fmt.Errorf("forward: %w", err)
	}
	r := reach.Combine(results...)
	m.verified.Store(&verified{m.socket(), r})
	return r, nil
}

// whileOpen returns a context that also ends when the mapping is closed: its port may then belong to
// another program. The caller must call the returned function.
func (m *Mapping) whileOpen(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-m.Done():
			cancel(errClosed("mapping"))
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(nil); watch.Wait() }
}

// verifyGrant measures one port of a mapping.
func (m *Mapping) verifyGrant(ctx context.Context, g backends.Mapping, probers []reach.Prober, inBackground bool) (reach.Result, error) {
	t := m.target(g)
	if s := m.socket(); s != nil && s.protocol == g.Protocol && s.port == g.Internal.Port() {
		defer s.beginVerification(ctx)()
		since := m.Status().Since
		if m.forwarder.hasOtherForward(g) {
			since = time.Now() // earlier visits may have come through the other one
		}
		return reach.Verify(ctx, t, socketCatcher{s, t, since, s.accepter.skippedCount()}, probers...), nil
	}
	open := reach.Open
	if inBackground {
		open = reach.Watch
	}
	port, err := open(ctx, t)
	if err != nil {
		return reach.Result{}, err
	}
	defer port.Close()
	return reach.Verify(ctx, t, port, probers...), nil
}

// hasOtherForward reports whether another mapping of the Forwarder forwards to the internal endpoint
// of a grant.
func (f *Forwarder) hasOtherForward(g backends.Mapping) (found bool) {
	f.loop.Do(func() {
		for _, m := range f.held {
			for _, other := range m.status().Grants() {
				found = found || other.Protocol == g.Protocol && other.Internal == g.Internal && other.External != g.External
			}
		}
	})
	return found
}

// target describes a grant to the probers.
func (m *Mapping) target(g backends.Mapping) reach.Target {
	t := reach.Target{Protocol: g.Protocol, External: g.External, Internal: g.Internal, SSDP: m.forwarder.config.Test.SSDP}
	if g.Backend == gateway.Direct {
		return t
	}
	t.Gateway, t.UPnPURL = g.Gateway.Addr(), m.forwarder.config.UPnPURL
	if c := m.handle.Client(); c != nil && t.UPnPURL == "" {
		t.UPnPURL = c.UPnPURL()
	}
	if path, err := m.forwarder.findPath(m.family); err == nil {
		t.Interface = path.iface
	}
	return t
}

// verified is what a mapping has for its verification. It is immutable. Mappings that are never
// verified do without it.
type verified struct {
	socket *socketState // the socket of a Listener or PacketConn, or nil
	last   reach.Result // the last result, or the zero value
}

// socket returns the socket of a Listener or PacketConn, or nil.
func (m *Mapping) socket() *socketState {
	if v := m.verified.Load(); v != nil {
		return v.socket
	}
	return nil
}

// lastResult returns the last result of a verification if it is about the present grants, or
// the zero Result.
func (m *Mapping) lastResult(s *gateway.Status) reach.Result {
	if v := m.verified.Load(); v != nil && s.IsActive() && v.last.At.After(s.Since) {
		return v.last
	}
	return reach.Result{}
}
