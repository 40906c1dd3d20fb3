package attack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

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
