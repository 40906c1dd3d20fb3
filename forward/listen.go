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
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/reach"
)

// Listener is a net.Listener for TCP to which the gateway forwards while it is open. Its
// methods may be called by several goroutines at once.
type Listener struct {
	*net.TCPListener
	socketMappings
}

// Accept waits for the next connection and returns it.
func (l *Listener) Accept() (net.Conn, error) {
	conn, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// AcceptTCP is Accept with the connection type of package net. While the mapping is verified, the
// connections of probers are not returned, and other connections that a prober's could be are
// returned when their first bytes have arrived, or 300 ms later.
func (l *Listener) AcceptTCP() (*net.TCPConn, error) {
	l.socket.begin()
	defer l.socket.end()
	conn, err := l.socket.accepter.accept()
	if err != nil {
		return nil, err
	}
	l.recordVisit(tcpEndpoint(conn.RemoteAddr()), tcpEndpoint(conn.LocalAddr()))
	return conn, nil
}

// SetDeadline sets the time after which Accept fails with a timeout, like the method of
// net.TCPListener. The zero Time means never. A deadline that is set on the embedded TCPListener
// may be lost while the mapping is verified.
func (l *Listener) SetDeadline(t time.Time) error { return l.socket.accepter.setDeadline(t) }

// recordVisit records a connection if it is from the internet.
func (l *Listener) recordVisit(from, to netip.AddrPort) {
	slot := &l.socket.visits[familyOf(from.Addr())]
	if before := slot.Load(); before == nil || before.from.Addr() != from.Addr() || before.to != to {
		if !l.isFromInternet(from.Addr(), to) {
			return
		}
	}
	v := &visit{time.Now(), from, to}
	slot.Store(v)
	l.socket.lastVisit.Store(v)
}

// isFromInternet reports whether a connection to a local endpoint is from the internet.
func (l *Listener) isFromInternet(from netip.Addr, to netip.AddrPort) bool {
	if !(reach.Target{Internal: to}).IsFromInternet(from) {
		return false
	}
	return !slices.ContainsFunc(l.Externals(), func(e backends.Endpoint) bool { return e.Addr() == from })
}

// Visited returns the time and the peer of the last connection from the internet that Accept
// returned: from a public address that belongs neither to this host, its networks and its IPv6
// site, nor to the gateway. Such a connection proves that the port was reachable at that time;
// Mapping.Verify takes it into account. The zero Time means that there has been none, which
// proves nothing. A PacketConn has no such method, because a datagram can be the response to one
// that this host sent.
func (l *Listener) Visited() (at time.Time, from netip.AddrPort) {
	if v := l.socket.lastVisit.Load(); v != nil {
		return v.at, v.from
	}
	return time.Time{}, netip.AddrPort{}
}

// Listen listens for TCP as net.Listen does. Until the Listener is closed, the gateway
// forwards an external port to it. The mapping is requested in the background and retried
// without limit. The Listener therefore accepts local connections at once, even if the
// gateway refuses. External returns the address that the internet reaches.
//
// The network is "tcp", "tcp4" or "tcp6". A "tcp" socket for both families gets an IPv4
// mapping. If this host then has a default route for IPv6 and a global address, the socket
// also gets a pinhole in the gateway's IPv6 firewall. With "tcp4" there is only the mapping,
// and with "tcp6" only the pinhole. If the Config names a gateway on loopback, as in tests,
// only that gateway is used. A specific local address gets the mapping or the pinhole of its
// family. Port 0 means any free port.
//
// The options External, ExternalAddr, Exact, From, Lifetime, RenewEvery, OnChange and
// Description have the same meaning as for Enable. A pinhole does not translate ports, so
// External applies only to the mapping. Each grant of a pinhole lasts at most one day. With
// From, there is only the mapping or pinhole of the peer's family.
//
// Listen fails if the port cannot be bound. It fails with ErrClosed after Close. It fails
// with backends.ErrInvalid for any other network, for any other option, and for an address
// that no other host can reach, such as loopback. The context applies to the lookup of the
// address, which Config.RequestTimeout bounds. Disable and Refresh without selectors skip the
// mappings of a Listener.
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
	return &Listener{TCPListener: ln.(*net.TCPListener), socketMappings: r}, nil //nolint:forcetypeassert // package net guarantees this type for TCP
}

// Listen calls [Forwarder.Listen] on the package's own Forwarder.
func Listen(network, address string, opts ...Option) (*Listener, error) {
	return forwarder().Listen(context.Background(), network, address, opts...)
}

// Close closes the socket and deletes the mapping and the pinhole. Its time limit and its
// error are those of [Mapping.Close]. A second call waits for the first and returns the same
// error.
func (l *Listener) Close() error { return l.close() }

