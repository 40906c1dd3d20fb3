package netbind

import (
	"net"
	"net/netip"
)

const anyPort = 9 // connecting a UDP socket sends no packets

// dialLocalAddr implements LocalAddr with package net.
func dialLocalAddr(addr netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, anyPort)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return local.Addr().Unmap(), err
}
