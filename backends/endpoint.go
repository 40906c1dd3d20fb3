package backends

import (
	"fmt"
	"net/netip"
	"strings"
)

// Endpoint is an external address and port. It has the methods of [netip.AddrPort], and
// prints well if the address is not known or nothing is mapped: as "45.45.45.1:8080", as
// ":8080" if the gateway hides its address, and as "not mapped" if it is the zero value.
type Endpoint struct {
	netip.AddrPort
}

const notMapped = "not mapped"

// IsZero reports whether the Endpoint is the zero value: nothing is mapped.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// String returns the text that Endpoint describes.
func (e Endpoint) String() string {
	switch {
	case e.IsZero():
		return notMapped
	case !e.Addr().IsValid():
		return fmt.Sprintf(":%d", e.Port())
	}
	return e.AddrPort.String()
}

// AppendText appends what MarshalText returns.
func (e Endpoint) AppendText(b []byte) ([]byte, error) {
	if e.IsZero() {
		return b, nil
	}
	return append(b, e.String()...), nil
}

// MarshalText returns the text of String, or nothing for the zero value.
func (e Endpoint) MarshalText() ([]byte, error) { return e.AppendText(nil) }

// UnmarshalText reads what MarshalText and String return. Another text fails with
// ErrInvalid.
func (e *Endpoint) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" || s == notMapped {
		*e = Endpoint{}
		return nil
	}
	hidden := strings.HasPrefix(s, ":")
	if hidden {
		s = "0.0.0.0" + s
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return fmt.Errorf("%w: %q is no endpoint", ErrInvalid, text)
	}
	if hidden {
		at = netip.AddrPortFrom(netip.Addr{}, at.Port())
	}
	e.AddrPort = at
	return nil
}
