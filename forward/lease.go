package forward

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
	"unique"

	"github.com/natforward/goforward/backends"
)

// identity is what a gateway can tell mappings apart by. Whoever in the process
// asks for an equal one means the same mapping.
type identity struct {
	place    unique.Handle[place] // a handle, since there are many identities of few places
	protocol backends.Protocol
	internal uint16
}

// place is what the mappings of one host by one backend have in common.
type place struct {
	way      any // of the gateway: a comparable value
	backend  string
	internal netip.Addr
}

// terms are what those who share a mapping must agree on.
type terms struct {
	external uint16
	exact    bool
	samePort bool
	remote   netip.AddrPort
	lifetime time.Duration
}

func (w *wish) terms() terms {
	return terms{w.external, w.exact, w.samePort, w.remote, w.lifetime}
}

// termsError says that somebody in the process holds the mapping on other
// terms: no other backend is to be tricked into a second one.
type termsError struct {
	protocol backends.Protocol
	port     uint16
}

func (e *termsError) Error() string {
	return fmt.Sprintf("%v: this program holds %v port %d already, on other terms", backends.ErrConflict, e.protocol, e.port)
}

func (e *termsError) Unwrap() error { return backends.ErrConflict }

// lease is a mapping on a gateway, shared by all in the process who hold it. It
// is deleted when the last lets go.
type lease struct {
	id   identity
	turn turn // one talks to the gateway about it at a time

	// Guarded by leases.mu.
	users   int // who hold it or wait for it
	holders int

	// Guarded by turn.
	terms   terms
	granted *backends.Mapping // never changed, but exchanged
}

// leases are those of the process, because a gateway cannot tell two
// Forwarders of one host apart.
var leases = struct {
	mu   sync.Mutex
	byID map[identity]*lease
}{byID: map[identity]*lease{}}

// join maps what the request asks for, or takes a share in it where somebody in
// the process has it already. Holders with other terms make it fail with
// ErrConflict. What an earlier run has left, if anything, is taken over.
func join(ctx context.Context, b backends.Backend, id identity, t terms, r backends.Request, old *inheritance) (*lease, *backends.Mapping, error) {
	l := enter(id)
	m, err := l.join(ctx, b, t, r, old)
	if err != nil {
		l.forget()
		return nil, nil, err
	}
	return l, m, nil
}

// enter returns the lease of an identity, with one user more, who has to forget it.
func enter(id identity) *lease {
	leases.mu.Lock()
	defer leases.mu.Unlock()
	l := leases.byID[id]
	if l == nil {
		l = &lease{id: id}
		leases.byID[id] = l
	}
	l.users++
	return l
}

func (l *lease) join(ctx context.Context, b backends.Backend, t terms, r backends.Request, old *inheritance) (*backends.Mapping, error) {
	if err := l.turn.take(ctx); err != nil {
		return nil, err
	}
	defer l.turn.give()
	var (
		m   backends.Mapping
		err error
	)
	defer granting(ctx)()
	switch {
	case l.held() == 0:
		m, err = takeOver(ctx, b, r, old)
	case l.terms != t:
		err = &termsError{l.id.protocol, l.id.internal}
	default:
		m, err = b.Renew(ctx, *l.granted, r)
	}
	if err != nil {
		return nil, err
	}
	l.terms, l.granted = t, &m
	l.hold(+1)
	return &m, nil
}

// takeOver maps what an earlier run has left, in place, or else anew.
func takeOver(ctx context.Context, b backends.Backend, r backends.Request, old *inheritance) (backends.Mapping, error) {
	switch {
	case old == nil:
	case old.fits && r.External.Port() == old.mapping.External.Port():
		if m, err := b.Renew(ctx, old.mapping, r); err == nil || ctx.Err() != nil {
			return m, err
		}
	default:
		_ = b.Unmap(ctx, old.mapping) // what stays of it may be in the way, and then that is told
	}
	return b.Map(ctx, r)
}

// sweep deletes a mapping that nobody in the process holds, and that nobody can
// come to hold meanwhile. What is held stays, which is no error.
func sweep(ctx context.Context, b backends.Backend, id identity, m backends.Mapping) error {
	l := enter(id)
	defer l.forget()
	if err := l.turn.take(ctx); err != nil {
		return err
	}
	defer l.turn.give()
	if l.held() > 0 {
		return nil
	}
	return b.Unmap(ctx, m)
}

// hold changes the number of holders, and returns it.
func (l *lease) hold(change int) int {
	leases.mu.Lock()
	defer leases.mu.Unlock()
	l.holders += change
	return l.holders
}

func (l *lease) held() int { return l.hold(0) }

// agree changes the terms that renewals are to be on, unless somebody else holds
// the mapping too.
func (l *lease) agree(ctx context.Context, t terms) error {
	if err := l.turn.take(ctx); err != nil {
		return err
	}
	defer l.turn.give()
	if l.held() > 1 {
		return &termsError{l.id.protocol, l.id.internal}
	}
	l.terms = t
	return nil
}

// renew asks for the mapping again.
func (l *lease) renew(ctx context.Context, b backends.Backend, r backends.Request) (*backends.Mapping, error) {
	if err := l.turn.take(ctx); err != nil {
		return nil, err
	}
	defer l.turn.give()
	m, err := b.Renew(ctx, *l.granted, r)
	if err != nil {
		return nil, err
	}
	l.granted = &m
	return &m, nil
}

// leave gives a share up, whatever comes of it. The last to leave deletes the
// mapping; where that fails the mapping is left to its lifetime.
func (l *lease) leave(ctx context.Context, b backends.Backend) error {
	defer l.forget()
	if l.hold(-1) > 0 {
		return nil
	}
	if err := l.turn.take(ctx); err != nil {
		return err
	}
	defer l.turn.give()
	if l.held() > 0 { // somebody joined meanwhile
		return nil
	}
	return b.Unmap(ctx, *l.granted)
}

// drop gives up a share of a mapping that is not to be deleted: the gateway has
// forgotten it, or it is left to its lifetime.
func (l *lease) drop() {
	defer l.forget()
	l.hold(-1)
}

// forget takes back a join.
func (l *lease) forget() {
	leases.mu.Lock()
	defer leases.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(leases.byID, l.id)
	}
}
