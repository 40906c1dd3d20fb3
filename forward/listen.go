package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// Listener is a net.Listener for TCP that the gateway forwards to, as long as
// it is open. Its methods may be called by several goroutines at once.
type Listener struct {
	*net.TCPListener
	socketMappings
	visit atomic.Pointer[visit] // the last one; nil: none
}

// visit is a connection that came from the internet.
type visit struct {
	at   time.Time
	from netip.AddrPort
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// AcceptTCP is Accept with the type of package net.
func (l *Listener) AcceptTCP() (*net.TCPConn, error) {
	conn, err := l.TCPListener.AcceptTCP()
	if err == nil {
		l.recordVisit(netip.MustParseAddrPort(conn.RemoteAddr().String())) // package net formats TCP addresses so
	}
	return conn, err
}

// note records a connection if it is a visit.
func (l *Listener) recordVisit(from netip.AddrPort) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if before := l.visit.Load(); before != nil && before.from.Addr() == from.Addr() || l.isFromInternet(from.Addr()) {
		l.visit.Store(&visit{time.Now(), from})
	}
}

// isVisitor reports whether an address is one of the internet, and neither this host's nor
// the gateway's.
func (l *Listener) isFromInternet(from netip.Addr) bool {
	return backends.ScopeOf(from) == backends.ScopePublic && !netbind.HasAddr(from) &&
		!slices.ContainsFunc(l.Externals(), func(e backends.Endpoint) bool { return e.Addr() == from })
}

// Visited returns when and from where the last connection came from the internet, of those
// that Accept returned: from a public address that is neither this host's nor the gateway's.
// That proves that the port was reachable then. The zero Time: none came yet, which proves
// nothing. A PacketConn has no such method, since a datagram can be the answer to one that
// was sent.
func (l *Listener) Visited() (at time.Time, from netip.AddrPort) {
	if v := l.visit.Load(); v != nil {
		return v.at, v.from
	}
	return time.Time{}, netip.AddrPort{}
}

// Listen listens for TCP as net.Listen does, and makes the gateway forward to
// that port until the Listener is closed: in the background, and for ever, so
// that it accepts local connections at once, whatever the gateway does. What the
// world reaches is what External tells.
//
// The network is "tcp", "tcp4" or "tcp6". A socket for both families gets an
// IPv4 mapping and, where a default route for IPv6 and a global address are there
// at the time, a pinhole in the gateway's IPv6 firewall; "tcp4" is the mapping
// alone, and "tcp6" the pinhole. A gateway on loopback that was named in the
// Config, as in tests, is the only one that is asked for such a socket. A
// specific local address gets what is of its family. Port 0 is a free port.
//
// The options External, ExternalAddr, Exact, From, Lifetime, RenewEvery, OnChange and Description are
// those of Enable. A pinhole translates no port, so External is about the
// mapping, and it lasts a day at most, each time; From wants only what is of the
// peer's family.
//
// It fails where the port cannot be bound, with ErrClosed, and with
// backends.ErrInvalid for another network, other options and addresses that
// nobody else can reach, such as loopback's. The context, which Config.RequestTimeout
// bounds, is for looking the address up. Disable and Refresh without selectors
// pass what it holds over.
func (f *Forwarder) Listen(ctx context.Context, network, address string, opts ...Option) (*Listener, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, invalid("Listen on network %q: want tcp, tcp4 or tcp6", network)
	}
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	f.callHook(ctx)
	r, err := f.forwardSocket(backends.TCP, network, ln, ln.Addr(), opts)
	if err != nil {
		return nil, err
	}
	return &Listener{TCPListener: ln.(*net.TCPListener), socketMappings: r}, nil //nolint:forcetypeassert // what package net promises for TCP
}

// Listen is [Forwarder.Listen] of the package's own Forwarder.
func Listen(network, address string, opts ...Option) (*Listener, error) {
	return forwarder().Listen(context.Background(), network, address, opts...)
}

// Close stops listening, and deletes the mapping and the pinhole, as that of [Mapping] does.
// A second call waits for the first and returns the same error.
func (l *Listener) Close() error { return l.close() }

