package discover

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// stable returns a permanent address on the interface of g: g.Local if it is permanent, or
// else a global address that is private if and only if g.Local is private. It returns false
// if there is no such address.
func stable(g Gateway) (netip.Addr, bool) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return netip.Addr{}, false
	}
	defer func() { _ = conn.Close() }()
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETADDR, Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.AF_INET6, 0, 0, 0, 0, 0, 0, 0},
	})
	if err != nil {
		return netip.Addr{}, false
	}
	var best netip.Addr
	for _, reply := range replies {
		a, err := parseIfaddr(reply.Data, binary.NativeEndian)
		switch {
		case err != nil || a.index != g.Index || !a.isPermanent() || a.addr.IsPrivate() != g.Local.IsPrivate():
		case a.addr == g.Local:
			return a.addr, true
		case !best.IsValid() && a.addr.IsGlobalUnicast():
			best = a.addr
		}
	}
	return best, best.IsValid()
}