// PacketConn is a net.PacketConn for UDP to which the gateway forwards while it is open. It
// has all methods of net.UDPConn, so that libraries can use it as one: for control messages,
// for batches and for the sizes of its buffers. Its methods may be called by several
// goroutines at once.
type PacketConn struct {
	*net.UDPConn
	socketMappings
}

// ReadFromUDPAddrPort is the method of net.UDPConn. Like all methods of PacketConn that read, it
// does not return the datagrams of a verification. A library that reads from the file descriptor
// gets them too, and must ignore them.
func (c *PacketConn) ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	c.socket.begin()
	defer c.socket.end()
	for {
		n, from, err = c.UDPConn.ReadFromUDPAddrPort(b)
		if err != nil || !c.socket.takeDatagram(b[:n], from) {
			return n, from, err
		}
	}
}

// ReadMsgUDPAddrPort is the method of net.UDPConn.
func (c *PacketConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, from netip.AddrPort, err error) {
	c.socket.begin()
	defer c.socket.end()
	for {
		n, oobn, flags, from, err = c.UDPConn.ReadMsgUDPAddrPort(b, oob)
		if err != nil || !c.socket.takeDatagram(b[:n], from) {
			return n, oobn, flags, from, err
		}
	}
}

// ReadMsgUDP is the method of net.UDPConn.
func (c *PacketConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, from *net.UDPAddr, err error) {
	n, oobn, flags, at, err := c.ReadMsgUDPAddrPort(b, oob)
	if at.IsValid() {
		from = net.UDPAddrFromAddrPort(at)
	}
	return n, oobn, flags, from, err
}

// ReadFromUDP is the method of net.UDPConn.
func (c *PacketConn) ReadFromUDP(b []byte) (n int, from *net.UDPAddr, err error) {
	n, at, err := c.ReadFromUDPAddrPort(b)
	if at.IsValid() {
		from = net.UDPAddrFromAddrPort(at)
	}
	return n, from, err
}

// ReadFrom is the method of net.PacketConn.
func (c *PacketConn) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	n, at, err := c.ReadFromUDP(b)
	if at == nil { // not an interface with a nil pointer
		return n, nil, err
	}
	return n, at, err
}

// Read is the method of net.UDPConn. It discards the source of the datagram.
func (c *PacketConn) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return c.UDPConn.Read(b)
	}
	n, _, err = c.ReadFromUDPAddrPort(b)
	return n, err
}

// ReadFromAddrPort calls ReadFromUDPAddrPort. It has the name that github.com/pion/ice
// expects.
func (c *PacketConn) ReadFromAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	return c.ReadFromUDPAddrPort(b)
}

// WriteToAddrPort calls WriteToUDPAddrPort. It has the name that github.com/pion/ice expects.
func (c *PacketConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteToUDPAddrPort(b, to)
}

// ListenPacket is Listen for UDP. The network is "udp", "udp4" or "udp6".
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
	return &PacketConn{pc.(*net.UDPConn), r}, nil //nolint:forcetypeassert // package net guarantees this type for UDP
}

// ListenPacket calls [Forwarder.ListenPacket] on the package's own Forwarder.
func ListenPacket(network, address string, opts ...Option) (*PacketConn, error) {
	return forwarder().ListenPacket(context.Background(), network, address, opts...)
}

// Close closes the socket like Close of [Listener].
func (c *PacketConn) Close() error { return c.close() }

// socketMappings has the mappings that forward to a socket.
type socketMappings struct {
	socket   *socketState
	mappings []*Mapping // one or two, the IPv4 mapping first
	close    func() error
}

// forwardSocket makes the gateway forward to a socket, in the background. If the options are
// invalid, forwardSocket closes the socket.
func (f *Forwarder) forwardSocket(p backends.Protocol, network string, socket io.Closer, at net.Addr, opts []Option) (socketMappings, error) {
	bound := netip.MustParseAddrPort(at.String()) // package net uses this format for TCP and UDP addresses
	specs, err := f.listenSpecs(p, network, bound, opts)
	if err != nil {
		_ = socket.Close()
		return socketMappings{}, err
	}
	r := socketMappings{socket: &socketState{protocol: p, port: bound.Port()}}
	switch socket := socket.(type) {
	case *net.UDPConn:
		r.socket.conn = socket
	case *net.TCPListener:
		r.socket.accepter = newAccepter(socket, &r.socket.queue)
	}
	for _, s := range specs {
		s.socket = r.socket
		r.mappings = append(r.mappings, f.addMapping(&s, true))
	}
	var closing once
	r.close = func() error {
		return closing.do(context.Background(), func() error {
			err := socket.Close() // first, so that no connection is accepted that cannot be served
			if r.socket.accepter != nil {
				r.socket.accepter.close()
			}
			_, deleteErr := f.closeAll(context.Background(), r.mappings)
			return errors.Join(err, deleteErr)
		})
	}
	return r, nil
}

