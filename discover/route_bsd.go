//go:build darwin || freebsd || netbsd || openbsd

package discover

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	xroute "golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// rib is the layout of routing messages on this system.
var rib = func() ribLayout {
	var l ribLayout
	switch wide := strconv.IntSize == 64; runtime.GOOS {
	case "freebsd":
		l = ribFreeBSD32
		if wide {
			l = ribFreeBSD64
		}
	case "openbsd":
		l = ribOpenBSD32
		if wide {
			l = ribOpenBSD64
		}
	case "netbsd":
		l = ribNetBSD
	default:
		l = ribDarwin
	}
	l.order = binary.NativeEndian
	return l
}()

// lookup sends RTM_GET to the kernel. The reply is the route that the kernel would use: the
// kernel considers the routing table of this process, scopes and multipath. A search of a
// dump for the longest prefix would have to implement all of that, and is only the fallback
// if a sandbox forbids routing sockets.
//
// lookup gets the local address by connecting a UDP socket. This sends nothing, and selects
// the source as for real packets. The address in the reply belongs to the route, and IPv6
// may use another address.
func lookup(dst netip.Addr) (Gateway, error) {
	local, err := localAddr(dst)
	if err != nil {
		return Gateway{}, err
	}
	localIndex := interfaceIndex(local)
	r, err := sendRTMGet(dst)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return Gateway{}, noRoute(dst, err)
	case err != nil:
		routes, dumpErr := dump()
		if dumpErr != nil {
			return Gateway{}, fmt.Errorf("discover: route to %s: %w", destination(dst), errors.Join(err, dumpErr))
		}
		var ok bool
		if r, ok = longestMatch(routes, dst, localIndex); !ok {
			return Gateway{}, noRoute(dst, unix.ENETUNREACH)
		}
	}
	if r.refusal != "" {
		return Gateway{}, noRoute(dst, errors.New(r.refusal))
	}
	r.index = cmp.Or(r.index, localIndex)
	name, _ := interfaceAt(r.index)
	return r.gateway(name, local.WithZone("")), nil
}

// localAddr returns the address from which the kernel sends to dst.
func localAddr(dst netip.Addr) (netip.Addr, error) {
	// Any port except 0 will do; some kernels refuse port 0.
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENETDOWN):
		return netip.Addr{}, noRoute(dst, err)
	case err != nil:
		return netip.Addr{}, fmt.Errorf("discover: local address towards %s: %w", destination(dst), err)
	}
	defer func() { _ = c.Close() }()
	addr, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, fmt.Errorf("discover: local address towards %s: got %v", destination(dst), c.LocalAddr())
	}
	return addr.AddrPort().Addr().Unmap(), nil
}

// interfaceIndex returns the index of the interface that has the address, or 0.
func interfaceIndex(a netip.Addr) int {
	ifis, err := net.Interfaces()
	if err != nil {
		return 0
	}
	for _, ifi := range ifis {
		if a.Zone() != "" && a.Zone() != ifi.Name {
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			continue
		}
		for _, p := range prefixes(addrs) {
			if p.Addr() == a.WithZone("") {
				return ifi.Index
			}
		}
	}
	return 0
}

// replyTimeout limits the wait for a reply. The kernel queues the reply before the write of
// the request returns, but without a limit a lost reply would block forever.
const replyTimeout = time.Second

var lastSeq atomic.Int32

// sendRTMGet sends one request to a routing socket and returns the route in the reply. A
// routing socket also delivers the messages for all listeners; sendRTMGet skips them.
func sendRTMGet(dst netip.Addr) (route, error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return route{}, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	unix.CloseOnExec(fd)
	limit := unix.NsecToTimeval(int64(replyTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return route{}, os.NewSyscallError("setsockopt", err)
	}

	pid, seq := os.Getpid(), int(lastSeq.Add(1))
	req, err := routeRequest(dst, pid, seq).Marshal()
	if err != nil {
		return route{}, err
	}
	// The kernel reports "no such route" as the error of the write.
	if _, err := unix.Write(fd, req); err != nil {
		return route{}, os.NewSyscallError("write", err)
	}
	buf := make([]byte, 4096)
	for end := time.Now().Add(replyTimeout); time.Now().Before(end); {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return route{}, os.NewSyscallError("read", err)
		}
		msgs, err := rib.parse(buf[:n])
		if err != nil {
			continue // a message for another process
		}
		for _, m := range msgs {
			switch {
			case m.pid != uint32(pid) || m.seq != uint32(seq):
			case m.errno != 0:
				return route{}, unix.Errno(m.errno)
			default:
				return m.route, nil
			}
		}
	}
	return route{}, os.ErrDeadlineExceeded
}

// routeRequest returns an RTM_GET message. It requests the interface too, because the
// kernel sets rtm_index only then.
func routeRequest(dst netip.Addr, pid, seq int) *xroute.RouteMessage {
	addrs := make([]xroute.Addr, rtaxIfp+1)
	addrs[rtaxIfp] = &xroute.LinkAddr{}
	if dst.Is4() {
		addrs[rtaxDst] = &xroute.Inet4Addr{IP: dst.As4()}
	} else {
		a := &xroute.Inet6Addr{IP: dst.As16()}
		if ifi, err := net.InterfaceByName(dst.Zone()); err == nil {
			a.ZoneID = ifi.Index
		}
		addrs[rtaxDst] = a
	}
	return &xroute.RouteMessage{
		Version: int(rib.version), Type: unix.RTM_GET, Flags: unix.RTF_UP,
		ID: uintptr(pid), Seq: seq, Addrs: addrs,
	}
}

// dump returns all routes of the routing table of this process.
func dump() ([]route, error) {
	b, err := xroute.FetchRIB(unix.AF_UNSPEC, xroute.RIBTypeRoute, 0)
	if err != nil {
		return nil, err
	}
	msgs, err := rib.parse(b)
	return validRoutes(msgs), err
}

func defaultRoutes() ([]defaultRoute, error) {
	routes, err := dump()
	if err != nil {
		return nil, fmt.Errorf("discover: list routes: %w", err)
	}
	var out []defaultRoute
	for _, r := range routes {
		if !r.isDefault() || r.index == 0 {
			continue
		}
		name, addrs := interfaceAt(r.index)
		out = append(out, defaultRoute{
			Gateway: r.gateway(name, pickLocal(addrs, r.via, r.is6())),
			is6:     r.is6(), rank: r.rank,
		})
	}
	return out, nil
}
