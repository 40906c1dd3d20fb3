package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// Path returns a prober that connects to the external endpoint through another uplink of this
// host, such as a modem or a VPN. An arrival from a public address proves LevelInternet.
//
// A failure is Unreachable only if the router answered on the same path: it refused the
// connection, or replied to an ICMP echo request. Otherwise the uplink itself may have failed,
// and the Verdict is Unknown. It is Unknown too if the uplink has a public address: the kernel
// drops packets from its own addresses that arrive from outside. There is nothing to measure
// if this host itself has the external address, as with a pinhole.
func Path(iface string) Prober { return path{iface} }

type path struct{ iface string }

// Name implements Prober.
func (p path) Name() string { return "path:" + p.iface }

// Probe implements Prober.
func (p path) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	if err := externalEndpoint(t); err != nil {
		return e, err
	}
	ifi, err := net.InterfaceByName(p.iface)
	switch {
	case err != nil:
		return e, fmt.Errorf("interface %q: %w", p.iface, err)
	case p.iface == t.Interface:
		return e, fmt.Errorf("%w: %s leads to the gateway itself: name another uplink of this host", backends.ErrInvalid, p.iface)
	case netbind.HasAddr(t.External.Addr()):
		return e, fmt.Errorf("%w: this host itself has the external address, so a connection to it does not leave this host", backends.ErrUnsupported)
	}
	control, err := netbind.Control(ifi)
	if err != nil {
		return e, err
	}
	d := dialer{control: control, from: t.IsFromInternet}
	a := d.try(ctx, t, catcher)
	if a.err == nil {
		e.Verdict, e.From, e.At, e.RTT = Reachable, a.arrival.From, a.arrival.At, a.rtt
		e.Detail = fmt.Sprintf("a connection through %s arrived, from %v", p.iface, e.From)
		return e, nil
	}
	if err := p.checkTranslated(ifi, t); err != nil {
		return e, errors.Join(a.err, err)
	}
	switch {
	case errors.Is(a.err, errAnswered), ctx.Err() != nil:
		return e, a.err
	case a.refused:
		e.Verdict, e.Detail = Unreachable, fmt.Sprintf("a connection through %s to %v was refused", p.iface, t.External)
		return e, nil
	case !a.silent:
		return e, a.err
	}
	if err := echo(ctx, ifi, t.External.Addr()); err != nil {
		return e, fmt.Errorf("%w; the router does not reply to an ICMP echo request through %s either, so the uplink may have failed: %w", a.err, p.iface, err)
	}
	e.Verdict = Unreachable
	e.Detail = fmt.Sprintf("a connection through %s to %v did not arrive, although the router replies on that path", p.iface, t.External)
	return e, nil
}

// checkTranslated returns an error if packets of the uplink may arrive with an address of this
// host as their source. The kernel drops such packets.
func (p path) checkTranslated(ifi *net.Interface, t Target) error {
	addrs, err := ifi.Addrs()
	if err != nil {
		return err
	}
	isPublic := func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Is4() == t.External.Addr().Is4() && backends.ScopeOf(prefix.Addr()) == backends.ScopePublic
	}
	if slices.ContainsFunc(addrs, isPublic) {
		return fmt.Errorf("%s has a public address, and this host drops packets from its own addresses: the measurement shows nothing", p.iface)
	}
	return nil
}
