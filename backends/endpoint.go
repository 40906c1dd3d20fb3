package backends

import (
	"fmt"
	"net/netip"
	"strings"
)

// Endpoint is an external address and port with the methods of [netip.AddrPort].
// Its String method also handles incomplete values: it returns "45.45.45.1:8080",
// or ":8080" if the gateway does not report its address, or "not mapped" for the
// zero value.
type Endpoint struct {
	netip.AddrPort
}

const notMapped = "not mapped"

// IsZero reports whether the Endpoint is the zero value, which means that nothing
// is mapped.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// String returns the endpoint as text: see [Endpoint].
func (e Endpoint) String() string {
	switch {
	case e.IsZero():
		return notMapped
	case !e.Addr().IsValid():
		return fmt.Sprintf(":%d", e.Port())
	}
	return e.AddrPort.String()
}

// AppendText appends the text that MarshalText returns.
func (e Endpoint) AppendText(b []byte) ([]byte, error) {
	if e.IsZero() {
		return b, nil
	}
	return append(b, e.String()...), nil
}

// MarshalText returns the text of String, or nothing for the zero value.
func (e Endpoint) MarshalText() ([]byte, error) { return e.AppendText(nil) }

// UnmarshalText parses the text that MarshalText or String returns. For any other
// text, UnmarshalText fails with ErrInvalid.
func (e *Endpoint) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" || s == notMapped {
		*e = Endpoint{}
		return nil
	}
	noAddr := strings.HasPrefix(s, ":")
	if noAddr {
		s = "0.0.0.0" + s
	}
	addrPort, err := netip.ParseAddrPort(s)
	if err != nil {
		return fmt.Errorf("%w: %q is not an endpoint", ErrInvalid, text)
	}
	if noAddr {
		addrPort = netip.AddrPortFrom(netip.Addr{}, addrPort.Port())
	}
	e.AddrPort = addrPort
	return nil
}
