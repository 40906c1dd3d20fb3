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

// rib is the running system's layout.
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

// lookup asks the kernel by RTM_GET, which answers as it would route: with the
// routing table of this process, scopes and multipath. Searching a dump for the
// longest prefix would have to know all of that, and is only what remains where a
// sandbox keeps routing sockets away. The local address comes from connecting a
// UDP socket, which sends nothing and selects the source as for real packets; the
// address in the answer is the route's, which IPv6 need not use.
func lookup(dst netip.Addr) (Gateway, error) {
	local, err := connect(dst)
	if err != nil {
		return Gateway{}, err
	}
	localIndex := indexOf(local)
	r, err := rtmGetRoute(dst)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return Gateway{}, noRoute(dst, err)
	case err != nil:
		routes, dumpErr := dump()
		if dumpErr != nil {
			return Gateway{}, fmt.Errorf("discover: route to %v: %w", dst, errors.Join(err, dumpErr))
		}
		var ok bool
		if r, ok = longest(routes, dst, localIndex); !ok {
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

// connect returns the address that the kernel sends from to dst.
func connect(dst netip.Addr) (netip.Addr, error) {
	// Any port but 0, which some kernels refuse.
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 9)))
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH),
		errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENETDOWN):
		return netip.Addr{}, noRoute(dst, err)
	case err != nil:
		return netip.Addr{}, fmt.Errorf("discover: local address towards %v: %w", dst, err)
	}
	defer func() { _ = c.Close() }()
	addr, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, fmt.Errorf("discover: local address towards %v: got %v", dst, c.LocalAddr())
	}
	return addr.AddrPort().Addr().Unmap(), nil
}

// indexOf returns the interface that has the address, or 0.
func indexOf(a netip.Addr) int {
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

// answerWithin bounds the wait for an answer that the kernel queues before the
// question's write returns; without it, a lost one would block for ever.
const answerWithin = time.Second

var lastSeq atomic.Int32

// rtmGetRoute puts one question to a routing socket and finds the answer among
// the broadcasts that such a socket also delivers.
func rtmGetRoute(dst netip.Addr) (route, error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return route{}, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	unix.CloseOnExec(fd)
	limit := unix.NsecToTimeval(int64(answerWithin))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return route{}, os.NewSyscallError("setsockopt", err)
	}

	pid, seq := os.Getpid(), int(lastSeq.Add(1))
	req, err := question(dst, pid, seq).Marshal()
	if err != nil {
		return route{}, err
	}
	// The kernel reports "no such route" as the error of the write.
	if _, err := unix.Write(fd, req); err != nil {
		return route{}, os.NewSyscallError("write", err)
	}
	buf := make([]byte, 4096)
	for end := time.Now().Add(answerWithin); time.Now().Before(end); {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return route{}, os.NewSyscallError("read", err)
		}
		msgs, err := rib.parse(buf[:n])
		if err != nil {
			continue // somebody else's message
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

// question asks for the interface too: only then is rtm_index filled in.
func question(dst netip.Addr, pid, seq int) *xroute.RouteMessage {
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

// dump reads all routes of the process's routing table.
func dump() ([]route, error) {
	b, err := xroute.FetchRIB(unix.AF_UNSPEC, xroute.RIBTypeRoute, 0)
	if err != nil {
		return nil, err
	}
	msgs, err := rib.parse(b)
	return routesOf(msgs), err
}

func defaultRoutes() ([]row, error) {
	routes, err := dump()
	if err != nil {
		return nil, fmt.Errorf("discover: list routes: %w", err)
	}
	var rows []row
	for _, r := range routes {
		if !r.isDefault() || r.index == 0 {
			continue
		}
		name, addrs := interfaceAt(r.index)
		rows = append(rows, row{
			Gateway: r.gateway(name, pickLocal(addrs, r.via, r.is6())),
			is6:     r.is6(), rank: r.rank,
		})
	}
	return rows, nil
}
