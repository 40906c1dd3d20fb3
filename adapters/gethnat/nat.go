package gethnat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// NAT has the methods of go-ethereum's nat.Interface. They may be called by
// several goroutines at once. Each is bounded by the Timeout of the Forwarder's
// Config, and one that waits for another about the same port by twice that. Make
// one with New.
type NAT struct {
	forwarder *forward.Forwarder
	owned     bool // by New

	mu       sync.Mutex
	closed   bool
	held     map[endpoint]*forward.Mapping
	attempts map[endpoint]*attempt // under way
}

// attempt is a call of AddMapping, and what it came to once it is over.
type attempt struct {
	over chan struct{} // closed
	port uint16
	err  error
}

// New returns a NAT that maps by f, which stays the caller's: to configure, to
// watch and to close. Nil is a Forwarder of its own with the defaults of package
// forward, which Close closes; it does nothing before it is asked. A server that
// stops takes its mappings away itself, so a program that ends with its server
// has nothing to close.
func New(f *forward.Forwarder) *NAT {
	n := &NAT{forwarder: f, held: map[endpoint]*forward.Mapping{}, attempts: map[endpoint]*attempt{}}
	if f == nil {
		n.forwarder, _ = forward.New(nil) // a nil config is valid
		n.owned = true
	}
	return n
}

// AddMapping makes the gateway forward a port to this host's intport, and
// returns the external port that it granted. The protocol is "TCP" or "UDP", in
// any case. The external port is a wish, 0 being one for the number of intport:
// where it is taken, another is granted, which is success. The name is what
// gateways show in their table, where it is not empty and the protocol carries
// one. The lifetime is what each grant is to last, 0 being the Forwarder's: the
// mapping is renewed until DeleteMapping, and one that a crash leaves behind
// goes away after it.
//
// There is one mapping for a protocol and intport. Where it is held already, the
// external port that it has now is returned, which may not be the extport of
// the call; wish, name and lifetime stay those of the call that made it. Where
// the gateway has lost it, it is asked for at once, and the error is why it
// cannot be had; it is kept being tried for.
//
// Other protocols, ports out of range and a negative lifetime fail with
// [backends.ErrInvalid], and everything after Close with [forward.ErrClosed].
// The other errors are those of [forward.Forwarder.Enable].
func (n *NAT) AddMapping(protocol string, extport, intport int, name string, lifetime time.Duration) (uint16, error) {
	e, err := parse(protocol, extport, intport)
	if err != nil {
		return 0, err
	}
	if lifetime < 0 {
		return 0, invalid("negative lifetime %v", lifetime)
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return 0, errClosed
	}
	if a := n.attempts[e]; a != nil {
		n.mu.Unlock()
		<-a.over
		return a.port, a.err
	}
	a := &attempt{over: make(chan struct{})}
	n.attempts[e] = a
	m := n.held[e]
	n.mu.Unlock()
	defer n.end(e, a)
	if m != nil {
		a.port, a.err = current(m)
		if !errors.Is(a.err, forward.ErrClosed) {
			return a.port, a.err
		}
		// Somebody disabled it by the Forwarder; now it is wanted again.
	}
	m, a.err = n.enable(e, extport, name, lifetime)
	if a.err == nil {
		a.port = m.External().Port()
	}
	return a.port, a.err
}

// end lets those go on who wait for an attempt.
func (n *NAT) end(e endpoint, a *attempt) {
	n.mu.Lock()
	delete(n.attempts, e)
	n.mu.Unlock()
	close(a.over)
}

// current is the external port of a mapping, which is asked for where it is
// lost.
func current(m *forward.Mapping) (uint16, error) {
	if port := m.External().Port(); port != 0 {
		return port, nil
	}
	err := m.Refresh(context.Background())
	if port := m.External().Port(); port != 0 { // perhaps by somebody else's doing
		return port, nil
	}
	if err == nil {
		err = fmt.Errorf("gethnat: %w: lost again", backends.ErrNoReply)
	}
	return 0, err
}

// enable gets a mapping and holds it.
func (n *NAT) enable(e endpoint, extport int, name string, lifetime time.Duration) (*forward.Mapping, error) {
	opts := []forward.Option{forward.Protocol(e.protocol, e.port), forward.Lifetime(lifetime), forward.NoDefault()}
	if extport != 0 {
		opts = append(opts, forward.External(uint16(extport)))
	}
	if name != "" {
		opts = append(opts, forward.Description(name))
	}
	m, err := n.forwarder.Enable(context.Background(), opts...)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.held[e] = m
	}
	n.mu.Unlock()
	if closed {
		return nil, errors.Join(errClosed, m.Close())
	}
	return m, nil
}

