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

// kinds are the error kinds of backends. Each failure must wrap one of them.
var kinds = []error{
	backends.ErrInvalid, backends.ErrUnsupported, backends.ErrNoReply, backends.ErrMalformed, backends.ErrNetworkFailure,
	backends.ErrNoResources, backends.ErrNotAuthorized, backends.ErrConflict, backends.ErrPrivateWAN,
}

// Exercise calls the methods of a backend against a gateway that may send arbitrary
// responses. It returns an error if Check rejects a mapping, if a mapping has the
// wrong internal port, if a failure wraps none of the kinds, or if the text of a
// failure has unprintable characters, for example terminal escapes. A failure that
// the gateway causes is not an error in itself.
func Exercise(ctx context.Context, b backends.Backend, r backends.Request) error {
	var errs []error
	failed := func(op string, err error) bool {
		switch {
		case err == nil:
			return false
		case !isKnown(ctx, err):
			errs = append(errs, fmt.Errorf("%s: the failure has no known kind: %w", op, err))
		case strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }):
			errs = append(errs, fmt.Errorf("%s: the failure's text is not printable: %q", op, err.Error()))
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
	if renewed, err := b.Renew(ctx, m, r); !failed("Renew", err) {
		errs = append(errs, Check(renewed, r))
		if checkInternal(renewed, r.Internal.Port()) != nil {
			errs = append(errs, checkInternal(renewed, m.Internal.Port()))
		}
		m = renewed
	}
	failed("Unmap", b.Unmap(ctx, m))
	return errors.Join(errs...)
}

// checkInternal rejects an internal port that was not requested. It accepts the
// external port, because some gateways forward each port to the same internal port
// and report it.
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

// Watchdog panics unless stop is called within 20 seconds, so that a fuzzer reports
// the input. Every call returns in less time after its context has ended.
func Watchdog() (stop func() bool) {
	const timeout = 20 * time.Second
	return time.AfterFunc(timeout, func() { panic("attack: a call did not end with its context") }).Stop
}

// Check returns an error if m is not a valid result of request r, regardless of the
// gateway's response. A valid mapping has the requested protocol, an internal
// address, an internal port other than 0, an external port and a positive lifetime.
// Its external address is missing or one that a host can have.
func Check(m backends.Mapping, r backends.Request) error {
	var errs []error
	rejectIf := func(failed bool, format string, args ...any) {
		if failed {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	rejectIf(m.Protocol != r.Protocol, "protocol %v, want %v", m.Protocol, r.Protocol)
	rejectIf(m.Internal.Port() == 0, "internal port 0")
	rejectIf(m.External.Port() == 0, "external port 0")
	rejectIf(!m.Internal.Addr().IsValid(), "no internal address")
	rejectIf(m.Lifetime <= 0, "lifetime %v", m.Lifetime)
	rejectIf(m.Check() != nil, "%v", m.Check())
	errs = append(errs, CheckAddr(m.External.Addr()))
	return errors.Join(errs...)
}

// CheckAddr returns an error if no host can have the external address a. Peers that
// connect to an announced address of this kind reach themselves or a whole network.
// A missing address is valid.
func CheckAddr(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return nil
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("external address %v is not a host address", a)
	case a.Zone() != "":
		return fmt.Errorf("external address %q has a zone from the gateway", a)
	}
	return nil
}
