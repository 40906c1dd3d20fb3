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

// NAT implements go-ethereum's nat.Interface. Several goroutines may call its methods at
// once. Each call takes at most the RequestTimeout of the Forwarder's Config, or twice that
// if it waits for another call for the same port. Create it with New.
type NAT struct {
	forwarder *forward.Forwarder
	held      *held.Table
}

// New returns a NAT that maps ports with f. The caller still configures f, receives its
// events and closes it. If f is nil, the NAT creates a Forwarder with the defaults of
// package forward, and Close closes it. That Forwarder sends nothing before the first
// request. A server that stops deletes its mappings, so a program that ends with its server
// need not close the NAT.
func New(f *forward.Forwarder) *NAT {
	n := &NAT{forwarder: f, held: held.New("gethnat")}
	if f == nil {
		n.forwarder, _ = forward.New(nil) // a nil config is valid
		n.held.OwnedForwarder = n.forwarder
	}
	return n
}

// AddMapping makes the gateway forward a port to this host's intport, and returns the
// external port that it granted. The protocol is "TCP" or "UDP", in upper or lower case.
// The external port is a suggestion; 0 suggests the number of intport. If the suggested port
// is in use, the gateway grants another one, and AddMapping succeeds. If name is not empty
// and the protocol has a description, the gateway shows the name in its table. The lifetime
// is the requested duration of each grant; 0 is the lifetime of the Forwarder's Config. The
// mapping is renewed until DeleteMapping. After a crash, the gateway deletes it when its
// lifetime ends.
//
// There is one mapping for a protocol and intport. If it exists already, AddMapping returns
// its current external port, which may differ from extport. Its suggested port, name and
// lifetime remain those of the first call. If the gateway lost the mapping, AddMapping
// requests it at once. If that fails, AddMapping returns the error, and the NAT keeps
// retrying.
//
// Other protocols, ports out of range and a negative lifetime fail with
// [backends.ErrInvalid]. After Close, every call fails with [forward.ErrClosed]. The other
// errors are those of [forward.Forwarder.Enable].
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

// key checks the protocol and ports, and returns the key of the mapping.
func (n *NAT) key(protocol string, extport, intport int) (held.Key, error) {
	if extport < 0 || extport > math.MaxUint16 {
		return held.Key{}, invalid("external port %d", extport)
	}
	return n.held.Key(protocol, intport)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("gethnat: %w: %s", backends.ErrInvalid, fmt.Sprintf(format, args...))
}

// DeleteMapping deletes the mapping of a protocol and intport; it ignores extport. If there
// is no such mapping, it succeeds. It takes as long as [forward.Mapping.Close]. If the
// gateway does not delete the mapping in that time, DeleteMapping returns an error; the
// mapping is no longer renewed, and ends with its lifetime.
func (n *NAT) DeleteMapping(protocol string, extport, intport int) error {
	k, err := n.key(protocol, extport, intport)
	if err != nil {
		return err
	}
	return n.held.Remove(context.Background(), k)
}

// ExternalIP requests the external address from the gateway. If the internet cannot reach
// that address, it fails with [backends.ErrPrivateWAN]. PCP has no request for the external
// address; only a mapping reveals it. While the NAT holds a mapping by PCP, ExternalIP
// returns the address that the gateway last reported for it.
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

// String returns a text for logs: "goforward" and, if there is a mapping, its protocol and
// gateway, as in "goforward(natpmp 192.168.1.1:5351)". It sends no request.
func (n *NAT) String() string {
	ms, _ := n.held.Mappings()
	for _, m := range ms {
		backend, gateway := m.Backend(), m.Gateway()
		switch {
		case backend == "":
		case gateway.IsValid():
			return fmt.Sprintf("goforward(%s %v)", backend, gateway)
		default:
			return fmt.Sprintf("goforward(%s)", backend)
		}
	}
	return "goforward"
}

// MarshalText returns "any", the closest value that a go-ethereum configuration file can
// contain. If go-ethereum reads that value, it uses its own NAT detection.
func (n *NAT) MarshalText() ([]byte, error) { return []byte("any"), nil }

// Close deletes all mappings at the same time. It takes as long as [forward.Mapping.Close].
// If New created the Forwarder, Close closes it too, and ends calls in progress. A Forwarder
// that was passed to New stays open. A second call does nothing.
func (n *NAT) Close() error { return n.held.Close() }
