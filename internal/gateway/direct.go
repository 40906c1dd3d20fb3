package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// direct is the backend of a host with a public address of its own: no NAT
// stands before it, so there is nothing to map, and external is internal.
type direct struct {
	addr netip.Addr
}

var _ backends.Backend = direct{}

func (direct) String() string { return "direct" }
func (direct) Close() error   { return nil }

func (d direct) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("direct: %w", err)
	}
	reason := ""
	switch internal := r.Internal.Addr().Unmap(); {
	case internal.IsValid() && !internal.IsUnspecified() && internal != d.addr:
		reason = "no NAT stands before this host that could forward to another"
	case r.Remote.IsValid():
		reason = "no NAT stands before this host that could admit one peer only"
	case r.Exact && r.External.Port() != r.Internal.Port():
		reason = "no NAT stands before this host that could change a port"
	default:
		return nil
	}
	return fmt.Errorf("direct: %w: %s", backends.ErrUnsupported, reason)
}

func (d direct) ExternalAddr(context.Context) (netip.Addr, error) { return d.addr, nil }

func (d direct) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	if err := d.Supports(r); err != nil {
		return backends.Mapping{}, err
	}
	here := netip.AddrPortFrom(d.addr, r.Internal.Port())
	return backends.Mapping{
		Backend: d.String(), Protocol: r.Protocol, Internal: here, External: here,
		Description: r.Description, Lifetime: backends.Forever, Granted: time.Now(),
	}, context.Cause(ctx)
}

func (d direct) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.Protocol, r.Internal = m.Protocol, m.Internal
	return d.Map(ctx, r)
}

func (direct) Unmap(_ context.Context, m backends.Mapping) error { return m.Check() }
