package reflector

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/natforward/goforward/backends"
)

// prohibited are ports to which strangers cannot make a reflector connect: mail, remote logins,
// file shares and printers, whose operators take any connection for an attack or act on its bytes.
var prohibited = []uint16{7, 19, 23, 25, 135, 139, 445, 465, 515, 587, 3389, 9100}

var (
	// embedding are prefixes whose addresses have an IPv4 address in them, so that a packet may
	// go to an address that no rule has seen: NAT64, 6to4 and Teredo.
	embedding = prefixes("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
	// special are prefixes that are not public, and for which backends.ScopeOf has no rule: the
	// relays of 6to4, protocol assignments, and documentation.
	special = prefixes("192.88.99.0/24", "2001::/23", "3fff::/20")
	// global are the public addresses of IPv6.
	global = netip.MustParsePrefix("2000::/3")
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func contains(all []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// requester returns the address of the host that sent a request, and whether a proxy reported it.
func (h *Handler) requester(r *http.Request) (addr netip.Addr, proxied bool, err error) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false, refuse(http.StatusBadRequest, "the source address of the request is not known")
	}
	addr = peer.Addr().Unmap()
	if !contains(h.config.TrustProxy, addr) {
		return addr, false, nil
	}
	addr, err = forwardedFor(r.Header.Values("X-Forwarded-For"), h.config.TrustProxy)
	return addr, true, err
}

// forwardedFor returns the last address of X-Forwarded-For that is not a trusted proxy. Each proxy
// appends the address from which it got the request. The addresses before that one come
// from the requester, so they are not examined.
func forwardedFor(values []string, trusted []netip.Prefix) (netip.Addr, error) {
	if len(values) == 0 {
		return netip.Addr{}, refuse(http.StatusBadRequest, "the proxy sent no X-Forwarded-For: its settings must add this header")
	}
	for _, text := range slices.Backward(strings.Split(strings.Join(values, ","), ",")) {
		addr, ok := parseHost(strings.Trim(text, " \t"))
		if !ok {
			return netip.Addr{}, refuse(http.StatusBadRequest, "X-Forwarded-For of the proxy has a text that is not an IP address")
		}
		if !contains(trusted, addr) {
			return addr, nil
		}
	}
	return netip.Addr{}, refuse(http.StatusBadRequest, "X-Forwarded-For has only addresses of trusted proxies")
}

// parseHost parses an IP address, which may have a port. It accepts no zone: that would be the name of an
// interface of another host.
func parseHost(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		bare, isBracketed := strings.CutPrefix(s, "[")
		bare, isClosed := strings.CutSuffix(bare, "]")
		if isBracketed && isClosed {
			addr, err = netip.ParseAddr(bare)
			if addr.Is4() {
				return netip.Addr{}, false
			}
		} else {
			var at netip.AddrPort
			at, err = netip.ParseAddrPort(s)
			addr = at.Addr()
		}
	}
	return addr.Unmap(), err == nil && addr.Zone() == ""
}

// check returns an error if the reflector does not connect to an address. The addresses of this
// host are checked by checkLocal, which needs system calls.
func (h *Handler) check(addr netip.Addr, proxied bool) error {
	reason := ""
	switch scope := backends.ScopeOf(addr); {
	case addr.Zone() != "" || contains(embedding, addr):
		reason = "to which this reflector does not connect"
	case contains(h.config.Deny, addr):
		reason = "which the operator has excluded"
	case contains(h.config.Allow, addr):
		return nil
	case scope != backends.ScopePublic || contains(special, addr) || addr.Is6() && !global.Contains(addr):
		reason = "which is not a public address"
	default:
		return nil
	}
	return h.notServed(addr, proxied, reason)
}

// checkLocal returns an error if this host has an address. Config.Allow makes exceptions.
func (h *Handler) checkLocal(addr netip.Addr, proxied bool) error {
	if contains(h.config.Allow, addr) || !h.isLocal(addr) {
		return nil
	}
	return h.notServed(addr, proxied, "which is an address of the reflector's host")
}

func (h *Handler) notServed(addr netip.Addr, proxied bool, reason string) error {
	text := fmt.Sprintf("the request came from %v, %s", addr.WithZone(""), reason)
	isNear := backends.ScopeOf(addr) != backends.ScopePublic || strings.HasSuffix(reason, "host")
	if isNear && !proxied {
		text += "; if it came through a proxy, the operator must name the proxy with --trust-proxy"
	}
	return refuse(http.StatusForbidden, text)
}

// logPrefix returns the part of an address that may be logged.
func logPrefix(addr netip.Addr) netip.Prefix {
	bits := 24
	if addr.Is6() {
		bits = 48
	}
	p, _ := addr.WithZone("").Prefix(bits) // the zero Prefix for the zero Addr
	return p
}