// DeleteMapping takes the mapping of a protocol and intport away, whatever
// external port it has. One that is not held is gone already, which is success.
// Where the gateway does not take it away within two seconds, it is no longer renewed, and left to
// its lifetime, and the error says so.
func (n *NAT) DeleteMapping(protocol string, extport, intport int) error {
	e, err := parse(protocol, extport, intport)
	if err != nil {
		return err
	}
	m := n.release(e)
	if m == nil {
		return nil
	}
	return takeAway(m)
}

// closeTime bounds the deletion of a mapping: a server that stops waits for it.
const closeTime = 2 * time.Second

func takeAway(m *forward.Mapping) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), closeTime, fmt.Errorf("%w within %v", backends.ErrNoReply, closeTime))
	defer cancel()
	return m.Shutdown(ctx)
}

// release returns what is held, or nil, and holds it no more. It waits for an
// attempt that is under way.
func (n *NAT) release(e endpoint) *forward.Mapping {
	for {
		n.mu.Lock()
		a := n.attempts[e]
		if a == nil {
			m := n.held[e]
			delete(n.held, e)
			n.mu.Unlock()
			return m
		}
		n.mu.Unlock()
		<-a.over
	}
}

// ExternalIP asks the gateway for its external address. Where that is one that
// the world cannot reach, it fails with [backends.ErrPrivateWAN]. PCP has no
// question for it but a mapping: while one is held by PCP, it is the address of
// that, as the gateway said last.
func (n *NAT) ExternalIP() (net.IP, error) {
	addr, err := n.externalAddr()
	if err != nil {
		return nil, err
	}
	if s := backends.ScopeOf(addr); s == backends.ScopePrivate || s == backends.ScopeShared {
		return nil, fmt.Errorf("gethnat: %w: %v", backends.ErrPrivateWAN, addr)
	}
	return addr.Unmap().AsSlice(), nil
}

func (n *NAT) externalAddr() (netip.Addr, error) {
	n.mu.Lock()
	closed := n.closed
	n.mu.Unlock()
	if closed {
		return netip.Addr{}, errClosed
	}
	for _, m := range n.mappings() {
		if addr := m.External().Addr(); m.Backend() == "pcp" && addr.IsValid() {
			return addr, nil
		}
	}
	return n.forwarder.ExternalIP(context.Background())
}

// mappings is what is held, in no order.
func (n *NAT) mappings() []*forward.Mapping {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ms []*forward.Mapping
	for _, m := range n.held {
		ms = append(ms, m)
	}
	return ms
}

// String is for logs: "goforward", and once something is mapped by what and
// whom, as in "goforward(natpmp 192.168.1.1:5351)". It asks nobody.
func (n *NAT) String() string {
	for _, m := range n.mappings() {
		by, gateway := m.Backend(), m.Gateway()
		switch {
		case by == "":
		case gateway.IsValid():
			return fmt.Sprintf("goforward(%s %v)", by, gateway)
		default:
			return fmt.Sprintf("goforward(%s)", by)
		}
	}
	return "goforward"
}

// MarshalText writes "any", which is what a go-ethereum configuration file can
// say that comes nearest: read again, it is the detection of go-ethereum's own.
func (n *NAT) MarshalText() ([]byte, error) { return []byte("any"), nil }

// Close takes away what is held, within two seconds. A Forwarder of its own is
// closed with it, and calls that are under way; one that New was given stays open.
// A second call does nothing.
func (n *NAT) Close() error {
	n.mu.Lock()
	closed := n.closed
	n.closed = true
	n.mu.Unlock()
	if closed {
		return nil
	}
	if n.owned {
		return n.forwarder.Close()
	}
	return closeAll(n.mappings())
}

// closeAll closes mappings, all at once: a gateway that is away costs the time
// of one.
func closeAll(ms []*forward.Mapping) error {
	errs := make([]error, len(ms))
	var all sync.WaitGroup
	for i, m := range ms {
		all.Go(func() { errs[i] = takeAway(m) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// errClosed is what calls after Close come to.
var errClosed = fmt.Errorf("gethnat: %w", forward.ErrClosed)
