package port5351

import (
	"context"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/natforward/goforward/internal/netbind"
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
		if d.Control, err = netbind.Control(ifi); err != nil {
			return nil, err
		}
	}
	return d.DialContext(ctx, "udp", config.Gateway.String())
}

// listenAnnounce binds an announcement address. A multicast address is shared
// with whoever else listens there; RFC 6886 section 3.2.1 wants it bound
// itself, and not all addresses, which keeps unicast datagrams out. A link-local
// group is bound on one interface: there it is all addresses.
func listenAnnounce(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsMulticast() {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	}
	network, at := "udp4", addr
	if addr.Addr().Is6() {
		network, at = "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	return netbind.Group(ctx, network, at, nil)
}

// joinEverywhere joins the group on each interface that can and has not yet. All
// hosts are members of 224.0.0.1 and ff02::1 anyway (RFC 1112 section 4, RFC 4291
// section 2.8), so failures do not matter. Linux delivers what comes to these two
// without a membership of the socket. Other systems may not.
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