// PacketConn is a net.PacketConn for UDP that the gateway forwards to, as long
// as it is open. It has all methods of net.UDPConn, so that libraries use it as one: with
// control messages, in batches, and with the sizes of its buffers. Its methods may be called
// by several goroutines at once.
type PacketConn struct {
	*net.UDPConn
	socketMappings
}

// ReadFromAddrPort is ReadFromUDPAddrPort, by the name that github.com/pion/ice looks for.
func (c *PacketConn) ReadFromAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	return c.ReadFromUDPAddrPort(b)
}

// WriteToAddrPort is WriteToUDPAddrPort, by the name that github.com/pion/ice looks for.
func (c *PacketConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteToUDPAddrPort(b, to)
}

// ListenPacket is Listen for UDP: the network is "udp", "udp4" or "udp6".
func (f *Forwarder) ListenPacket(ctx context.Context, network, address string, opts ...Option) (*PacketConn, error) {
	if network != "udp" && network != "udp4" && network != "udp6" {
		return nil, invalid("ListenPacket on network %q: want udp, udp4 or udp6", network)
	}
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	f.callHook(ctx)
	r, err := f.forwardSocket(backends.UDP, network, pc, pc.LocalAddr(), opts)
	if err != nil {
		return nil, err
	}
	return &PacketConn{pc.(*net.UDPConn), r}, nil //nolint:forcetypeassert // what package net promises for UDP
}

// ListenPacket is [Forwarder.ListenPacket] of the package's own Forwarder.
func ListenPacket(network, address string, opts ...Option) (*PacketConn, error) {
	return forwarder().ListenPacket(context.Background(), network, address, opts...)
}

// Close is as that of [Listener].
func (c *PacketConn) Close() error { return c.close() }

// reach is how the world reaches a socket.
type socketMappings struct {
	mappings []*Mapping // at least one; that of IPv4 first
	close    func() error
}

// expose makes a socket reachable, in the background, or closes it.
func (f *Forwarder) forwardSocket(p backends.Protocol, network string, socket io.Closer, at net.Addr, opts []Option) (socketMappings, error) {
	bound := netip.MustParseAddrPort(at.String()) // package net formats TCP and UDP addresses so
	specs, err := f.listenSpecs(p, network, bound, opts)
	if err != nil {
		_ = socket.Close()
		return socketMappings{}, err
	}
	var r socketMappings
	for _, s := range specs {
		r.mappings = append(r.mappings, f.addMapping(&s, true))
	}
	var closing once
	r.close = func() error {
		return closing.do(context.Background(), func() error {
			err := socket.Close() // first, so that no connection is accepted that could not be served
			_, deleteErr := f.closeAll(context.Background(), r.mappings)
			return errors.Join(err, deleteErr)
		})
	}
	return r, nil
}

// External returns the address and port that the internet reaches: that of IPv4 if it is
// granted, else that of the pinhole, or the zero Endpoint if none is. The address is the
// zero Addr if the gateway hides it.
func (r *socketMappings) External() backends.Endpoint {
	if all := r.Externals(); len(all) > 0 {
		return all[0]
	}
	return backends.Endpoint{}
}

// Externals returns all that is granted now, as External does: that of IPv4 first, then
// that of the pinhole.
func (r *socketMappings) Externals() []backends.Endpoint {
	var out []backends.Endpoint
	for _, m := range r.mappings {
		if external := m.External(); !external.IsZero() {
			out = append(out, external)
		}
	}
	return out
}

// Wait returns nil as soon as External has an endpoint, ErrClosed when the socket or its
// mappings are closed, or the cause of the context's end. Mapping has the reason if it is
// not granted.
func (r *socketMappings) Wait(ctx context.Context) error { return waitForOne(ctx, r.mappings...) }

// Mapping returns the live handle of the IPv4 mapping, or of the pinhole where
// that is all that is asked for: to wait until it is granted, for changes, or for
// why it is not. It is closed with the Listener, with the Forwarder, and by
// Disable where that selects it.
func (r *socketMappings) Mapping() *Mapping { return r.mappings[0] }

// Mappings returns the live handles of what is asked for, one or two: that of
// IPv4 first, then the pinhole's.
func (r *socketMappings) Mappings() []*Mapping { return slices.Clone(r.mappings) }

