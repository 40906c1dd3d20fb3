package libp2pnat

import (
	"encoding/binary"
	"net"
	"net/netip"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/natforward/goforward/backends"
)

// endpoint is what a gateway forwards to: what several listen addresses share.
type endpoint struct {
	protocol backends.Protocol
	addr     netip.Addr // the zero Addr: all addresses of this host
	port     uint16
}

// parse splits a listen address into the endpoint and what comes behind it:
//
//	/ip4/0.0.0.0/udp/4001/quic-v1 → {udp 4001}, /quic-v1
//
// It reports false where there is nothing that a gateway could forward: no TCP
// or UDP over IPv4, and addresses that other hosts cannot reach.
func parseListenAddr(listen ma.Multiaddr) (e endpoint, suffix ma.Multiaddr, ok bool) {
	if len(listen) < 2 || listen[0].Protocol().Code != ma.P_IP4 {
		return endpoint{}, nil, false
	}
	switch listen[1].Protocol().Code {
	case ma.P_TCP:
		e.protocol = backends.TCP
	case ma.P_UDP:
		e.protocol = backends.UDP
	default:
		return endpoint{}, nil, false
	}
	addr, ok := netip.AddrFromSlice(listen[0].RawValue())
	port := listen[1].RawValue()
	switch {
	case !ok || len(port) != 2:
		return endpoint{}, nil, false
	case addr.IsUnspecified():
	case addr.IsGlobalUnicast():
		e.addr = addr
	default:
		return endpoint{}, nil, false
	}
	e.port = binary.BigEndian.Uint16(port)
	return e, listen[2:], e.port != 0 // which would be any port
}

// announce is parse's inverse for the external side, or nil where there is none
// that could be told. Private addresses are, as by libp2p itself: it tells them
// apart where that matters, and who is between two NATs can use them.
func (e endpoint) externalMultiaddr(external netip.AddrPort, suffix ma.Multiaddr) ma.Multiaddr {
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
