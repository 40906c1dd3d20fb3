package discover

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

const (
	bsdInet = 2
	bsdLink = 18

	sockaddrAddr4 = 4 // offset of sin_addr
	sockaddrAddr6 = 8 // offset of sin6_addr
	sockaddrScope = 24
)

// A sockaddr is one socket address of a routing message.
type sockaddr struct {
	present bool
	length  int        // sa_len
	addr    netip.Addr // of an IP family, without zone
	index   int        // interface, from a link address or a scope
	raw     []byte     // sa_len bytes, for masks: their family is often nonsense
}

// sockaddrs are those of one message, by RTAX number.
type sockaddrs [16]sockaddr

// sockaddrs reads the addresses that the bits of mask announce.
func (l *ribLayout) sockaddrs(b []byte, mask uint32) (*sockaddrs, error) {
	var out sockaddrs
	for i := range l.lastBit {
		if mask&(1<<i) == 0 {
			continue
		}
		if len(b) < 2 {
			return nil, fmt.Errorf("%w routing message: address %d is missing", errMalformed, i)
		}
		n := int(b[0])
		if n > len(b) {
			return nil, fmt.Errorf("%w routing message: address %d has %d of %d bytes", errMalformed, i, len(b), n)
		}
		out[i] = l.sockaddr(b[:n], b[1])
		// An address without length still takes a slot. The last one's padding
		// may be missing.
		step := max(n+l.align-1, l.align) &^ (l.align - 1)
		b = b[min(step, len(b)):]
	}
	return &out, nil
}

// sockaddr reads one address. Kernels cut trailing zero bytes off, so that what
// is missing is zero.
func (l *ribLayout) sockaddr(b []byte, family byte) sockaddr {
	s := sockaddr{present: true, length: len(b), raw: b}
	var full [28]byte // sizeof(struct sockaddr_in6)
	copy(full[:], b)
	switch family {
	case bsdInet:
		s.addr = netip.AddrFrom4([4]byte(full[sockaddrAddr4:]))
	case bsdLink:
		s.index = int(l.order.Uint16(full[2:]))
	case l.inet6:
		ip := [16]byte(full[sockaddrAddr6:])
		if ip[0] == 0xfe && ip[1]&0xc0 == 0x80 {
			// Kernels of KAME descent keep the interface of a link-local address
			// inside it, some also or only in the scope id.
			s.index = int(binary.BigEndian.Uint16(ip[2:]))
			ip[2], ip[3] = 0, 0
			if id := l.order.Uint32(full[sockaddrScope:]); id != 0 {
				s.index = int(id)
			}
		}
		s.addr = netip.AddrFrom16(ip)
	}
	return s
}

// noHost tells addresses that stand in for a next hop where there is none:
// 0.0.0.1, by which OpenBSD and NetBSD name the far end of PPPoE, the rest of that
// network, and fe80:: without a host part, which macOS gives tunnels.
func noHost(a netip.Addr) bool {
	if a.Is4() {
		return a.As4()[0] == 0
	}
	return a.IsUnspecified() || a == netip.AddrFrom16([16]byte{0xfe, 0x80})
}

// ones counts the leading one bits of a mask.
func (s sockaddr) ones(is6 bool) int {
	off, size := sockaddrAddr4, 4
	if is6 {
		off, size = sockaddrAddr6, 16
	}
	var full [28]byte
	copy(full[:], s.raw)
	n := 0
	for _, b := range full[off : off+size] {
		n += bits.LeadingZeros8(^b)
		if b != 0xff {
			break
		}
	}
	return n
}
