package discover

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
)

// ribLayout has the offsets and constants of the routing messages of a BSD system: struct
// rt_msghdr of net/route.h, and the socket addresses that follow it.
type ribLayout struct {
	order   binary.ByteOrder
	version byte // RTM_VERSION

	header  int // sizeof(struct rt_msghdr); the minimum if hdrlen is set
	hdrlen  int // offset of rtm_hdrlen; 0: the header has none
	index   int // offsets of rtm_index, rtm_flags, …
	flags   int
	addrs   int
	pid     int
	seq     int
	errno   int
	prio    int // offset of rtm_priority; 0: none
	scoped  int // the flag of routes that apply only to sockets bound to the interface
	local   int // the flag of routes to this host
	align   int // of socket addresses
	inet6   byte
	lastBit int // RTAX_MAX
}

// The layouts of the systems, from their net/route.h and sys/socket.h. They are compiled on
// every system, so that every system tests all of them.
var (
	ribDarwin = ribLayout{
		version: 5, header: 92, index: 4, flags: 8, addrs: 12, pid: 16, seq: 20, errno: 24,
		scoped: 0x1000000, local: 0x200000, align: 4, inet6: 30, lastBit: 8,
	}
	ribFreeBSD64 = ribLayout{
		version: 5, header: 152, index: 4, flags: 8, addrs: 12, pid: 16, seq: 20, errno: 24,
		local: 0x200000, align: 8, inet6: 28, lastBit: 8,
	}
	ribFreeBSD32 = ribLayout{
		version: 5, header: 92, index: 4, flags: 8, addrs: 12, pid: 16, seq: 20, errno: 24,
		local: 0x200000, align: 4, inet6: 28, lastBit: 8,
	}
	ribOpenBSD64 = ribLayout{
		version: 5, header: 96, hdrlen: 4, index: 6, prio: 10, addrs: 12, flags: 16, pid: 24, seq: 28, errno: 32,
		local: 0x200000, align: 8, inet6: 24, lastBit: 15,
	}
	ribOpenBSD32 = ribLayout{
		version: 5, header: 96, hdrlen: 4, index: 6, prio: 10, addrs: 12, flags: 16, pid: 24, seq: 28, errno: 32,
		local: 0x200000, align: 4, inet6: 24, lastBit: 15,
	}
	ribNetBSD = ribLayout{
		version: 4, header: 120, index: 4, flags: 8, addrs: 12, pid: 16, seq: 20, errno: 24,
		local: 0x40000, align: 8, inet6: 24, lastBit: 9,
	}
)

// Constants that are equal on all BSD systems.
const (
	rtmAdd = 1
	rtmGet = 4

	rtfUp        = 0x1
	rtfGateway   = 0x2
	rtfHost      = 0x4
	rtfReject    = 0x8
	rtfBlackhole = 0x1000

	rtaxDst     = 0
	rtaxGateway = 1
	rtaxNetmask = 2
	rtaxIfp     = 4
	rtaxIfa     = 5
)

// ribMessage is a route, with the process and the request to which the message replies.
type ribMessage struct {
	route
	pid, seq uint32
	errno    uint32 // the error of the request; 0: success
}

// parse parses the messages of a dump or of a routing socket. It skips messages that
// contain no IP route.
func (l *ribLayout) parse(b []byte) ([]ribMessage, error) {
	var out []ribMessage
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w routing message of %d bytes", errMalformed, len(b))
		}
		n := int(l.order.Uint16(b))
		if n < 4 || n > len(b) {
			return nil, fmt.Errorf("%w routing message: length %d of %d", errMalformed, n, len(b))
		}
		if b[2] == l.version && (b[3] == rtmGet || b[3] == rtmAdd) {
			m, ok, err := l.message(b[:n])
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, m)
			}
		}
		b = b[n:]
	}
	return out, nil
}

