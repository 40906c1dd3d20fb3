package forward

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/netbind"
)

// shortTimeout is a DiscoveryTimeout within which a slow gateway may not reply.
const shortTimeout = time.Second

// situation has the facts about a failure from which its advice follows. The command replaces
// the names of options and of fields of Config in the texts by its flags.
type situation struct {
	kind     error
	attempts []error
	config   *Config       // with its defaults
	gateway  netip.Addr    // the zero Addr for ready-made backends
	spec     *gateway.Spec // what was requested; nil: no mapping
	replied  bool          // a backend had replied to a probe
}

// isNamed reports whether Config names the gateway.
func (s *situation) isNamed() bool { return s.config.Gateway.IsValid() || s.isReady() }

func (s *situation) isReady() bool { return len(s.config.Backends) > 0 }

// isRestricted reports whether Config excludes a protocol.
func (s *situation) isRestricted() bool {
	return slices.ContainsFunc(gateway.Names(), s.excludes)
}

// excludes reports whether Config.Protocols does not have the protocol.
func (s *situation) excludes(name string) bool {
	return !s.isReady() && !slices.Contains(s.config.Protocols, name)
}

// isRefused reports whether a port of the gateway is closed: the gateway is reachable, and a
// protocol is disabled.
func (s *situation) isRefused() bool { return slices.ContainsFunc(s.attempts, errno.IsRefused) }

func (s *situation) isShort() bool  { return s.config.DiscoveryTimeout < shortTimeout }
func (s *situation) hasURL() bool   { return s.config.UPnPURL != "" }
func (s *situation) hasReply() bool { return s.replied && !s.isReady() }

// isPartlyUnsupported reports whether a backend that had replied does not support an option of
// the request.
func (s *situation) isPartlyUnsupported() bool {
	return s.replied && slices.ContainsFunc(s.attempts, func(err error) bool { return errors.Is(err, backends.ErrUnsupported) }) &&
		slices.ContainsFunc(needs, func(n need) bool { return n.when(s) })
}

func (s *situation) isIPv6() bool { return s.gateway.Is6() }

func (s *situation) isExact() bool { return s.spec != nil && s.spec.Exact }

// isUnit reports whether several mappings were requested as a unit.
func (s *situation) isUnit() bool { return s.spec != nil && len(s.spec.Members()) > 1 }

func (s *situation) isFrom() bool { return s.spec != nil && s.spec.Remote.IsValid() }

func (s *situation) isFromPort() bool { return s.isFrom() && s.spec.Remote.Port() != 0 }

func (s *situation) isForever() bool { return s.spec != nil && s.spec.Lifetime == backends.Forever }

// isToOther reports whether the mapping was to forward to another host.
func (s *situation) isToOther() bool {
	if s.spec == nil {
		return false
	}
	to := s.spec.Internal.Addr()
	return to.IsValid() && !to.IsUnspecified() && !netbind.HasAddr(to)
}

// isOtherProtocol reports whether the mapping was for a protocol other than TCP and UDP.
func (s *situation) isOtherProtocol() bool {
	return s.spec != nil && slices.ContainsFunc(s.spec.Protocols, func(p backends.Protocol) bool { return p != backends.TCP && p != backends.UDP })
}

func (s *situation) hasExternalAddr() bool { return s.isExact() && s.spec.Address.IsValid() }

// isLow reports whether an external port below 1024 was required, and isInternalLow whether the
// internal port is below 1024.
func (s *situation) isLow() bool {
	return s.isExact() && cmp.Or(s.spec.External, s.spec.Internal.Port()) < 1024
}

func (s *situation) isInternalLow() bool { return s.spec != nil && s.spec.Internal.Port() < 1024 }

// isOwnConflict reports whether another mapping of this program has the port.
func (s *situation) isOwnConflict() bool { return s.wraps(new(*gateway.ConflictError)) }

// needsSamePort reports whether the gateway grants only equal ports.
func (s *situation) needsSamePort() bool { return s.wraps(new(*gateway.UnequalPortsError)) }

// isShared reports whether the gateway's external address is shared by a carrier.
func (s *situation) isShared() bool {
	return s.pcpRefused(func(e *pcp.ResultError) bool { return backends.ScopeOf(e.External.Addr()) == backends.ScopeShared })
}

