package discover

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Numbers of linux/if_addr.h.
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

// lasting reports whether the address is one to be reached at for long.
func (a ifaddr) lasting() bool {
	return a.flags&(ifaTemporary|ifaDadfailed|ifaDeprecated|ifaTentative) == 0
}

// parseIfaddr reads an RTM_NEWADDR message without its netlink header.
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
		case ifaFlags: // all 32 of them
			a.flags, err = attrUint32(v, order)
		}
		return err
	})
	return a, err
}
