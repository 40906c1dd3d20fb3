package gethnat

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/adapters/internal/held"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// NAT has the methods of go-ethereum's nat.Interface. They may be called by
// several goroutines at once. Each is bounded by the RequestTimeout of the Forwarder's
// Config, and one that waits for another about the same port by twice that. Make
// one with New.
type NAT struct {
	forwarder *forward.Forwarder
	held      *held.Table
}

// New returns a NAT that maps by f, which stays the caller's: to configure, to
// watch and to close. Nil is a Forwarder of its own with the defaults of package
// forward, which Close closes; it does nothing before it is asked. A server that
// stops takes its mappings away itself, so a program that ends with its server
// has nothing to close.
func New(f *forward.Forwarder) *NAT {
	n := &NAT{forwarder: f, held: held.New("gethnat")}
	if f == nil {
		n.forwarder, _ = forward.New(nil) // a nil config is valid
		n.held.Own = n.forwarder
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
	k, err := n.key(protocol, extport, intport)
	if err != nil {
		return 0, err
	}
	if lifetime < 0 {
		return 0, invalid("negative lifetime %v", lifetime)
	}
	opts := []forward.Option{forward.Protocol(k.Protocol, k.Port), forward.Lifetime(lifetime), forward.NoDefault()}
	if extport != 0 {
		opts = append(opts, forward.External(uint16(extport)))
	}
	if name != "" {
		opts = append(opts, forward.Description(name))
	}
	return n.held.Port(context.Background(), k, func(ctx context.Context) (*forward.Mapping, error) {
		return n.forwarder.Enable(ctx, opts...)
	})
}

// key checks what a mapping is named by.
func (n *NAT) key(protocol string, extport, intport int) (held.Key, error) {
	if extport < 0 || extport > math.MaxUint16 {
		return held.Key{}, invalid("external port %d", extport)
	}
	return n.held.Key(protocol, intport)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("gethnat: %w: %s", backends.ErrInvalid, fmt.Sprintf(format, args...))
}

// DeleteMapping takes the mapping of a protocol and intport away, whatever
// external port it has. One that is not held is gone already, which is success.
// It takes as long as [forward.Mapping.Close]. What the gateway does not take away
// in that time is no longer renewed, and left to its lifetime, and the error says so.
func (n *NAT) DeleteMapping(protocol string, extport, intport int) error {
	k, err := n.key(protocol, extport, intport)
	if err != nil {
		return err
	}
	return n.held.Remove(context.Background(), k)
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
	ms, err := n.held.Mappings()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range ms {
		if addr := m.External().Addr(); m.Backend() == "pcp" && addr.IsValid() {
			return addr, nil
		}
	}
	return n.forwarder.ExternalIP(context.Background())
}

// String is for logs: "goforward", and once something is mapped by what and
// whom, as in "goforward(natpmp 192.168.1.1:5351)". It asks nobody.
func (n *NAT) String() string {
	ms, _ := n.held.Mappings()
	for _, m := range ms {
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

// Close takes away what is held, all at once, in the time of [forward.Mapping.Close].
// A Forwarder of its own is closed with it, and calls that are under way; one that New
// was given stays open. A second call does nothing.
func (n *NAT) Close() error { return n.held.Close() }
