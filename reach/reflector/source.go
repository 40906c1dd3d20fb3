package reflector

import (
	"net"
	"net/http"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// source returns the address from which to connect to the host that sent a request, or the zero Addr:
// the kernel then chooses. A gateway that filters by address admits the address to which the request
// went, and no stranger. So source prefers another one.
func (h *Handler) source(r *http.Request, to netip.Addr) netip.Addr {
	for _, addr := range h.config.DialFrom {
		if addr.Is4() == to.Is4() {
			return addr
		}
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return netip.Addr{}
	}
	asked, _ := netip.ParseAddrPort(local.String())
	if asked.Addr().Unmap().Is4() != to.Is4() { // a proxy is in between
		return netip.Addr{}
	}
	return h.second(asked.Addr().Unmap())
}

// secondAddr returns another public address of the same family that the interface of this public
// address has, or the zero Addr.
func secondAddr(of netip.Addr) netip.Addr {
	if backends.ScopeOf(of) != backends.ScopePublic {
		return netip.Addr{}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}
	}
	for _, ifi := range interfaces {
		all, err := ifi.Addrs()
		if err != nil {
			continue
		}
		if addr, ok := otherOf(all, of); ok {
			return addr
		}
	}
	return netip.Addr{}
}

// otherOf returns another public address of the same family among the addresses of an interface. It
// returns false if the interface does not have the first one.
func otherOf(all []net.Addr, first netip.Addr) (other netip.Addr, hasFirst bool) {
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, _ := netip.AddrFromSlice(n.IP)
		switch addr = addr.Unmap(); {
		case addr == first:
			hasFirst = true
		case !other.IsValid() && addr.Is4() == first.Is4() && backends.ScopeOf(addr) == backends.ScopePublic:
			other = addr
		}
	}
	return other, hasFirst
}
