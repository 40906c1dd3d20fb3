package netbind

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
)

// ErrNotHere means that this host does not have an address.
var ErrNotHere = errors.New("not an address of this host")

// HasAddr reports whether this host has the address: an interface has it, or it is a
// loopback address to which sockets can be bound. For other addresses, binding a socket is
// no proof, because systems can be configured to allow it for every address. If the system
// does not list its addresses (Android), binding decides. If the address has a zone, that
// interface must have the address.
func HasAddr(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		return false
	}
	interfaces, err := net.Interfaces()
	if err != nil || addr.IsLoopback() {
		return bindable(addr)
	}
	for _, ifi := range interfaces {
		if zone := addr.Zone(); zone != "" && zone != ifi.Name && zone != strconv.Itoa(ifi.Index) {
			continue
		}
		if interfaceHas(ifi, addr.WithZone("")) {
			return true
		}
	}
	return false
}

func interfaceHas(ifi net.Interface, addr netip.Addr) bool {
	addrs, err := ifi.Addrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr {
				return true
			}
		}
	}
	return false
}

func bindable(addr netip.Addr) bool {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
