package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/netbind"
)

// Listeners returns the local addresses of the sockets of this host that wait for connections
// or datagrams at a port. The unspecified address of IPv6 usually includes IPv4. Listeners reads
// the table of sockets of Linux or Windows, which includes the sockets of all users, but on Linux
// only those of the same network namespace. It excludes the sockets that measurements open, on
// Linux also those of other programs. On other systems, and for other protocols than TCP
// and UDP, the error wraps errors.ErrUnsupported.
func Listeners(p backends.Protocol, port uint16) ([]netip.Addr, error) {
	rows, err := readTable(p, port)
	if err != nil {
		return nil, fmt.Errorf("reach: table of sockets: %w", err)
	}
	var out []netip.Addr
	for _, s := range rows {
		if s.listens && !isMarked(p, netip.AddrPortFrom(s.local, port)) {
			out = append(out, s.local)
		}
	}
	return out, nil
}

// socket is a row of the table of sockets.
type socket struct {
	local   netip.Addr     // the unspecified address means every address
	remote  netip.AddrPort // of a connection
	listens bool           // TCP: it listens; UDP: it is not connected, as far as is known
	open    bool           // TCP: a connection that was established; it may have ended since
}

// measureListening finds out whether a socket waits at the internal port.
func measureListening(t Target, catcher Catcher) Evidence {
	e := Evidence{Method: MethodListening, Level: LevelListening, To: t.Internal}
	program := fmt.Sprintf("%v port %d", t.Protocol, t.Internal.Port())
	owner := catcher.Owner()
	if owner == OwnerProgram {
		e.Verdict, e.Detail = Reachable, "this program listens on "+program
		return complete(e, t)
	}
	if blind := catcher.Observing(); errors.Is(blind, errMeasured) || owner == OwnerNone && !netbind.HasAddr(t.Internal.Addr()) {
		e.Err = blind
		return complete(e, t)
	}
	addrs, err := Listeners(t.Protocol, t.Internal.Port())
	received := false
	if owner == OwnerTemporary { // only sockets at other addresses belong to programs; an error means that none is known
		addrs, err = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a == t.bound() }), nil
	} else if err == nil {
		received, err = receives(addrs, t)
	}
	switch {
	case err != nil: // whether a program listens is not known
		e.Err = err
	case received:
		e.Verdict, e.Detail = Reachable, "a program listens on "+program
	case len(addrs) == 0:
		e.Verdict, e.Detail = Unreachable, "no program on this host listens on "+program
	case !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsLoopback() }):
		e.Verdict = Unreachable
		e.Detail = fmt.Sprintf("the program on %s listens only on %v, which other hosts cannot reach", program, addrs[0])
	default:
		e.Verdict = Unreachable
		e.Detail = fmt.Sprintf("the program on %s listens on %v, but connections arrive at %v", program, addrs[0], t.bound())
	}
	return complete(e, t)
}

// bound returns the internal address as the table of sockets shows it.
func (t Target) bound() netip.Addr { return t.Internal.Addr().Unmap().WithZone("") }

// receives reports whether one of the sockets that are bound to addrs receives what arrives at
// the internal endpoint.
func receives(addrs []netip.Addr, t Target) (bool, error) {
	internal := t.bound()
	for _, a := range addrs {
		if a.WithZone("") == internal || a.IsUnspecified() && a.Is4() == internal.Is4() {
			return true, nil
		}
	}
	if !internal.Is4() || !slices.Contains(addrs, netip.IPv6Unspecified()) {
		return false, nil
	}
	// An IPv6 socket that also receives IPv4 takes the port of both families. Windows admits
	// another socket at each address except the unspecified one.
	at := internal
	if runtime.GOOS == "windows" {
		at = netip.IPv4Unspecified()
	}
	used, err := isUsed(t.Protocol, netip.AddrPortFrom(at, t.Internal.Port()))
	if err != nil {
		return false, fmt.Errorf("reach: a program listens on %v, and whether it also receives IPv4 is not known: %w", netip.IPv6Unspecified(), err)
	}
	return used, nil
}

// isUsed reports whether another socket has the port at an address. If not, it opens the port
// for a moment.
func isUsed(p backends.Protocol, at netip.AddrPort) (bool, error) {
	family := "4" // without it, package net replaces 0.0.0.0 by [::]
	if at.Addr().Is6() {
		family = "6"
	}
	var (
		lc   net.ListenConfig
		sock io.Closer
		err  error
	)
	if p == backends.UDP {
		sock, err = lc.ListenPacket(context.Background(), "udp"+family, at.String())
	} else {
		sock, err = lc.Listen(context.Background(), "tcp"+family, at.String())
	}
	switch {
	case err == nil:
		return false, sock.Close()
	case errno.IsInUse(err):
		return true, nil
	}
	return false, err
}
