package upnp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// once reports whether a cure was not tried yet, and notes that it is now.
func (a *addition) once(cure string) bool {
	tried := a.cured[cure]
	a.cured[cure] = true
	return !tried
}

// breather is how long a device is left alone that failed for no reason given.
const breather = time.Second

// cure changes the request after a refusal, and reports whether it is worth
// another try; or it says better than the refusal why it is not.
func (a *addition) cure(ctx context.Context, refusal error) (again bool, err error) {
	var status *HTTPError
	var f *Fault
	switch {
	case errors.As(refusal, &status):
		return a.otherService(ctx)
	case !errors.As(refusal, &f):
		return false, nil
	}
	switch f.Code {
	case ActionFailed:
		if err := a.privateWAN(ctx, f); err != nil {
			return false, err
		}
		if a.once("again") {
			return true, sleep(ctx, a.backend.breather)
		}
		return a.reword(f.Code), nil
	case OnlyPermanentLeasesSupported, StringArgumentTooLong:
		return a.reword(f.Code), nil
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange:
		if a.reword(f.Code) {
			return true, nil
		}
		a.variant = variant{}
		return a.sameNumber(ctx)
	case ConflictInMappingEntry:
		return a.displace(ctx, f)
	case SamePortValuesRequired:
		return a.sameNumber(ctx)
	case InvalidAction, OptionalActionNotImplemented:
		return a.otherService(ctx)
	}
	return false, nil
}

// reword words the request another way that may help against the refusal.
func (a *addition) reword(code FaultCode) bool {
	a.refused[a.variant.words(a.request)] = true
	for _, v := range variants {
		if v.cures(code) && !a.refused[v.words(a.request)] {
			a.variant = v
			return true
		}
	}
	return false
}

// privateWAN says whether the device refuses because its own external address is
// private, or because it has none.
func (a *addition) privateWAN(ctx context.Context, f *Fault) error {
	external, err := a.client.ExternalAddr(ctx)
	if err != nil {
		return unlessAnswered(err)
	}
	switch backends.ScopeOf(external) {
	case backends.ScopePublic:
		return nil
	case backends.ScopeUnknown:
		s, err := a.client.Status(ctx)
		if err == nil && !s.Connected() {
			return &judged{f, backends.ErrNetworkFailure, fmt.Sprintf("it is %q and has no external address", s.Connection)}
		}
		return &judged{f, backends.ErrPrivateWAN, "or it has none: it tells none"}
	case backends.ScopeShared:
		return &judged{f, backends.ErrPrivateWAN, fmt.Sprintf("%v, behind the provider's NAT", external)}
	case backends.ScopePrivate:
	}
	return &judged{f, backends.ErrPrivateWAN, fmt.Sprintf("%v, behind another router", external)}
}

// displace is for an entry in the way. One for another host is a matter of
// policy, which no other port changes. This host's own, of the same endpoint,
// some devices want deleted first; others refuse a second external port for one
// endpoint, and then it has to be the first.
func (a *addition) displace(ctx context.Context, f *Fault) (again bool, err error) {
	switch {
	case a.entry.Internal.Addr() != a.gateway.Device.Local:
		// Not a conflict, for which other ports would be tried.
		return false, &judged{f, backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the one that asks", a.entry.Internal.Addr())}
	case a.standing && a.once("displace"):
		if err := a.client.DeletePortMapping(ctx, a.entry.Key()); err != nil && !absent(err) {
			return false, err
		}
		return true, nil
	case !a.standing && a.once("twin"):
		return a.takeTwin(ctx)
	}
	return false, nil
}

// takeTwin looks for an entry of the same endpoint under another external port:
// it is used in its place or, where the port matters and it is this program's,
// deleted.
func (a *addition) takeTwin(ctx context.Context) (again bool, err error) {
	const enough = 256
	n := 0
	for e, err := range a.client.indexed(ctx) {
		if n++; err != nil || n > enough {
			return false, unlessAnswered(err)
		}
		if e.ExternalPort == 0 || e.Protocol != a.entry.Protocol || e.Internal != a.entry.Internal || e.Remote != a.entry.Remote {
			continue
		}
		if !a.request.Exact {
			a.entry.ExternalPort, a.before, a.standing, a.free = e.ExternalPort, e, true, false
			return true, nil
		}
		if e.Description == wireDescription(a.request.Description) {
			err := a.client.DeletePortMapping(ctx, e.Key())
			return err == nil || absent(err), unlessAnswered(err)
		}
	}
	return false, nil
}

// sameNumber makes the external port the internal one, for a device that knows
// no other way.
func (a *addition) sameNumber(ctx context.Context) (again bool, err error) {
	port := a.entry.Internal.Port()
	if a.request.Exact || a.entry.ExternalPort == port || !a.once("same number") {
		return false, nil
	}
	a.entry.ExternalPort = port
	err = a.look(ctx)
	return err == nil, err
}

// serviceCure names a service as a cure.
func serviceCure(c *Client) string { return c.service.Type + " " + c.service.ControlURL }

// otherService goes on with another service of the device, where this one does
// not know what it must. It has a table of its own.
func (a *addition) otherService(ctx context.Context) (again bool, err error) {
	for _, c := range append([]*Client{a.gateway.client}, a.gateway.others...) {
		if a.once(serviceCure(c)) && c != a.client {
			a.client = c
			err := a.look(ctx)
			return err == nil, err
		}
	}
	return false, nil
}

// elsewhere gets another external port after a conflict: from the device, if it
// chooses ports itself. A renewal goes on by itself; whoever asks for a new
// mapping has the choice.
func (a *addition) elsewhere(ctx context.Context, conflict error) error {
	const hops = 3
	for hop := 0; hop == 0 || a.renewed != nil && hop < hops; hop++ {
		a.entry.ExternalPort = highPort()
		if err := a.look(ctx); errors.Is(err, backends.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		err := a.addAny(ctx)
		if errors.Is(err, backends.ErrUnsupported) && a.renewed != nil {
			err = a.send(ctx)
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case !errors.Is(err, backends.ErrConflict) && !errors.Is(err, backends.ErrUnsupported):
			return err
		}
	}
	return conflict
}

// addAny lets the device choose the port, from a wish. Some devices cut the
// connection instead of an answer: they cannot.
func (a *addition) addAny(ctx context.Context) error {
	if _, noAny := a.quirks.known(); noAny || a.client.Service().Version() < 2 {
		return backends.ErrUnsupported
	}
	a.variant.apply(&a.entry, a.request)
	port, err := a.client.AddAnyPortMapping(ctx, a.entry)
	switch {
	case err == nil:
		a.entry.ExternalPort, a.standing = port, false
		return nil
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, backends.ErrNoReply), errors.Is(err, backends.ErrMalformed),
		isFault(err, InvalidAction), isFault(err, OptionalActionNotImplemented):
		a.quirks.locked(func(q *quirks) { q.noAny = true })
		return fmt.Errorf("%w: %v", backends.ErrUnsupported, err) //nolint:errorlint // not another reason to look for the device
	}
	return err
}

// sleep waits for a time, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if err := ctxsync.Sleep(ctx, d); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	return nil
}
