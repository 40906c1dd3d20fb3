//go:build !linux

package netbind

import "net/netip"

// LocalAddr returns the local address that the system uses to reach addr. It sends no packets.
func LocalAddr(addr netip.Addr) (netip.Addr, error) { return dialLocalAddr(addr) }
