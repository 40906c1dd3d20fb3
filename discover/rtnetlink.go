package discover

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Constants of rtnetlink, from linux/rtnetlink.h. They are defined here, as are those of
// linux/if_addr.h below, so that captured messages can be parsed on every system.
const (
	nlInet  = 2
	nlInet6 = 10

	sizeofRtmsg     = 12 // struct rtmsg
	sizeofRtnexthop = 8  // struct rtnexthop
	sizeofRtattr    = 4  // struct rtattr

	rtaDst       = 1
	rtaOif       = 4
	rtaGateway   = 5
	rtaPriority  = 6
	rtaPrefsrc   = 7
	rtaMultipath = 9
	rtaTable     = 15
	rtaVia       = 18
	rtaPref      = 20

	rtnUnicast = 1

	rtTableDefault = 253
	rtTableMain    = 254
	rtTableLocal   = 255

	rtmCloned   = 0x200  // rtm_flags: a cached result of a lookup
	rtmFibMatch = 0x2000 // rtm_flags: reply with the entry of the table
	rtnhDead    = 0x1    // rtm_flags and rtnh_flags
)

// refusalOfType has the reasons for the types of routes that are not usable. Type 1 is
// unicast.
var refusalOfType = map[byte]string{
	0: "route of unspecified type",
	2: "it is this host",
	3: "broadcast address",
	4: "anycast address of this host",
	5: "multicast address",
	6: "blackhole route",
	7: "unreachable route",
	8: "prohibited route",
	9: "throw route",
}

