// Package held is a table of the mappings that an adapter made for its callers. The
// adapters share it.
package held

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Table holds one mapping for each Key. Several goroutines may call its methods at once.
// Create it with New.
type Table struct {
	// OwnedForwarder is a Forwarder that Close closes, or nil.
	OwnedForwarder *forward.Forwarder

	name      string
	mu        sync.Mutex
	closed    bool
	mappings  map[Key]*forward.Mapping
	calls     map[Key]*call
	deletions sync.WaitGroup // deletions in progress; none is added after Close began
}

// call is a call of Port in progress.
type call struct {
	done chan struct{} // closed at the end
	err  error         // the error for the calls that wait for this call; valid after done is closed
}

// New returns an empty Table. Its errors begin with the name.
func New(name string) *Table {
	return &Table{name: name, mappings: map[Key]*forward.Mapping{}, calls: map[Key]*call{}}
}

// Key identifies a mapping.
type Key struct {
	Protocol backends.Protocol
	Port     uint16 // internal
}

// Key returns the key of an internal port. The protocol is "tcp" or "udp", in upper or lower
// case. Other values fail with backends.ErrInvalid.
func (t *Table) Key(protocol string, port int) (Key, error) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		switch {
		case !strings.EqualFold(protocol, p.String()):
		case port < 1 || port > math.MaxUint16:
			return Key{}, fmt.Errorf("%s: %w: internal port %d", t.name, backends.ErrInvalid, port)
		default:
			return Key{p, uint16(port)}, nil
		}
	}
	return Key{}, fmt.Errorf("%s: %w: protocol %q: only tcp and udp are supported", t.name, backends.ErrInvalid, protocol)
}

// Port returns the external port of the mapping of a key. If the table has no mapping, enable
// creates one. If the gateway lost the mapping, Port requests it at once; if that request
// fails, the table keeps the mapping. After Close, Port fails with forward.ErrClosed, and
// deletes a mapping that enable creates then.
//
// Calls for the same key wait for each other. If the running call fails, the waiting calls
// fail with its error, unless the context of the running call has ended.
func (t *Table) Port(ctx context.Context, k Key, enable func(context.Context) (*forward.Mapping, error)) (port uint16, err error) {
	waitErr, err := t.lock(ctx, k)
	if err != nil {
		return 0, err
	}
	if t.closed {
		waitErr = t.closedError()
	}
	if waitErr != nil {
		t.mu.Unlock()
		return 0, waitErr
	}
	c, m := &call{done: make(chan struct{})}, t.mappings[k]
	t.calls[k] = c
	t.mu.Unlock()
	defer func() {
		if ctx.Err() == nil {
			c.err = err
		}
		t.mu.Lock()
		delete(t.calls, k)
		t.mu.Unlock()
		close(c.done)
	}()
	if m != nil {
		port, err := t.external(ctx, m)
		switch {
		case !errors.Is(err, forward.ErrClosed) || ctx.Err() != nil:
			return port, err
		case !t.setMapping(k, nil):
			return 0, t.closedError()
		}
		// The program closed the mapping through its Forwarder: create a new one.
	}
	if m, err = enable(ctx); err != nil {
		return 0, err
	}
	if !t.setMapping(k, m) {
		return 0, errors.Join(t.closedError(), m.Shutdown(ctx))
	}
	return t.external(ctx, m)
}

// lock waits until no call for a key is in progress, and locks t.mu. It returns the error
// of the last call that it waited for as waitErr. If ctx ends, it returns err, and t.mu is
// not locked.
func (t *Table) lock(ctx context.Context, k Key) (waitErr, err error) {
	for ctx.Err() == nil {
		t.mu.Lock()
		c := t.calls[k]
		if c == nil {
			return waitErr, nil
		}
		t.mu.Unlock()
		select {
		case <-c.done:
			waitErr = c.err
		case <-ctx.Done():
		}
	}
	return nil, context.Cause(ctx)
}

// setMapping sets the mapping of a key, or removes it if m is nil. It returns false after
// Close.
func (t *Table) setMapping(k Key, m *forward.Mapping) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return false
	case m == nil:
		delete(t.mappings, k)
	default:
		t.mappings[k] = m
	}
	return true
}

// external returns the external port of a mapping. If the mapping is lost, external requests
// it again.
func (t *Table) external(ctx context.Context, m *forward.Mapping) (uint16, error) {
	if port := m.External().Port(); port != 0 {
		return port, nil
	}
	err := m.Refresh(ctx)
	if port := m.External().Port(); port != 0 { // a request in the background may have succeeded
		return port, nil
	}
	if err == nil {
		err = fmt.Errorf("%s: %w: the mapping was lost again", t.name, backends.ErrNoReply)
	}
	return 0, err
}

// Remove deletes the mapping of a key, as forward.Mapping.Close does. If the table has none,
// Remove does nothing. It waits for a call of Port for the same key. If the context ends,
// Remove returns, and a deletion that has begun continues.
func (t *Table) Remove(ctx context.Context, k Key) error {
	if _, err := t.lock(ctx, k); err != nil {
		return err
	}
	m := t.mappings[k]
	if m == nil {
		t.mu.Unlock()
		return nil
	}
	delete(t.mappings, k)
	deleted := make(chan error, 1)
	t.deletions.Go(func() { deleted <- m.Close() })
	t.mu.Unlock()
	select {
	case err := <-deleted:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Mappings returns all mappings, in no order. After Close it fails with forward.ErrClosed.
func (t *Table) Mappings() ([]*forward.Mapping, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, t.closedError()
	}
	return slices.Collect(maps.Values(t.mappings)), nil
}

// Close closes OwnedForwarder, or, if that is nil, all mappings at the same time. It also
// waits for the deletions that Remove began. It does not wait for Port. A second call does
// nothing.
func (t *Table) Close() error {
	t.mu.Lock()
	closed, mappings := t.closed, slices.Collect(maps.Values(t.mappings))
	t.closed = true
	clear(t.mappings)
	t.mu.Unlock()
	if closed {
		return nil
	}
	if t.OwnedForwarder != nil {
		defer t.deletions.Wait() // the deletions end with the Forwarder
		return t.OwnedForwarder.Close()
	}
	errs := make([]error, len(mappings))
	for i, m := range mappings {
		t.deletions.Go(func() { errs[i] = m.Close() })
	}
	t.deletions.Wait()
	return errors.Join(errs...)
}

func (t *Table) closedError() error { return fmt.Errorf("%s: %w", t.name, forward.ErrClosed) }
