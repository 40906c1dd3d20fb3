package reach

import (
	"context"
	"fmt"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// Hairpin returns a prober that connects to the external endpoint from this host. If the
// connection arrives, the router forwards the port: LevelRouter. Most routers do not forward
// connections from inside, so a failure is Unknown. There is nothing to measure if this host
// itself has the external address, as with a pinhole.
func Hairpin() Prober { return hairpin{} }

type hairpin struct{}

// hairpinHops is the number of hops to the router and back. If the router reports an address of
// another host, the connection does not get there, unless that is the router's next hop.
const hairpinHops = 2

// Name implements Prober.
func (hairpin) Name() string { return "hairpin" }

// Probe implements Prober.
func (hairpin) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelRouter, To: t.Internal}
	if err := checkReal(t); err != nil {
		return e, err
	}
	if netbind.HasAddr(t.External.Addr()) {
		return e, errOwnAddress
	}
	d, err := hairpinDialer()
	if err != nil {
		return e, err
	}
	a := d.try(ctx, t, catcher)
	from := a.arrival.From.Addr()
	switch {
	case a.missing:
		return e, fmt.Errorf("the router does not forward connections from its own network, like many routers: %w", a.err)
	case a.err != nil:
		return e, a.err
	case from != t.External.Addr() && from != t.Gateway && !netbind.HasAddr(from): // the router uses one of its addresses as the source, or keeps the source
		return e, fmt.Errorf("a connection from inside arrived from %v, which is neither the router nor this host", a.arrival.From)
	}
	e.Verdict, e.From, e.At, e.RTT = Reachable, a.arrival.From, a.arrival.At, a.rtt
	e.Detail = fmt.Sprintf("a connection from inside to %v arrived, from %v", t.External, e.From)
	return e, nil
}

// hairpinDialer returns a dialer whose packets pass at most hairpinHops hops.
func hairpinDialer() (dialer, error) {
	control, err := netbind.ControlTTL(hairpinHops)
	return dialer{control}, err
}

// checkExternal returns an error if the external endpoint of a target is not known.
func checkExternal(t Target) error {
	if !t.External.Addr().IsValid() || t.External.Port() == 0 {
		return fmt.Errorf("%w: the gateway does not report its external address", backends.ErrUnsupported)
	}
	return nil
}

// checkReal returns an error if nothing may be sent to the external endpoint of a target.
func checkReal(t Target) error {
	if t.Gateway.IsLoopback() && !t.External.Addr().IsLoopback() { // a host of the internet may have that address
		return fmt.Errorf("%w: the gateway is on loopback, so its external address is not a real one", backends.ErrUnsupported)
	}
	return checkExternal(t)
}