// message parses one message. ok reports whether the message has an IP address family.
func (l *ribLayout) message(b []byte) (m ribMessage, ok bool, err error) {
	body := l.header
	if len(b) < body {
		return m, false, fmt.Errorf("%w routing message: %d bytes, header of %d", errMalformed, len(b), body)
	}
	if l.hdrlen != 0 {
		body = int(l.order.Uint16(b[l.hdrlen:]))
		if body < l.header || body > len(b) {
			return m, false, fmt.Errorf("%w routing message: header of %d", errMalformed, body)
		}
	}
	m.index = int(l.order.Uint16(b[l.index:]))
	m.pid, m.seq, m.errno = l.order.Uint32(b[l.pid:]), l.order.Uint32(b[l.seq:]), l.order.Uint32(b[l.errno:])
	flags := int(l.order.Uint32(b[l.flags:]))
	if l.prio != 0 {
		m.metric = int64(b[l.prio] & 0x7f) // the top bit means that the interface is down
	}
	if flags&l.scoped != 0 {
		m.rank = 1
	}
	m.refusal = l.refusal(flags)

	sas, err := l.sockaddrs(b[body:], l.order.Uint32(b[l.addrs:]))
	if err != nil {
		return m, false, err
	}
	if m.dst, ok = sas.prefix(flags&rtfHost != 0); !ok {
		// The reply to a failed request may lack the destination.
		return m, m.errno != 0, nil
	}
	// Without the flag, the gateway field contains an address of this host.
	if gw := sas[rtaxGateway].addr; flags&rtfGateway != 0 && gw.IsValid() && !isPlaceholder(gw) {
		m.via = gw
	}
	for _, i := range []int{rtaxIfp, rtaxGateway} {
		if m.index == 0 {
			m.index = sas[i].index
		}
	}
	if ifa := sas[rtaxIfa].addr; ifa.Is6() == m.is6() {
		m.src = ifa
	}
	return m, true, nil
}

// refusal returns why a route with these flags is not usable, or "".
func (l *ribLayout) refusal(flags int) string {
	switch {
	case flags&rtfReject != 0:
		return "unreachable route"
	case flags&rtfBlackhole != 0:
		return "blackhole route"
	case flags&l.local != 0:
		return "it is this host"
	case flags&rtfUp == 0:
		return "route is down"
	}
	return ""
}

// validRoutes returns the routes of the messages that report no error and have a
// destination.
func validRoutes(msgs []ribMessage) []route {
	out := make([]route, 0, len(msgs))
	for _, m := range msgs {
		if m.errno == 0 && m.dst.IsValid() {
			out = append(out, m.route)
		}
	}
	return out
}

// prefix combines the destination and the mask. The mask of a default route is a socket
// address of length 0, and on some systems the destination is too.
func (s *sockaddrs) prefix(host bool) (netip.Prefix, bool) {
	dst := s[rtaxDst]
	addr := dst.addr
	if !addr.IsValid() {
		gw := s[rtaxGateway].addr
		if !dst.present || dst.length > 0 || !gw.IsValid() {
			return netip.Prefix{}, false
		}
		addr = unspecified(gw.Is6())
	}
	mask := s[rtaxNetmask]
	bits := addr.BitLen()
	switch {
	case host:
	case mask.present:
		bits = mask.ones(addr.Is6())
	case addr.IsUnspecified():
		bits = 0
	}
	return netip.PrefixFrom(addr, bits), true
}

func unspecified(is6 bool) netip.Addr {
	if is6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

const (
	bsdInet = 2
	bsdLink = 18

	sockaddrAddr4 = 4 // offset of sin_addr
	sockaddrAddr6 = 8 // offset of sin6_addr
	sockaddrScope = 24
)

// sockaddr is one socket address of a routing message.
type sockaddr struct {
	present bool
	length  int        // sa_len
	addr    netip.Addr // the IP address, without zone
	index   int        // interface, from a link address or a scope
	raw     []byte     // sa_len bytes, for masks: the address family of a mask is often invalid
}

// sockaddrs has the socket addresses of one message, by RTAX number.
type sockaddrs [16]sockaddr

// sockaddrs parses the addresses whose bits are set in mask.
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
		// An address of length 0 still occupies space. The padding of the last address
		// may be missing.
		step := max(n+l.align-1, l.align) &^ (l.align - 1)
		b = b[min(step, len(b)):]
	}
	return &out, nil
}

// sockaddr parses one address. Kernels omit trailing zero bytes, so the missing bytes are
// zero.
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
			// Kernels with the KAME stack store the interface of a link-local address
			// inside the address. Some also store it in the scope ID, or only there.
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

// isPlaceholder reports whether an address replaces a next hop that does not exist. OpenBSD
// and NetBSD use 0.0.0.1 for the peer of a PPPoE link; isPlaceholder includes the rest of
// 0.0.0.0/8. macOS uses fe80:: without a host part for tunnels.
func isPlaceholder(a netip.Addr) bool {
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
