package reach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/natforward/goforward/backends"
)

// Listeners returns the local addresses of the sockets of this host that wait for connections
// or datagrams at a port. The unspecified address of IPv6 usually includes IPv4. The error wraps
// errors.ErrUnsupported if the system has no table of sockets that this package can read. The
// table includes only sockets of the same network namespace.
func Listeners(p backends.Protocol, port uint16) ([]netip.Addr, error) {
	rows, err := readTable(p, port)
	if err != nil {
		return nil, fmt.Errorf("reach: table of sockets: %w", err)
	}
	var out []netip.Addr
	for _, s := range rows {
		if s.listens {
			out = append(out, s.local)
		}
	}
	return out, nil
}

// socket is a row of the table of sockets.
type socket struct {
	local   netip.Addr     // the unspecified address means every address
	remote  netip.AddrPort // of a connection
	listens bool           // TCP: it listens; UDP: it is not connected
	open    bool           // TCP: a connection that was established; it may have ended since
}

// measureListening finds out whether a socket waits at the internal port.
func measureListening(t Target, catcher Catcher) Evidence {
	e := Evidence{Method: MethodListening, Level: LevelListening, To: t.Internal}
	program := fmt.Sprintf("%v port %d", t.Protocol, t.Internal.Port())
	switch catcher.Owner() {
	case OwnerProgram:
		e.Verdict, e.Detail = Reachable, "this program listens on "+program
		return complete(e, t)
	case OwnerTemporary:
		e.Verdict, e.Detail = Unreachable, "no program on this host listens on "+program
		return complete(e, t)
	case OwnerNone:
		e.Err = catcher.Observing()
		return complete(e, t)
	}
	addrs, err := Listeners(t.Protocol, t.Internal.Port())
	switch {
	case err != nil: // the port is in use, but by which kind of socket is not known
		e.Err = err
	case len(addrs) == 0:
		e.Verdict, e.Detail = Unreachable, "no program on this host listens on "+program
	case slices.ContainsFunc(addrs, func(a netip.Addr) bool { return covers(a, t) }):
		e.Verdict, e.Detail = Reachable, "a program listens on "+program
	case !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.IsLoopback() }):
		e.Verdict = Unreachable
		e.Detail = fmt.Sprintf("the program on %s listens only on %v, which other hosts cannot reach", program, addrs[0])
	default:
		e.Verdict = Unreachable
		e.Detail = fmt.Sprintf("the program on %s listens on %v, but connections arrive at %v", program, addrs[0], t.Internal.Addr())
	}
	return complete(e, t)
}

// covers reports whether a socket that is bound to an address receives what arrives at the
// internal endpoint.
func covers(bound netip.Addr, t Target) bool {
	internal := t.Internal.Addr().Unmap().WithZone("")
	switch {
	case bound.WithZone("") == internal:
		return true
	case !bound.IsUnspecified():
		return false
	case bound.Is4() == internal.Is4():
		return true
	}
	return bound.Is6() && internal.Is4() && !canBind(t.Protocol, netip.AddrPortFrom(netip.IPv4Unspecified(), t.Internal.Port()))
}

// canBind reports whether the port is free at an address. An IPv6 socket that also receives
// IPv4 takes the port of both.
func canBind(p backends.Protocol, at netip.AddrPort) bool {
	var lc net.ListenConfig
	if p == backends.UDP {
		conn, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	ln, err := lc.Listen(context.Background(), "tcp", at.String())
	if err == nil {
		_ = ln.Close()
	}
	return err == nil
}
