package upnp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
)

// A success of AddPortMapping or DeletePortMapping is not sufficient evidence: some
// devices report success and do nothing. The functions of this file read the table of
// a service. They ask several actions, because on some devices one of them is wrong.

// finding is what the table of a service shows about an entry. A greater value has
// precedence if two actions contradict each other.
type finding int

const (
	notKnown   finding = iota // no action returned an answer, or the table was not read completely
	unseen                    // the index lists no such entry, but rows may have moved during the search
	missing                   // the table has no such entry
	otherEntry                // the table has an entry with that key, for another endpoint
	found                     // the table has the entry
)

// isAbsent reports whether the table was read and has no such entry.
func (f finding) isAbsent() bool { return f == unseen || f == missing }

// optionalTimeout bounds a request that a device need not answer. If the device does not
// answer it twice, the request is not sent again for silentTime.
const (
	optionalTimeout = 2500 * time.Millisecond
	silentTime      = time.Minute
)

// ask sends a request whose result is useful but not necessary. If the connection is cut,
// ask sends it once more.
func (b *Backend) ask(ctx context.Context, c *Client, action string, send func(context.Context) error) error {
	q := b.quirksOf(c)
	if q.remembers(action) {
		return fmt.Errorf("upnp: %s: %w to an earlier request", action, backends.ErrNoReply)
	}
	bounded, cancel := withTimeout(ctx, optionalTimeout)
	defer cancel()
	err := send(bounded)
	if isConnectionCut(err) {
		err = send(bounded)
	}
	if ctx.Err() == nil && !Moved(err) && !errors.Is(err, errQueued) {
		q.recordSilence(action, errors.Is(err, backends.ErrNoReply), c.lastReply.Load())
	}
	return err
}

// compare returns what a row with the key of the wanted entry shows about that entry.
// Some devices report no IP address.
func (m PortMapping) compare(want PortMapping) finding {
	if m.Internal.Port() == want.Internal.Port() && (!m.Internal.Addr().IsValid() || m.Internal.Addr() == want.Internal.Addr()) {
		return found
	}
	return otherEntry
}

// lookUp looks up an entry in the table of a service. The error is not nil if ctx has
// ended or the device has moved.
func (b *Backend) lookUp(ctx context.Context, c *Client, want PortMapping) (PortMapping, finding, error) {
	e, result, err := b.findByKey(ctx, c, want)
	switch {
	case ctx.Err() != nil:
		return e, notKnown, context.Cause(ctx)
	case Moved(err):
		return e, notKnown, err
	case result == found, result != notKnown && b.quirksOf(c).get().findsByKey:
		return e, result, nil
	}
	for _, find := range []func(context.Context, *Client, PortMapping) (PortMapping, finding){b.findByIndex, b.findByRange} {
		row, shown := find(ctx, c, want)
		if shown > result {
			e, result = row, shown
		}
		if shown > unseen {
			break
		}
	}
	return e, result, context.Cause(ctx)
}

// findByKey looks up an entry by GetSpecificPortMappingEntry.
func (b *Backend) findByKey(ctx context.Context, c *Client, want PortMapping) (e PortMapping, result finding, err error) {
	err = b.ask(ctx, c, "GetSpecificPortMappingEntry", func(ctx context.Context) (err error) {
		e, err = c.PortMapping(ctx, want.Key())
		return err
	})
	switch {
	case isNotFound(err):
		return e, missing, err
	case err != nil:
		return e, notKnown, err
	}
	if result = e.compare(want); result == found {
		b.quirksOf(c).update(func(q *quirkState) { q.findsByKey = true })
	}
	return e, result, nil
}

// maxSearchRows is the maximum number of rows that are read to find one entry.
const maxSearchRows = 256

// findByIndex searches the table by index. If the table was not read completely, the
// result is notKnown.
func (b *Backend) findByIndex(ctx context.Context, c *Client, want PortMapping) (PortMapping, finding) {
	const action = "GetGenericPortMappingEntry"
	get := func(ctx context.Context, index int) (e PortMapping, err error) {
		err = b.ask(ctx, c, action, func(ctx context.Context) error {
			e, err = c.PortMappingAt(ctx, index)
			return err
		})
		return e, err
	}
	absent := unseen
	for range 2 { // rows that are deleted during the search hide the rows after them
		n := 0
		for e, err := range entriesByIndex(ctx, get) {
			switch n++; {
			case n > maxSearchRows:
				b.quirksOf(c).remember(action, silentTime) // another search would not find more
				return e, notKnown
			case errors.Is(err, backends.ErrMalformed):
				absent = notKnown
			case err != nil:
				return e, notKnown
			case e.Key() == want.Key():
				return e, e.compare(want)
			}
		}
		if n < 1 {
			break
		}
	}
	return PortMapping{}, absent
}

// findByRange looks up an entry by GetListOfPortMappings.
func (b *Backend) findByRange(ctx context.Context, c *Client, want PortMapping) (PortMapping, finding) {
	if c.service.Version() < 2 {
		return PortMapping{}, notKnown
	}
	var entries []PortMapping
	if b.ask(ctx, c, listAction, func(ctx context.Context) (err error) {
		entries, err = c.PortMappings(ctx, want.Protocol, want.ExternalPort, want.ExternalPort)
		return err
	}) != nil {
		return PortMapping{}, notKnown
	}
	for _, e := range entries {
		if e.Key() == want.Key() {
			return e, e.compare(want)
		}
	}
	return PortMapping{}, missing
}

// remove deletes an entry from the table of a service. It succeeds if the table does
// not list the entry afterwards. If the deletion has no effect, remove tries again, and
// then through the other services of the device that list the entry.
func (b *Backend) remove(ctx context.Context, g *gateway, c *Client, want PortMapping) error {
	q := b.quirksOf(c)
	var failure error
	for i, service := range append([]*Client{c}, g.startingWith(c)...) {
		if i > 0 {
			if err := sleep(ctx, b.retryDelay); err != nil {
				return failure
			}
		}
		if i > 1 {
			if _, shown, _ := b.lookUp(ctx, service, want); shown != found {
				continue
			}
		}
		err := service.DeletePortMapping(ctx, want.Key())
		if err == nil && q.get().deletes {
			return nil
		}
		_, shown, _ := b.lookUp(ctx, c, want)
		switch {
		case shown.isAbsent() || shown == otherEntry:
			q.update(func(q *quirkState) { q.deletes = q.deletes || err == nil })
			return nil
		case shown == notKnown && (err == nil || isNotFound(err)):
			return nil
		case err != nil && transportError(err) != nil:
			return err
		case failure != nil:
		case err == nil || isNotFound(err):
			failure = fmt.Errorf("upnp: %w to delete %v port %d: it still lists the entry", backends.ErrNotAuthorized, want.Protocol, want.ExternalPort)
		default:
			failure = err
		}
	}
	return failure
}
