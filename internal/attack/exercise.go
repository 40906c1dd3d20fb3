package attack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
)

// kinds are what failures of a backend are known by.
var kinds = []error{
	backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed, backends.ErrNetworkFailure,
	backends.ErrNoResources, backends.ErrNotAuthorized, backends.ErrConflict, backends.ErrPrivateWAN,
}

// Exercise has a backend do what the contract has, against a gateway that
// answers what it likes, and says what came out of it that must not: a mapping
// that Check objects to, one to another internal port, or a failure that is of no
// kind, or whose text would move a terminal's cursor. That the gateway makes it fail is none.
func Exercise(ctx context.Context, b backends.Backend, r backends.Request) error {
	var errs []error
	failed := func(op string, err error) bool {
		switch {
		case err == nil:
			return false
		case !isKnown(ctx, err):
			errs = append(errs, fmt.Errorf("%s: a failure of no kind: %w", op, err))
		case strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }):
			errs = append(errs, fmt.Errorf("%s: a failure that is not fit to print: %q", op, err.Error()))
		}
		return true
	}
	external, err := b.ExternalAddr(ctx)
	if !failed("ExternalAddr", err) {
		errs = append(errs, CheckAddr(external))
	}
	m, err := b.Map(ctx, r)
	if failed("Map", err) {
		return errors.Join(errs...)
	}
	errs = append(errs, Check(m, r), checkInternal(m, r.Internal.Port()))
	if again, err := b.Renew(ctx, m, r); !failed("Renew", err) {
		errs = append(errs, Check(again, r), checkInternal(again, m.Internal.Port()))
		m = again
	}
	failed("Unmap", b.Unmap(ctx, m))
	return errors.Join(errs...)
}

// checkInternal objects to another internal port than was asked for, but that of
// gateways that forward each port to itself, and say so.
func checkInternal(m backends.Mapping, want uint16) error {
	if got := m.Internal.Port(); got != want && got != m.External.Port() {
		return fmt.Errorf("internal port %d, want %d", got, want)
	}
	return nil
}

func isKnown(ctx context.Context, err error) bool {
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return true
		}
	}
	return ctx.Err() != nil && errors.Is(err, context.Cause(ctx))
}

// Watchdog ends the process, as a fuzzer notices, where what it watches has not
// called stop in a time that is enough for any call to have ended with its
// context.
func Watchdog() (stop func() bool) {
	const enough = 20 * time.Second
	return time.AfterFunc(enough, func() { panic("hostile: a call did not end with its context") }).Stop
}

// Check says what is wrong with a mapping that a request came to, whatever the
// gateway answered: it is of the protocol and of an internal port other than 0,
// has an external port and a time, and an external address that a host can have,
// or none.
func Check(m backends.Mapping, r backends.Request) error {
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(m.Protocol != r.Protocol, "protocol %v, want %v", m.Protocol, r.Protocol)
	wrong(m.Internal.Port() == 0, "internal port 0")
	wrong(m.External.Port() == 0, "external port 0")
	wrong(!m.Internal.Addr().IsValid(), "no internal address")
	wrong(m.Lifetime <= 0, "lifetime %v", m.Lifetime)
	wrong(m.Check() != nil, "%v", m.Check())
	errs = append(errs, CheckAddr(m.External.Addr()))
	return errors.Join(errs...)
}

// CheckAddr says why an external address, which may be missing, is that of no
// host: to announce it would send others to themselves, or to everybody.
func CheckAddr(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return nil
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("external address %v is no host's", a)
	case a.Zone() != "":
		return fmt.Errorf("external address %q has a zone of the gateway's", a)
	}
	return nil
}
