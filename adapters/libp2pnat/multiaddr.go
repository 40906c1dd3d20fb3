package libp2pnat

import (
	"encoding/binary"
	"net"
	"net/netip"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/natforward/goforward/backends"
)

// internalAddr is the internal endpoint of a mapping, with its protocol. Several listen
// addresses may share it.
type internalAddr struct {
	protocol backends.Protocol
	addr     netip.Addr // the zero Addr means all addresses of this host
	port     uint16
}

// parseListenAddr splits a listen address into its endpoint and the rest of the address:
//
//	/ip4/0.0.0.0/udp/4001/quic-v1 → {udp 4001}, /quic-v1
//
// It returns false if a gateway cannot forward to the address, because it is not TCP or UDP
// over IPv4, or because other hosts cannot reach it.
func parseListenAddr(listen ma.Multiaddr) (e internalAddr, suffix ma.Multiaddr, ok bool) {
	if len(listen) < 2 || listen[0].Protocol().Code != ma.P_IP4 {
		return internalAddr{}, nil, false
	}
	switch listen[1].Protocol().Code {
	case ma.P_TCP:
		e.protocol = backends.TCP
	case ma.P_UDP:
		e.protocol = backends.UDP
	default:
		return internalAddr{}, nil, false
	}
	addr, ok := netip.AddrFromSlice(listen[0].RawValue())
	port := listen[1].RawValue()
	switch {
	case !ok || len(port) != 2:
		return internalAddr{}, nil, false
	case addr.IsUnspecified():
	case addr.IsGlobalUnicast():
		e.addr = addr
	default:
		return internalAddr{}, nil, false
	}
	e.port = binary.BigEndian.Uint16(port)
	return e, listen[2:], e.port != 0 // port 0 means any port
}

// externalMultiaddr returns the address to announce: the external endpoint followed by the
// suffix of the listen address. If the external endpoint is incomplete, it returns nil. A
// private address is announced too, as libp2p itself does: libp2p distinguishes private
// addresses if necessary, and a peer between two NATs can use them.
func (e internalAddr) externalMultiaddr(external netip.AddrPort, suffix ma.Multiaddr) ma.Multiaddr {
	addr := external.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || external.Port() == 0 {
		return nil
	}
	external = netip.AddrPortFrom(addr, external.Port())
	var netAddr net.Addr = net.TCPAddrFromAddrPort(external)
	if e.protocol == backends.UDP {
		netAddr = net.UDPAddrFromAddrPort(external)
	}
	mapped, err := manet.FromNetAddr(netAddr)
	if err != nil {
		return nil
	}
	return ma.Join(mapped, suffix)
}
