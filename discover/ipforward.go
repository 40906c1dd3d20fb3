package discover

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Layout of MIB_IPFORWARD_ROW2, MIB_IPFORWARD_TABLE2 and MIB_IPINTERFACE_ROW from
// netioapi.h. It is the same on 32-bit and 64-bit Windows, because C aligns 64-bit numbers
// to 8 bytes on Windows. Go does not do so on 386, so this file parses bytes and uses no
// structs.
const (
	winInet  = 2
	winInet6 = 23

	ipforwardTableHead = 8
	ipforwardSize      = 104
	ipforwardIndex     = 8
	ipforwardDst       = 12
	ipforwardDstLen    = 40
	ipforwardNextHop   = 44
	ipforwardMetric    = 84
	ipforwardLoopback  = 92

	sockaddrInetSize = 28 // SOCKADDR_INET

	ipinterfaceSize   = 168
	ipinterfaceFamily = 0
	ipinterfaceIndex  = 16
	ipinterfaceMetric = 148
)

// winOrder is the byte order of Windows, which runs on little-endian machines only.
var winOrder = binary.LittleEndian

// parseIPForwardTable parses a MIB_IPFORWARD_TABLE2. The metrics are those of the routes
// alone, without the metrics of their interfaces.
func parseIPForwardTable(b []byte) ([]route, error) {
	if len(b) < ipforwardTableHead {
		return nil, fmt.Errorf("%w route table of %d bytes", errMalformed, len(b))
	}
	n := int64(winOrder.Uint32(b))
	if b = b[ipforwardTableHead:]; int64(len(b)) < n*ipforwardSize {
		return nil, fmt.Errorf("%w route table: %d bytes for %d routes", errMalformed, len(b), n)
	}
	out := make([]route, 0, n)
	for range n {
		r, err := parseIPForwardRow(b)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
		b = b[ipforwardSize:]
	}
	return out, nil
}

// parseIPForwardRow parses a MIB_IPFORWARD_ROW2.
func parseIPForwardRow(b []byte) (route, error) {
	if len(b) < ipforwardSize {
		return route{}, fmt.Errorf("%w route of %d bytes", errMalformed, len(b))
	}
	dst, err := parseSockaddrInet(b[ipforwardDst:])
	if err != nil {
		return route{}, err
	}
	if int(b[ipforwardDstLen]) > dst.BitLen() {
		return route{}, fmt.Errorf("%w route: prefix of %d bits", errMalformed, b[ipforwardDstLen])
	}
	via, err := parseSockaddrInet(b[ipforwardNextHop:])
	if err != nil {
		return route{}, err
	}
	r := route{
		dst:    netip.PrefixFrom(dst, int(b[ipforwardDstLen])),
		index:  int(winOrder.Uint32(b[ipforwardIndex:])),
		metric: int64(winOrder.Uint32(b[ipforwardMetric:])),
	}
	if !via.IsUnspecified() {
		r.via = via
	}
	if b[ipforwardLoopback] != 0 {
		r.refusal = errThisHost.Error()
	}
	return r, nil
}

// parseSockaddrInet parses a SOCKADDR_INET. It ignores the scope, because the row contains
// the interface.
func parseSockaddrInet(b []byte) (netip.Addr, error) {
	if len(b) < sockaddrInetSize {
		return netip.Addr{}, fmt.Errorf("%w address of %d bytes", errMalformed, len(b))
	}
	switch af := winOrder.Uint16(b); af {
	case winInet:
		return netip.AddrFrom4([4]byte(b[sockaddrAddr4:])), nil
	case winInet6:
		return netip.AddrFrom16([16]byte(b[sockaddrAddr6:])), nil
	default:
		return netip.Addr{}, fmt.Errorf("%w address of family %d", errMalformed, af)
	}
}

// appendSockaddrInet appends a as a SOCKADDR_INET.
func appendSockaddrInet(b []byte, a netip.Addr, scope uint32) []byte {
	var s [sockaddrInetSize]byte
	if a.Is4() {
		winOrder.PutUint16(s[:], winInet)
		copy(s[sockaddrAddr4:], a.AsSlice())
	} else {
		winOrder.PutUint16(s[:], winInet6)
		copy(s[sockaddrAddr6:], a.AsSlice())
		winOrder.PutUint32(s[sockaddrScope:], scope)
	}
	return append(b, s[:]...)
}

// parseInterfaceMetric parses the metric of a MIB_IPINTERFACE_ROW. Windows adds it to the
// metric of every route on the interface.
func parseInterfaceMetric(b []byte) (int64, error) {
	if len(b) < ipinterfaceSize {
		return 0, fmt.Errorf("%w interface of %d bytes", errMalformed, len(b))
	}
	return int64(winOrder.Uint32(b[ipinterfaceMetric:])), nil
}
