package forward_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

const (
	// noAnswer as a delay means that the gateway drops the request.
	noAnswer time.Duration = -1
	// giveUpAfter is when a backend that retransmits stops waiting for an answer.
	giveUpAfter = 13750 * time.Millisecond
)

// delayed is a gateway in memory whose answers take time. It handles a request as
// soon as the request is sent, and answers later. Requests are sent one at a time.
type delayed struct {
	*memory
	sending chan struct{} // holds one element while a request is in flight

	// Guarded by memory.mu.
	delays        map[string]time.Duration // by operation and protocol: "unmap tcp"
	ignoreContext bool                     // the backend returns only after the answer
	answers       int                      // deletions that are answered; the rest is dropped. Negative: all
	silentAddress bool                     // requests for the external address are dropped
}

// newDelayed returns a gateway, and a Forwarder that uses only this gateway. The
// Forwarder is closed at the end of the test, which waits for every request.
func newDelayed(t *testing.T, delays map[string]time.Duration) (*delayed, *forward.Forwarder) {
	t.Helper()
	d := &delayed{memory: newMemory(), sending: make(chan struct{}, 1), delays: delays, answers: -1}
	f := forwarder(t, forward.Config{Backends: []backends.Backend{d}})
	t.Cleanup(func() {
		_ = f.Close()
		time.Sleep(time.Minute) // a backend that ignores its context has returned then
	})
	return d, f
}

// enable8080 returns a mapping of TCP port 8080.
func enable8080(t *testing.T, f *forward.Forwarder) *forward.Mapping {
	t.Helper()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// send sends one request and waits for the answer. If ctx ends first, the gateway
// has still handled the request.
func (d *delayed) send(ctx context.Context, op string, p backends.Protocol, handle func(context.Context) error) error {
	d.mu.Lock()
	delay, ignore := d.delays[fmt.Sprintf("%s %v", op, p)], d.ignoreContext
	d.mu.Unlock()
	if ignore {
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case d.sending <- struct{}{}:
		defer func() { <-d.sending }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if delay == noAnswer || op == "unmap" && !d.answersNext() {
		if err := pause(ctx, giveUpAfter); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", d.name, backends.ErrNoReply)
	}
	handled := handle(ctx)
	if err := pause(ctx, delay); err != nil {
		return err
	}
	return handled
}

// answersNext reports whether the next deletion is answered, and counts it.
func (d *delayed) answersNext() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answers > 0 {
		d.answers--
		return true
	}
	return d.answers < 0
}

// ExternalAddr does not wait for other requests.
func (d *delayed) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	d.mu.Lock()
	silent := d.silentAddress
	d.mu.Unlock()
	if !silent {
		return d.memory.ExternalAddr(ctx)
	}
	if err := pause(ctx, giveUpAfter); err != nil {
		return netip.Addr{}, err
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", d.name, backends.ErrNoReply)
}

func (d *delayed) Map(ctx context.Context, r backends.Request) (g backends.Mapping, err error) {
	err = d.send(ctx, "map", r.Protocol, func(ctx context.Context) (err error) {
		g, err = d.memory.Map(ctx, r)
		return err
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	return g, nil
}

func (d *delayed) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (g backends.Mapping, err error) {
	err = d.send(ctx, "renew", r.Protocol, func(ctx context.Context) (err error) {
		g, err = d.memory.Renew(ctx, old, r)
		return err
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	return g, nil
}

func (d *delayed) Unmap(ctx context.Context, g backends.Mapping) error {
	return d.send(ctx, "unmap", g.Protocol, func(ctx context.Context) error { return d.memory.Unmap(ctx, g) })
}

var _ interface {
	backends.Backend
	backends.Watcher
} = (*delayed)(nil)
