package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// The limits for a listing: the number of entries, the number of consecutive
// entries that are repeated or malformed, and the largest index. Entries change
// their index while others are added and deleted, and the tables of some devices
// never end.
const (
	maxEntries = 8192
	maxRepeats = 16
	maxIndex   = 65535
)

// List yields the entries of the device's table, including those of other hosts. The
// entries of NAT-PMP, of PCP and of the administrator are usually among them. If the
// device has several connection services, their tables follow each other; an entry that
// several of them list is yielded once. If the device does not report the lifetime of an
// entry, the Lifetime is Forever.
func (b *Backend) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		if err := b.checkListable(); err != nil {
			yield(backends.Entry{}, err)
			return
		}
		wantMore, yielded := true, false
		var failure error // the first error, if there are entries too
		err := b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
			seen, rows := map[PortMapping]bool{}, 0
			for i, c := range g.startingWith(g.client) {
				external, _ := b.recentExternal(ctx, c, DefaultLifetime)
				for e, err := range b.newTableReader(g, c).entries(ctx) {
					if err != nil {
						if i == 0 || !errors.As(err, new(*Fault)) { // the other services may refuse
							failure = cmp.Or(failure, err)
						}
						break
					}
					if rows++; rows > maxEntries {
						return nil
					}
					row := PortMapping{Remote: e.Remote, ExternalPort: e.ExternalPort, Protocol: e.Protocol, Internal: e.Internal}
					if seen[row] {
						continue
					}
					seen[row], yielded = true, true
					b.calls.Callback(func() { wantMore = yield(c.entry(e, external), nil) })
					if !wantMore {
						return nil
					}
				}
			}
			if yielded {
				return nil // not the error, so that withDevice does not start the list again
			}
			err := failure
			failure = nil
			return err
		})
		if err = cmp.Or(err, failure); err != nil && wantMore {
			yield(backends.Entry{}, err)
		}
	}
}

// EntryAt returns the entry at an index, which starts at 0, of the table of the preferred
// connection service. After the end of the table, the error wraps ErrInvalid. The indexes
// of entries change when the table changes.
func (b *Backend) EntryAt(ctx context.Context, index int) (entry backends.Entry, err error) {
	if err := b.checkListable(); err != nil {
		return entry, err
	}
	err = b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		e, err := g.client.PortMappingAt(ctx, index)
		switch {
		case isEndOfTable(err) && !errors.Is(err, backends.ErrInvalid):
			return fmt.Errorf("upnp: %w: no entry %d: %w", backends.ErrInvalid, index, err)
		case err != nil:
			return err
		}
		external, _ := b.recentExternal(ctx, g.client, DefaultLifetime)
		entry = g.client.entry(e, external)
		return nil
	})
	return entry, err
}

// checkListable returns an error for an IPv6 gateway, because pinholes cannot
// be listed.
func (b *Backend) checkListable() error {
	if b.is6 {
		return fmt.Errorf("upnp: %w: IPv6 firewalls do not list their pinholes", backends.ErrUnsupported)
	}
	return nil
}

// entry converts an entry of the table of a service to the type of package backends.
func (c *Client) entry(e PortMapping, external netip.Addr) backends.Entry {
	lifetime := e.Lease
	if lifetime == 0 {
		lifetime = backends.Forever
	}
	m := backends.Mapping{
		Backend: Name, Gateway: c.addr(), Protocol: e.Protocol, Internal: e.Internal,
		External:    netip.AddrPortFrom(external, e.ExternalPort),
		Description: e.Description, Lifetime: lifetime, Granted: time.Now(), Token: tokenOf(c.Service()),
	}
	if e.Remote.IsValid() {
		m.Remote = netip.AddrPortFrom(e.Remote, 0)
	}
	return backends.Entry{Mapping: m, Enabled: e.Enabled}
}

// isEndOfTable reports whether the fault means that the index is after the end
// of the table.
func isEndOfTable(err error) bool {
	return isNotFound(err) || isFault(err, InvalidArgs, ActionFailed, ArgumentValueOutOfRange, 899)
}

// errIncomplete is yielded if the end of a table is not certain.
var errIncomplete = malformed("the end of the table is not certain")

// entriesByIndex yields the table, which it reads with get. It yields an error that
// wraps backends.ErrMalformed for each malformed entry, and at the end if there may be
// more entries.
func entriesByIndex(ctx context.Context, get func(ctx context.Context, index int) (PortMapping, error)) iter.Seq2[PortMapping, error] {
	return func(yield func(PortMapping, error) bool) {
		seen := map[PortMappingKey]bool{}
		repeats := 0
		for i := 0; i <= maxIndex && len(seen) < maxEntries && repeats < maxRepeats; i++ {
			e, err := get(ctx, i)
			var fault *Fault
			switch {
			case isNotFound(err), i > 0 && isEndOfTable(err):
				return
			case isEndOfTable(err), i > 0 && errors.As(err, &fault) && fault.Code.isUnknown():
				yield(PortMapping{}, errIncomplete)
				return
			case errors.Is(err, backends.ErrMalformed) && ctx.Err() == nil:
				repeats++
			case err != nil:
				yield(PortMapping{}, err)
				return
			case seen[e.Key()]:
				repeats++
				continue
			default:
				repeats = 0
				seen[e.Key()] = true
			}
			if !yield(e, err) {
				return
			}
		}
		if len(seen) < 2 || len(seen) >= maxEntries { // the device may return one entry for each index
			yield(PortMapping{}, errIncomplete)
		}
	}
}

// entriesByRange yields the table by port ranges (GetListOfPortMappings). The
// ranges are small, because larger ones crash common daemons.
func (c *Client) entriesByRange(ctx context.Context, yield func(PortMapping, error) bool) {
	seen := map[PortMappingKey]bool{}
	rows := 0 // including repeated entries
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		for first := 0; first < 1<<16; first += maxWindow {
			entries, err := c.PortMappings(ctx, p, uint16(max(first, 1)), uint16(first+maxWindow-1))
			if err != nil && !isNotFound(err) {
				yield(PortMapping{}, err)
				return
			}
			for _, e := range entries {
				if rows++; rows > maxEntries {
					return
				}
				if seen[e.Key()] {
					continue
				}
				seen[e.Key()] = true
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}