// External returns the address and port that the internet reaches: the endpoint of the IPv4
// mapping if it is granted, or else the endpoint of the pinhole. It returns the zero Endpoint
// if neither is granted. The address is the zero Addr if the gateway hides it.
func (r *socketMappings) External() backends.Endpoint {
	if all := r.Externals(); len(all) > 0 {
		return all[0]
	}
	return backends.Endpoint{}
}

// Externals returns all endpoints that are granted now: the endpoint of the IPv4 mapping
// first, then the endpoint of the pinhole.
func (r *socketMappings) Externals() []backends.Endpoint {
	var out []backends.Endpoint
	for _, m := range r.mappings {
		if external := m.External(); !external.IsZero() {
			out = append(out, external)
		}
	}
	return out
}

// Wait waits until External has an endpoint and then returns nil. It returns ErrClosed if the
// socket or its mappings are closed, or the cause of the end of ctx. If the mapping is not
// granted, Mapping().Err has the reason.
func (r *socketMappings) Wait(ctx context.Context) error { return waitForOne(ctx, r.mappings...) }

// Mapping returns the live handle of the IPv4 mapping, or of the pinhole if there is no
// mapping. Use it to wait for the grant or for changes, or to find out why it is not granted.
// The mapping is closed with the Listener or PacketConn, with the Forwarder, and by Disable
// if a selector matches it.
func (r *socketMappings) Mapping() *Mapping { return r.mappings[0] }

// Mappings returns the live handles of the socket, one or two: the IPv4 mapping first, then
// the pinhole.
func (r *socketMappings) Mappings() []*Mapping { return slices.Clone(r.mappings) }

// listenSpecs returns the specs for a socket: the IPv4 mapping, the IPv6 pinhole, or both in
// this order.
func (f *Forwarder) listenSpecs(p backends.Protocol, network string, bound netip.AddrPort, opts []Option) ([]spec, error) {
	addr, port := bound.Addr().Unmap(), bound.Port()
	if addr.IsLoopback() || addr.IsMulticast() || addr.Is6() && addr.IsLinkLocalUnicast() {
		return nil, invalid("no other host can reach %v: leave the address out, or name another", addr)
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
		return nil, invalid("From %v and the address of the socket, %v, are of different families", s.Remote.Addr(), bound)
	case !mapping && s.Exact && s.External != 0 && s.External != port:
		return nil, invalid("Exact with external port %d: a pinhole does not translate ports, and the socket listens on %v", s.External, bound)
	}
	var specs []spec
	if mapping {
		s4 := s
		s4.ipv4 = true
		specs = append(specs, s4)
	}
	if pinhole {
		s6 := s
		s6.ipv6, s6.External, s6.Address, s6.Lifetime = true, 0, netip.Addr{}, min(s.Lifetime, maxPinholeLifetime)
		specs = append(specs, s6)
	}
	return specs, nil
}

// listenSpec returns the spec that results from the options of Listen.
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
		{slices.Contains(s.given, optionProtocol), "an option that names a protocol: the network names it"},
		{s.Internal.Addr().IsValid(), "the option To: the address argument is the address to listen on"},
		{s.ipv6, `the option IPv6: the network selects it, as in "tcp6"`},
		{s.Count > 0, "the option Ports: one port is bound"},
		{s.SamePort, "the option SamePort: the port is bound already"},
		{s.Once, "the option Once: the mapping is kept alive until the socket is closed"},
		{s.Background, "the option Background: the mapping is always requested in the background"},
	} {
		if wrong.given {
			return spec{}, invalid("Listen and ListenPacket do not accept %s", wrong.why)
		}
	}
	s.Background, s.noDefault = true, true
	return s, nil
}

// maxPinholeLifetime is the longest lifetime that UPnP allows for a pinhole.
const maxPinholeLifetime = 24 * time.Hour

// families returns which mappings a socket gets. They depend on the network and the address
// of the socket. If it is for both families, the only admitted peer decides, if there is one.
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

// expectsGateway reports whether a gateway of the family is to be used without an explicit
// request. An IPv4 network may become available later. Without an IPv6 network, there is
// nothing to open, and a request would only cause warnings.
func (f *Forwarder) expectsGateway(fam family) bool {
	named := f.config.Gateway.Addr()
	switch {
	case len(f.config.Backends) > 0: // the family of ready-made backends is unknown
		return fam == f.family()
	case named.IsLoopback(): // in a test, the gateway of the other family would be a real one
		return fam == familyOf(named)
	case fam == ipv4:
		return true
	}
	path, err := f.findPath(ipv6)
	return err == nil && !path.source.IsPrivate() && !path.source.IsLinkLocalUnicast()
}