// parseRtmsg parses one RTM_NEWROUTE message without its netlink header. It returns one
// route, or one for each next hop of a multipath route.
func parseRtmsg(b []byte, order binary.ByteOrder) ([]route, error) {
	if len(b) < sizeofRtmsg {
		return nil, fmt.Errorf("%w route message of %d bytes", errMalformed, len(b))
	}
	var (
		size  = 4
		table = uint32(b[4])
		pref  byte
		hops  []byte
		r     = route{refusal: refusalOfType[b[7]]}
		flags = order.Uint32(b[8:])
		dst   = netip.IPv4Unspecified()
	)
	switch b[0] {
	case nlInet:
	case nlInet6:
		size, dst = 16, netip.IPv6Unspecified()
	default:
		return nil, fmt.Errorf("%w route message of family %d", errMalformed, b[0])
	}
	if int(b[1]) > 8*size {
		return nil, fmt.Errorf("%w route message: prefix of %d bits", errMalformed, b[1])
	}
	if r.refusal == "" && b[7] != rtnUnicast {
		r.refusal = fmt.Sprintf("route of type %d", b[7])
	}
	if flags&rtnhDead != 0 {
		r.refusal = "dead route"
	}
	r.cloned = flags&rtmCloned != 0

	err := eachAttr(b[sizeofRtmsg:], order, func(typ uint16, v []byte) error {
		var err error
		switch typ {
		case rtaDst:
			dst, err = attrAddr(v, size)
		case rtaPrefsrc:
			r.src, err = attrAddr(v, size)
		case rtaPriority:
			var n uint32
			n, err = attrUint32(v, order)
			r.metric = int64(n)
		case rtaTable:
			table, err = attrUint32(v, order)
		case rtaPref:
			if len(v) > 0 {
				pref = v[0]
			}
		case rtaMultipath:
			hops = v
		default:
			err = r.hopAttr(typ, v, order, size)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	r.dst = netip.PrefixFrom(dst, int(b[1]))
	r.rank = tableRank(table)*4 + prefRank(pref)
	if table == rtTableLocal {
		r.refusal = cmp.Or(r.refusal, "route of the local table")
	}
	if hops == nil {
		return []route{r}, nil
	}
	return r.multipath(hops, order, size)
}

// multipath parses the list of struct rtnexthop in b. It returns a copy of r for each next
// hop.
func (r route) multipath(b []byte, order binary.ByteOrder, size int) ([]route, error) {
	var out []route
	for len(b) > 0 {
		if len(b) < sizeofRtnexthop {
			return nil, fmt.Errorf("%w next hop of %d bytes", errMalformed, len(b))
		}
		n := int(order.Uint16(b))
		if n < sizeofRtnexthop || n > len(b) {
			return nil, fmt.Errorf("%w next hop: length %d of %d", errMalformed, n, len(b))
		}
		hop := r
		hop.index = int(order.Uint32(b[4:]))
		if b[2]&rtnhDead != 0 {
			hop.refusal = "dead next hop"
		}
		err := eachAttr(b[sizeofRtnexthop:n], order, func(typ uint16, v []byte) error {
			return hop.hopAttr(typ, v, order, size)
		})
		if err != nil {
			return nil, err
		}
		out = append(out, hop)
		b = b[min(align4(n), len(b)):]
	}
	return out, nil
}

// hopAttr parses an attribute of a next hop, which is part of a route or of an entry in the
// list of a multipath route.
func (r *route) hopAttr(typ uint16, v []byte, order binary.ByteOrder, size int) error {
	var err error
	switch typ {
	case rtaGateway:
		r.via, err = attrAddr(v, size)
	case rtaVia: // struct rtvia: an IPv4 route through an IPv6 next hop
		if len(v) < 2 {
			return fmt.Errorf("%w RTA_VIA of %d bytes", errMalformed, len(v))
		}
		switch order.Uint16(v) {
		case nlInet:
			r.via, err = attrAddr(v[2:], 4)
		case nlInet6:
			r.via, err = attrAddr(v[2:], 16)
		}
	case rtaOif:
		var n uint32
		n, err = attrUint32(v, order)
		r.index = int(n)
	}
	return err
}

// tableRank ranks the tables that apply to every packet before the tables that a policy rule
// must select.
func tableRank(table uint32) int {
	switch table {
	case rtTableMain:
		return 0
	case rtTableDefault:
		return 1
	}
	return 2
}

// prefRank ranks by router preference (RFC 4191: 1 high, 0 medium, 3 low).
func prefRank(pref byte) int {
	switch pref {
	case 1:
		return 0
	case 3:
		return 2
	}
	return 1
}

// eachAttr calls fn for every attribute in b. It removes the flags from the type.
func eachAttr(b []byte, order binary.ByteOrder, fn func(typ uint16, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < sizeofRtattr {
			return fmt.Errorf("%w attribute of %d bytes", errMalformed, len(b))
		}
		n := int(order.Uint16(b))
		if n < sizeofRtattr || n > len(b) {
			return fmt.Errorf("%w attribute: length %d of %d", errMalformed, n, len(b))
		}
		const nested, netOrder = 1 << 15, 1 << 14
		if err := fn(order.Uint16(b[2:])&^(nested|netOrder), b[sizeofRtattr:n]); err != nil {
			return err
		}
		b = b[min(align4(n), len(b)):]
	}
	return nil
}

func attrAddr(v []byte, size int) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(v)
	if !ok || len(v) != size {
		return a, fmt.Errorf("%w address of %d bytes, not %d", errMalformed, len(v), size)
	}
	return a, nil
}

func attrUint32(v []byte, order binary.ByteOrder) (uint32, error) {
	if len(v) < 4 {
		return 0, fmt.Errorf("%w number of %d bytes", errMalformed, len(v))
	}
	return order.Uint32(v), nil
}

func align4(n int) int { return (n + 3) &^ 3 }

// appendRouteRequest appends the body of an RTM_GETROUTE request for the route to dst. If
// index is not 0, the route must use the interface with that index.
func appendRouteRequest(b []byte, order binary.ByteOrder, dst netip.Addr, index int, flags uint32) []byte {
	af := byte(nlInet)
	if dst.Is6() {
		af = nlInet6
	}
	b = append(b, af, byte(dst.BitLen()), 0, 0, 0, 0, 0, 0)
	b = appendUint32(b, order, flags)
	b = appendAttr(b, order, rtaDst, dst.AsSlice())
	if index != 0 {
		b = appendAttr(b, order, rtaOif, appendUint32(nil, order, uint32(index)))
	}
	return b
}

// appendAttr appends an attribute whose value is a multiple of four bytes.
func appendAttr(b []byte, order binary.ByteOrder, typ uint16, v []byte) []byte {
	var head [sizeofRtattr]byte
	order.PutUint16(head[:], uint16(sizeofRtattr+len(v)))
	order.PutUint16(head[2:], typ)
	return append(append(b, head[:]...), v...)
}

func appendUint32(b []byte, order binary.ByteOrder, v uint32) []byte {
	var n [4]byte
	order.PutUint32(n[:], v)
	return append(b, n[:]...)
}

// Constants of linux/if_addr.h.
const (
	sizeofIfaddrmsg = 8 // struct ifaddrmsg
	ifaAddress      = 1
	ifaFlags        = 8

	ifaTemporary  = 0x01
	ifaDadfailed  = 0x08
	ifaDeprecated = 0x20
	ifaTentative  = 0x40
)

// ifaddr is an address of an interface.
type ifaddr struct {
	index int
	addr  netip.Addr
	flags uint32
}

// isPermanent reports whether the address is suitable for a server: it is neither temporary
// nor deprecated, and duplicate address detection is neither in progress nor failed.
func (a ifaddr) isPermanent() bool {
	return a.flags&(ifaTemporary|ifaDadfailed|ifaDeprecated|ifaTentative) == 0
}

// parseIfaddr parses an RTM_NEWADDR message without its netlink header.
func parseIfaddr(b []byte, order binary.ByteOrder) (ifaddr, error) {
	if len(b) < sizeofIfaddrmsg {
		return ifaddr{}, fmt.Errorf("%w address message of %d bytes", errMalformed, len(b))
	}
	size := 4
	if b[0] == nlInet6 {
		size = 16
	}
	a := ifaddr{index: int(order.Uint32(b[4:])), flags: uint32(b[2])}
	err := eachAttr(b[sizeofIfaddrmsg:], order, func(typ uint16, v []byte) error {
		var err error
		switch typ {
		case ifaAddress:
			a.addr, err = attrAddr(v, size)
		case ifaFlags: // all 32 bits; the header has only 8
			a.flags, err = attrUint32(v, order)
		}
		return err
	})
	return a, err
}
