package cli

import (
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/discover"
)

// wayOut is where a gateway is reached, as far as it is compared.
type wayOut struct {
	gateway netip.AddrPort // the zero value: there is none
	iface   string
	local   netip.Addr
	reason  string // why there is none
}

// wayOutOf is the way to the gateway that was named, the one by the interface
// that was named, or the kernel's to the internet.
func wayOutOf(s *settings) wayOut {
	g, err := leads(s)
	named := s.named()
	switch {
	case err != nil && named.IsValid(): // it may be there all the same
		return wayOut{gateway: named}
	case err != nil:
		return wayOut{reason: err.Error()}
	case named.IsValid():
		return wayOut{gateway: named, iface: g.Interface, local: g.Local}
	}
	return wayOut{gateway: netip.AddrPortFrom(g.Addr, 0), iface: g.Interface, local: g.Local}
}

func leads(s *settings) (discover.Gateway, error) {
	named := s.named()
	switch {
	case named.IsValid():
		return discover.Route(named.Addr())
	case s.iface == "":
		return discover.Default()
	}
	return discover.Through(s.iface, false)
}

// text is the way for people.
func (w wayOut) text() string {
	switch {
	case w == wayOut{reason: w.reason}:
		return "none: " + w.reason
	case w.iface == "":
		return w.name()
	}
	return fmt.Sprintf("%s by %s, from %s", w.name(), w.iface, addrText(w.local))
}

func (w wayOut) name() string {
	if !w.gateway.Addr().IsValid() {
		return "no next hop"
	}
	return endpointText(w.gateway)
}
