package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// Path returns a prober that connects to the external endpoint through another uplink of this
// host, such as a modem or a VPN. An arrival from a public address proves LevelInternet.
//
// A failure is Unknown at first, because the uplink may be the cause: its provider may block the
// port. It is Unreachable if this prober reached the same external endpoint before, and if the
// router replies to an ICMP echo request through the uplink. There is nothing to measure if this
// host itself has the external address, as with a pinhole.
func Path(iface string) Prober { return &path{iface: iface} }

type path struct {
	iface   string
	reached reached
}

// Name implements Prober.
func (p *path) Name() string { return "path:" + p.iface }

// Probe implements Prober.
func (p *path) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	if err := checkReal(t); err != nil {
		return e, err
	}
	ifi, err := net.InterfaceByName(p.iface)
	switch {
	case err != nil:
		return e, fmt.Errorf("interface %q: %w", p.iface, err)
	case p.iface == t.Interface:
		return e, fmt.Errorf("%w: %s leads to the gateway itself: name another uplink of this host", backends.ErrInvalid, p.iface)
	case netbind.HasAddr(t.External.Addr()):
		return e, errOwnAddress
	}
	control, err := netbind.Control(ifi)
	if err != nil {
		return e, err
	}
	a := dialer{control}.try(ctx, t, catcher)
	switch {
	case a.err == nil && !t.IsFromInternet(a.arrival.From.Addr()):
		return e, fmt.Errorf("a connection through %s arrived from %v, which is not an address of the internet", p.iface, a.arrival.From)
	case a.err == nil:
		p.reached.add(t.Protocol, t.External)
		e.Verdict, e.From, e.At, e.RTT = Reachable, a.arrival.From, a.arrival.At, a.rtt
		e.Detail = fmt.Sprintf("a connection through %s arrived, from %v", p.iface, e.From)
		return e, nil
	case !a.missing:
		return e, fmt.Errorf("through %s: %w", p.iface, a.err)
	}
	switch err := echo(ctx, ifi, t.External.Addr()); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return e, fmt.Errorf("through %s: %w; the router does not reply to an ICMP echo request there either, so the uplink may be the cause", p.iface, a.err)
	case err != nil:
		return e, fmt.Errorf("through %s: %w; the uplink may be the cause, because an ICMP echo request cannot be sent there: %w", p.iface, a.err, err)
	}
	if !p.reached.has(t.Protocol, t.External) {
		return e, fmt.Errorf("through %s: %w, although the router replies to an ICMP echo request there: the port may be blocked, or %s cannot be used to measure it", p.iface, a.err, p.iface)
	}
	e.Verdict = Unreachable
	e.Detail = fmt.Sprintf("through %s: %v, although earlier ones arrived and the router replies to an ICMP echo request there", p.iface, a.err)
	return e, nil
}

// errOwnAddress is for a host that has the external address.
var errOwnAddress = fmt.Errorf("%w: this host itself has the external address, so a connection to it does not leave this host", backends.ErrUnsupported)