// isBehindNAT reports whether a NAT is between this host and the gateway.
func (s *situation) isBehindNAT() bool {
	return s.pcpRefused(func(e *pcp.ResultError) bool { return e.Code == pcp.AddressMismatch })
}

// isQuota reports whether this host has as many mappings as the gateway permits.
func (s *situation) isQuota() bool {
	return s.pcpRefused(func(e *pcp.ResultError) bool { return e.Code == pcp.UserExceededQuota })
}

// pcpRefused reports whether a PCP server refused the request in this way.
func (s *situation) pcpRefused(is func(*pcp.ResultError) bool) bool {
	return slices.ContainsFunc(s.attempts, func(err error) bool {
		var e *pcp.ResultError
		return errors.As(err, &e) && is(e)
	})
}

// isLimited reports whether the gateway supports a protocol, but not all of its options.
func (s *situation) isLimited(name string) bool {
	return slices.ContainsFunc(s.attempts, func(err error) bool { return gateway.RefusedBy(err) == name })
}

// wraps reports whether an attempt wraps an error of the type that target points to.
func (s *situation) wraps(target any) bool {
	return slices.ContainsFunc(s.attempts, func(err error) bool { return errors.As(err, target) })
}

// rules has the advice for each situation. The first rule of the kind that applies counts; the
// last rule of each kind always applies.
var rules = []struct {
	kind   error
	when   func(*situation) bool // nil: always
	advice string
}{
	{backends.ErrConflict, (*situation).isOwnConflict, "close the other mapping of this program first, or give both the same options"},
	{backends.ErrConflict, (*situation).isExact, "request another external port, or omit the option Exact: another port is then used"},
	{backends.ErrConflict, (*situation).isUnit, "request another external port, or a mapping of its own for each protocol and port"},
	{backends.ErrConflict, nil, "request another external port: all that were tried are taken"},

	{backends.ErrNotAuthorized, (*situation).isToOther, "request the mapping on that host itself, or allow mappings for other hosts in the gateway's settings"},
	{backends.ErrNotAuthorized, (*situation).isFrom, "omit the option From, and admit only this peer in this host's firewall; or allow port forwarding for this device in the gateway's settings"},
	{backends.ErrNotAuthorized, (*situation).isIPv6, "allow incoming IPv6 connections (pinholes) for this device in the gateway's settings"},
	{backends.ErrNotAuthorized, (*situation).isLow, "request an external port from 1024 on, because many gateways refuse lower ones; or allow this port for this device in the gateway's settings"},
	{backends.ErrNotAuthorized, (*situation).isInternalLow, "allow port forwarding for this device in the gateway's settings, or use an internal port from 1024 on: some gateways refuse lower ones"},
	{backends.ErrNotAuthorized, nil, "allow port forwarding for this device in the gateway's settings"},

	{backends.ErrPrivateWAN, (*situation).isBehindNAT, "another NAT is between this host and the gateway: request the mapping from a host of the gateway's own network, or from the router that is next to this host"},
	{backends.ErrPrivateWAN, (*situation).isShared, "the provider's NAT is between the gateway and the internet: ask the provider for a public address, or use the option IPv6"},
	{backends.ErrPrivateWAN, nil, "another NAT is between the gateway and the internet: switch that router to bridge mode, forward the port on it too, or ask the provider for a public address"},

	{backends.ErrNoResources, (*situation).isQuota, "delete other mappings of this host: the gateway limits their number"},
	{backends.ErrNoResources, nil, "remove unused mappings from the gateway, or restart it"},

	{backends.ErrNetworkFailure, nil, "check the gateway's internet connection; if it works, another NAT is between the gateway and the internet"},

	{backends.ErrMalformed, (*situation).isRestricted, "omit Config.Protocols: another protocol of the gateway may work"},
	{backends.ErrMalformed, nil, "update the gateway's firmware, or switch on another protocol in its settings"},

	{backends.ErrNoReply, (*situation).isReady, "check the gateway of Config.Backends: its address, and whether its protocol is on"},
	{backends.ErrNoReply, (*situation).isPartlyUnsupported, ""}, // see unsupportedAdvice
	{backends.ErrNoReply, (*situation).hasReply, "try again; if the gateway is slow, increase Config.RequestTimeout"},
	{backends.ErrNoReply, (*situation).hasURL, "check Config.UPnPURL: the device may use another port after a restart; without the URL, it is searched for"},
	{backends.ErrNoReply, both((*situation).isRefused, (*situation).isRestricted), "the gateway's port is closed: switch on the protocol in its settings, or omit Config.Protocols to try the others too"},
	{backends.ErrNoReply, both((*situation).isRefused, (*situation).isNamed), "its port is closed: check that Config.Gateway is the router; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{backends.ErrNoReply, (*situation).isRefused, "the gateway's port is closed: switch on NAT-PMP, PCP or UPnP in its settings; in a container, name the router (Config.Gateway)"},
	{backends.ErrNoReply, (*situation).isShort, "increase Config.DiscoveryTimeout: a gateway may need a second to reply"},
	{backends.ErrNoReply, (*situation).isRestricted, "switch on the protocol in the gateway's settings, or omit Config.Protocols to try the others too"},
	{backends.ErrNoReply, (*situation).isIPv6, "switch on PCP, or UPnP with IPv6 pinholes, in the gateway's settings"},
	{backends.ErrNoReply, (*situation).isNamed, "check that Config.Gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{backends.ErrNoReply, nil, "switch on NAT-PMP, PCP or UPnP in the gateway's settings; behind a VPN or in a container, name the gateway (Config.Gateway)"},

	{backends.ErrUnsupported, (*situation).needsSamePort, "use the option SamePort: the gateway grants only equal external and internal ports, as those of VPN providers do"},
	{backends.ErrUnsupported, nil, ""}, // see unsupportedAdvice
}

// both returns the conjunction of two conditions.
func both(a, b func(*situation) bool) func(*situation) bool {
	return func(s *situation) bool { return a(s) && b(s) }
}

// need is a property of a request that not every protocol supports.
type need struct {
	when      func(*situation) bool
	without   string   // how to manage without it
	protocols []string // the protocols that support it
}

var needs = []need{
	{(*situation).isToOther, "request the mapping on that host itself", []string{pcp.Name, upnpName}},
	{(*situation).isFromPort, "omit the option From, or its port", []string{pcp.Name}},
	{(*situation).isFrom, "omit the option From", []string{pcp.Name, upnpName}},
	{(*situation).isOtherProtocol, "use TCP or UDP", []string{pcp.Name}},
	{(*situation).isForever, "omit the option Lifetime(Forever)", []string{pcp.Name, upnpName}},
	{(*situation).hasExternalAddr, "omit the option ExternalAddr", []string{pcp.Name}},
	{(*situation).isIPv6, "omit the option IPv6", []string{pcp.Name, upnpName}},
}

const upnpName = "upnp" // this package does not import package upnp

// unsupportedAdvice names the protocol that supports the request.
func unsupportedAdvice(s *situation) string {
	for _, n := range needs {
		if !n.when(s) {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(n.protocols), s.isLimited)
		switch {
		case s.isReady() || len(others) == 0:
			return n.without
		case !slices.ContainsFunc(others, func(name string) bool { return !s.excludes(name) }):
			return fmt.Sprintf("%s, or add %s to Config.Protocols", n.without, strings.Join(others, " or "))
		}
		return fmt.Sprintf("%s, or switch on %s in the gateway's settings", n.without, strings.Join(titles(others), " or "))
	}
	if s.isRestricted() {
		return "omit Config.Protocols: another protocol of the gateway may support the request"
	}
	return "switch on another protocol in the gateway's settings"
}

// titles returns the names of protocols for people.
func titles(names []string) (out []string) {
	for _, name := range names {
		p, _ := gateway.Find(name)
		out = append(out, p.Title)
	}
	return out
}

// adviceFor returns the step that most likely helps.
func adviceFor(s *situation) string {
	for _, r := range rules {
		if r.kind == s.kind && (r.when == nil || r.when(s)) { //nolint:errorlint // compares the values themselves
			if r.advice != "" {
				return r.advice
			}
			break
		}
	}
	return unsupportedAdvice(s)
}

// routeAdvice returns the step that helps if there is no route of a family.
func routeAdvice(c *Config, fam family, err error) string {
	switch {
	case c.Gateways == nil && !errors.Is(err, discover.ErrNoRoute): // the routes cannot be read
		return "name the gateway (Config.Gateway)"
	case fam == ipv6:
		return "this network has no IPv6: omit the option IPv6, or connect this host to a network with IPv6"
	case c.Interface != "":
		return "name the gateway (Config.Gateway), or another interface (Config.Interface)"
	}
	return "connect this host to the internet, or name the gateway (Config.Gateway)"
}