// listenSpecs are what makes a socket reachable: the IPv4 mapping, the IPv6
// pinhole, or both in this order.
func (f *Forwarder) listenSpecs(p backends.Protocol, network string, bound netip.AddrPort, opts []Option) ([]spec, error) {
	addr, port := bound.Addr().Unmap(), bound.Port()
	if addr.IsLoopback() || addr.IsMulticast() || addr.Is6() && addr.IsLinkLocalUnicast() {
		return nil, invalid("no other host can be let in to %v: leave the address out, or name another", addr)
	}
	s, err := f.listenSpec(p, port, opts)
	if err != nil {
		return nil, err
	}
	if !addr.IsUnspecified() {
		s.Internal = netip.AddrPortFrom(addr, port)
	}
	mapping, pinhole := f.families(network, addr, s.Remote.Addr().Unmap())
	switch {
	case !mapping && !pinhole:
		return nil, invalid("From %v is of another family than what listens, %v", s.Remote.Addr(), bound)
	case !mapping && s.Exact && s.External != 0 && s.External != port:
		return nil, invalid("Exact, but a pinhole translates no port: external port %d, and %v listens", s.External, bound)
	}
	var specs []spec
	if mapping {
		w4 := s
		w4.ipv4 = true
		specs = append(specs, w4)
	}
	if pinhole {
		w6 := s
		w6.ipv6, w6.External, w6.Address, w6.Lifetime = true, 0, netip.Addr{}, min(s.Lifetime, maxPinholeLifetime)
		specs = append(specs, w6)
	}
	return specs, nil
}

// listenSpec is the sum of the options for a port that somebody listens on.
func (f *Forwarder) listenSpec(p backends.Protocol, port uint16, opts []Option) (spec, error) {
	s, err := f.newSpec(nil)
	if err != nil {
		return spec{}, err
	}
	s.Protocols, s.Internal = []backends.Protocol{p}, netip.AddrPortFrom(netip.Addr{}, port)
	if err := s.add(opts); err != nil {
		return spec{}, err
	}
	for _, wrong := range []struct {
		given bool
		why   string
	}{
		{slices.Contains(s.given, optionProtocol), "an option names a protocol: the network does"},
		{s.Internal.Addr().IsValid(), "the option To: the address says where to listen"},
		{s.ipv6, `the option IPv6: the network says so, as in "tcp6"`},
		{s.Count > 0, "the option Ports: one port is bound"},
		{s.SamePort, "the option SamePort: the port is bound already"},
		{s.Once, "the option Once: it is kept alive until it is closed"},
		{s.Background, "the option Background: it always works in the background"},
	} {
		if wrong.given {
			return spec{}, invalid("listening with %s", wrong.why)
		}
	}
	s.Background, s.noDefault = true, true
	return s, nil
}

// longestPinhole is what UPnP grants at most, which refuses to open one for ever.
const maxPinholeLifetime = 24 * time.Hour

// families says by what a socket is to be reached: the network and the address
// that it is bound to leave a choice only where it is for both, and the peer that
// alone is admitted, if valid, makes it.
func (f *Forwarder) families(network string, bound, peer netip.Addr) (mapping, pinhole bool) {
	is4 := bound.Is4() || bound.IsUnspecified() && !strings.HasSuffix(network, "6")
	is6 := bound.Is6()
	switch {
	case peer.IsValid():
		return is4 && peer.Is4(), is6 && peer.Is6()
	case is4 && is6:
		return f.expectsGateway(ipv4), f.expectsGateway(ipv6)
	}
	return is4, is6
}

// leads reports whether the gateway of a family is worth asking where nobody
// insists on it. An IPv4 network may yet come; without an IPv6 one there is
// nothing to open and much to warn of.
func (f *Forwarder) expectsGateway(fam family) bool {
	named := f.config.Gateway.Addr()
	switch {
	case len(f.config.Backends) > 0: // for which family, they do not tell
		return fam == f.family()
	case named.IsLoopback(): // a test's: the other family's gateway would be a real one
		return fam == familyOf(named)
	case fam == ipv4:
		return true
	}
	path, err := f.findPath(ipv6)
	return err == nil && !path.source.IsPrivate() && !path.source.IsLinkLocalUnicast()
}
