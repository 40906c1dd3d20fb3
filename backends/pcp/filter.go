package pcp

import (
	"encoding/binary"
	"net/netip"
)

// filterSize is the size of a filter with its header (RFC 6887, section 13.3).
const filterSize = optionHeader + 20

// Filter admits peers to a mapping (RFC 6887, section 13.3).
type Filter struct {
	// Prefix is where the peers are, IPv4 or IPv6. The zero Prefix takes all
	// earlier filters away, so that anyone is admitted. There is no ::/0.
	Prefix netip.Prefix
	// Port is the peers' port; 0 is any.
	Port uint16
}

// bits is the prefix length on the wire, where an IPv4 address begins after
// 96 bits. 0 is that of the zero Prefix.
func (f Filter) bits() int {
	if f.Prefix.Addr().Is4() {
		return 96 + f.Prefix.Bits()
	}
	return max(f.Prefix.Bits(), 0)
}

// valid reports whether the filter has a form on the wire.
func (f Filter) valid() bool {
	if f.Prefix == (netip.Prefix{}) {
		return true
	}
	return f.Prefix.IsValid() && validBits(f.Prefix.Addr(), f.bits())
}

// validBits reports whether n is a prefix length on the wire for the address.
func validBits(addr netip.Addr, n int) bool {
	least := 1
	if addr.Unmap().Is4() {
		least = 96
	}
	return n >= least && n <= 128
}

// append appends a valid filter.
func (f Filter) append(b []byte) []byte {
	b = append(appendOption(b, OptFilter, filterSize-optionHeader), 0, byte(f.bits()))
	b = binary.BigEndian.AppendUint16(b, f.Port)
	return appendAddr(b, f.Prefix.Addr())
}

// parseFilter reads a filter's data, and reports whether its prefix is one.
func parseFilter(data []byte) (Filter, bool) {
	f := Filter{Port: binary.BigEndian.Uint16(data[2:])}
	addr, bits := parseAddr(data[4:]), int(data[1])
	if bits == 0 {
		return f, true
	}
	if !validBits(addr, bits) {
		return Filter{}, false
	}
	if addr.Is4() {
		bits -= 96
	}
	f.Prefix = netip.PrefixFrom(addr, bits)
	return f, true
}
