package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// dialUDP makes a socket that is connected to the gateway: the kernel then
// drops what comes from elsewhere, chooses the source address, and reports a
// closed port.
func dialUDP(ctx context.Context, config Config) (net.Conn, error) {
	var d net.Dialer
	if config.Source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(config.Source, 0))
	}
	if config.Interface != "" {
		ifi, err := net.InterfaceByName(config.Interface)
		if err != nil {
			return nil, err
		}
		d.Control = func(network, _ string, c syscall.RawConn) error {
			return control(c, func(fd uintptr) error { return bindToInterface(fd, network, ifi) })
		}
	}
	return d.DialContext(ctx, "udp", config.Gateway.String())
}

// listenAnnounce binds an announcement address. A multicast address is shared
// with whoever else listens there; RFC 6886 section 3.2.1 wants it bound
// itself, and not all addresses, which keeps unicast datagrams out.
func listenAnnounce(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsMulticast() {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, shareAddress)
	}}
	network, bind := "udp4", addr
	switch {
	case addr.Addr().Is6(): // binding a link-local group would bind one interface
		network, bind = "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	case !canBindMulticast:
		bind = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	}
	conn, err := lc.ListenPacket(ctx, network, bind.String())
	if err != nil {
		return nil, err
	}
	joinEverywhere(conn, addr.Addr())
	return conn, nil
}

// joinEverywhere joins the group on each interface that can. All hosts are
// members of 224.0.0.1 and ff02::1 anyway (RFC 1112 section 4, RFC 4291 section
// 2.8), so failures do not matter.
func joinEverywhere(conn net.PacketConn, group netip.Addr) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return
	}
	join := ipv4.NewPacketConn(conn).JoinGroup
	if group.Is6() {
		join = ipv6.NewPacketConn(conn).JoinGroup
	}
	for _, ifi := range interfaces {
		if ifi.Flags&(net.FlagUp|net.FlagMulticast) == net.FlagUp|net.FlagMulticast {
			_ = join(&ifi, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, 0)))
		}
	}
}

// control runs f on the socket and returns the error of either.
func control(c syscall.RawConn, f func(fd uintptr) error) error {
	var inner error
	outer := c.Control(func(fd uintptr) { inner = f(fd) })
	return errors.Join(outer, inner)
}
