package reach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

var errMalformed = errors.New("malformed table of sockets")

// rowLayout has the size of a row and the offsets of its fields.
type rowLayout struct {
	size               int
	addr               int // the size of an address
	local, localPort   int
	remote, remotePort int
	state              int
}

// The layouts of MIB_TCPROW_OWNER_PID and MIB_TCP6ROW_OWNER_PID of tcpmib.h, and of
// MIB_UDPROW_OWNER_PID and MIB_UDP6ROW_OWNER_PID of udpmib.h. They contain only bytes and
// 32-bit numbers, so they are the same on every Windows. The first row follows dwNumEntries.
var (
	tcpRow  = rowLayout{size: 24, addr: 4, state: 0, local: 4, localPort: 8, remote: 12, remotePort: 16}
	tcp6Row = rowLayout{size: 56, addr: 16, local: 0, localPort: 20, remote: 24, remotePort: 44, state: 48}
	udpRow  = rowLayout{size: 12, addr: 4, local: 0, localPort: 4}
	udp6Row = rowLayout{size: 28, addr: 16, local: 0, localPort: 20}
)

const tableHead = 4

// The values of MIB_TCP_STATE that matter here. Sockets that are neither connecting nor closed
// have a higher state than SYN_RCVD.
const (
	winListen  = 2
	winSynRcvd = 4
)

// layoutOf returns the layout of the rows for a protocol and a family.
func layoutOf(p backends.Protocol, is6 bool) rowLayout {
	switch {
	case p == backends.UDP && is6:
		return udp6Row
	case p == backends.UDP:
		return udpRow
	case is6:
		return tcp6Row
	}
	return tcpRow
}

// parseIPHelper returns the sockets of a table of the IP helper API whose local port is port.
// A row for UDP does not show whether the socket is connected.
func parseIPHelper(b []byte, p backends.Protocol, is6 bool, port uint16) (out []socket, err error) {
	row := layoutOf(p, is6)
	if len(b) < tableHead {
		return nil, fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	n := int64(binary.LittleEndian.Uint32(b)) // Windows runs on little-endian machines only
	if b = b[tableHead:]; int64(len(b)) < n*int64(row.size) {
		return nil, fmt.Errorf("%w: %d bytes for %d sockets", errMalformed, len(b), n)
	}
	for ; n > 0; n-- {
		if binary.BigEndian.Uint16(b[row.localPort:]) == port { // in network byte order
			out = append(out, row.parse(b, p))
		}
		b = b[row.size:]
	}
	return out, nil
}

// parse reads a row.
func (r rowLayout) parse(b []byte, p backends.Protocol) socket {
	addrAt := func(offset int) netip.Addr {
		addr, _ := netip.AddrFromSlice(b[offset:][:r.addr])
		return addr.Unmap()
	}
	s := socket{local: addrAt(r.local)}
	if p == backends.UDP {
		s.listens = true
		return s
	}
	state := binary.LittleEndian.Uint32(b[r.state:])
	s.listens = state == winListen
	s.remote = netip.AddrPortFrom(addrAt(r.remote), binary.BigEndian.Uint16(b[r.remotePort:]))
	s.open = state > winSynRcvd && s.remote.Port() != 0
	return s
}
