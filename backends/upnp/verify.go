package upnp

import (
	"context"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
)

// verify returns the lifetime that was granted, as far as the device lists what
// it has granted. One that cannot be asked is believed.
func (a *addition) verify(ctx context.Context) (time.Duration, error) {
	asked := a.asked()
	e, err := a.client.PortMapping(ctx, a.entry.Key())
	switch {
	case absent(err):
		return 0, fmt.Errorf("upnp: %w: it says that %v port %d is forwarded, but does not list it", backends.ErrNoResources, a.entry.Protocol, a.entry.ExternalPort)
	case err != nil: // also that of a context that has ended: it stands all the same
		return asked, nil
	case e.Internal.Addr().IsValid() && e.Internal != a.entry.Internal:
		return 0, a.foreign(e)
	}
	const slack = 2 * time.Second
	switch {
	case e.Lease == 0: // also where it means nothing
		return asked, nil
	case a.stale(e, asked):
		return a.replace(ctx, e.Lease)
	case asked-e.Lease > slack:
		return e.Lease, nil
	}
	return asked, nil
}

// foreign is what an entry is that was granted, and listed for somebody else.
// Another port helps only if another program of this host was faster.
func (a *addition) foreign(e PortMapping) error {
	kind := backends.ErrNoResources
	if e.Internal.Addr() == a.entry.Internal.Addr() {
		kind = backends.ErrConflict
	}
	return fmt.Errorf("upnp: %w: %v port %d was asked for %v, and is listed for %v",
		kind, a.entry.Protocol, a.entry.ExternalPort, a.entry.Internal, e.Internal)
}

// stale reports whether a renewal did not prolong the lease: it has not grown,
// and is shorter than what was granted before.
func (a *addition) stale(e PortMapping, asked time.Duration) bool {
	if a.renewed == nil || !a.standing || a.before.Lease == 0 || e.Lease > a.before.Lease {
		return false
	}
	granted := min(asked, a.renewed.Lifetime)
	return e.Lease < granted-granted/5
}

// replace deletes and adds, with a device that prolongs no lease. Where it will
// not delete, the entry stands for what is left.
func (a *addition) replace(ctx context.Context, left time.Duration) (time.Duration, error) {
	if err := a.client.DeletePortMapping(ctx, a.entry.Key()); err != nil && !absent(err) {
		return left, unlessAnswered(err)
	}
	a.renewed, a.standing = nil, false // it is a new one now
	if err := a.send(ctx); err != nil {
		return 0, err
	}
	return a.verify(ctx)
}
