package forward

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// Option is an argument of Enable that describes the mapping.
type Option interface {
	apply(s *spec) error
}

// Selector selects mappings.
type Selector interface {
	selects(s *subject) bool
}

// subject is what a selector examines: a mapping of this Forwarder, or an entry of the
// gateway's table.
type subject struct {
	spec    *gateway.Spec
	granted []backends.Mapping
	foreign bool
}

// Criterion is an Option and a Selector: it describes a mapping for Enable, and selects the
// mappings that were enabled with it.
type Criterion interface {
	Option
	Selector
}

// spec is the result of all options of a call.
type spec struct {
	gateway.Spec
	ipv6      bool
	ipv4      bool // IPv4, regardless of the family of Config.Gateway
	noDefault bool // Disable and Refresh without selectors skip the mapping
	onChange  func(Event)
	socket    *socketState // the socket of Listen or ListenPacket, or nil

	given []string     // names of options that may be given only once
	ports []portOption // internal ports that options name
}

// portOption is an internal port that an option names.
type portOption struct {
	option string // as it is written in Go
	port   uint16
	isTo   bool // the option is To
}

// markGiven records that an option is given. It fails if the option was given before.
func (s *spec) markGiven(option string) error {
	if slices.Contains(s.given, option) {
		return invalid("the option %s is given twice", option)
	}
	s.given = append(s.given, option)
	return nil
}

// setPort sets the internal port that an option names; 0 names none. All options must name
// the same port.
func (s *spec) setPort(p portOption) {
	if p.port != 0 {
		s.ports = append(s.ports, p)
		s.Internal = netip.AddrPortFrom(s.Internal.Addr(), p.port)
	}
}

// optionFunc is an Option that is not a Selector.
type optionFunc func(s *spec) error

func (f optionFunc) apply(s *spec) error { return f(s) }

// criterion is a Criterion made of two functions.
type criterion struct {
	option optionFunc
	match  func(s *subject) bool
}

func (c criterion) apply(s *spec) error     { return c.option(s) }
func (c criterion) selects(s *subject) bool { return c.match(s) }

// TCP forwards a TCP port of this host; 0 means any free port. As a selector, TCP selects the
// mappings with that protocol and internal port; 0 means any port.
func TCP(internal uint16) Criterion { return Protocol(backends.TCP, internal) }

// UDP is [TCP] for the protocol UDP.
func UDP(internal uint16) Criterion { return Protocol(backends.UDP, internal) }

// Protocol is [TCP] for any protocol.
func Protocol(p backends.Protocol, internal uint16) Criterion {
	return protocols(fmt.Sprintf("%s(%d)", strings.ToUpper(p.String()), internal), internal, p)
}

// Both is [TCP] for TCP and UDP as one unit: the gateway forwards both protocols from the
// same external port, or Enable fails.
func Both(internal uint16) Criterion {
	return protocols(fmt.Sprintf("Both(%d)", internal), internal, backends.TCP, backends.UDP)
}

func protocols(name string, internal uint16, ps ...backends.Protocol) Criterion {
	return criterion{
		option: func(s *spec) error {
			if s.markGiven(optionProtocol) != nil {
				return invalid("two options name a protocol: use Both, or enable twice")
			}
			if ps[0] == 0 {
				return invalid("protocol 0 is not a protocol: want a number from 1 to 255")
			}
			s.Protocols = ps
			s.setPort(portOption{option: name, port: internal})
			return nil
		},
		match: func(s *subject) bool {
			is := slices.Equal(ps, s.spec.Protocols)
			if s.foreign { // an entry of the table has one protocol
				is = slices.Contains(ps, s.spec.Protocols[0])
			}
			return is && (internal == 0 || internal == s.spec.Internal.Port())
		},
	}
}

// maxRange is the largest number of ports in a range. Each of them is a mapping that must be
// renewed.
const maxRange = 256

// Ports forwards a range of internal ports, from first to last, as one unit. The external
// ports are consecutive as well, and the gateway forwards all of them or none. The first
// external port is the one of [External], or else first. A range has at most 256 ports. Other
// options must name no port, or the first one, as in UDP(0), Ports(27000, 27010). As a
// selector, Ports selects the mappings of that range.
func Ports(first, last uint16) Criterion {
	name := fmt.Sprintf("Ports(%d, %d)", first, last)
	return criterion{
		option: func(s *spec) error {
			switch {
			case first == 0 || last < first:
				return invalid("%s is not a range of ports: want a first port above 0, and a last port that is not below it", name)
			case last-first >= maxRange:
				return invalid("%s has more than %d ports: enable several ranges", name, maxRange)
			}
			s.Count = last - first + 1
			s.setPort(portOption{option: name, port: first})
			return s.markGiven("Ports")
		},
		match: func(s *subject) bool {
			port := s.spec.Internal.Port()
			if s.foreign { // an entry of the table has one port
				return first <= port && port <= last
			}
			return port == first && max(s.spec.Count, 1) == last-first+1
		},
	}
}

// External suggests an external port. The default is the internal port. If the gateway grants
// another port, that is a success, unless [Exact] is given. Port 0 fails with
// backends.ErrInvalid. As a selector, External selects the mapping for which that port was
// granted.
func External(port uint16) Criterion {
	return criterion{
		option: func(s *spec) error {
			if port == 0 {
				return invalid("external port 0: name a port, or omit External")
			}
			s.External = port
			return s.markGiven("External")
		},
		match: func(s *subject) bool {
			return len(s.granted) > 0 && s.granted[0].External.Port() == port
		},
	}
}

// ExternalAddr suggests an external address to a gateway that has several. Only PCP can
// request one (RFC 6887, section 11.1); with the other protocols, the gateway chooses. If the
// gateway grants another address, that is a success, unless [Exact] is given.
func ExternalAddr(addr netip.Addr) Option {
	return optionFunc(func(s *spec) error {
		if !addr.IsValid() || addr.IsUnspecified() {
			return invalid("ExternalAddr without an address")
		}
		s.Address = addr.Unmap()
		return s.markGiven("ExternalAddr")
	})
}

// To forwards to an address other than this host's, if the protocol and the gateway allow it.
// If the port is 0, another option names it. As a selector, To selects the mappings to that
// address, and to that port if it is not 0.
func To(internal netip.AddrPort) Criterion {
	return criterion{
		option: func(s *spec) error {
			if !internal.Addr().IsValid() {
				return invalid("To without an address")
			}
			s.Internal = netip.AddrPortFrom(internal.Addr().Unmap(), s.Internal.Port())
			s.setPort(portOption{option: fmt.Sprintf("To(%v)", internal), port: internal.Port(), isTo: true})
			s.ipv6 = s.ipv6 || familyOf(internal.Addr()) == ipv6
			return s.markGiven("To")
		},
		match: func(s *subject) bool {
			return internal.Addr().Unmap() == s.spec.Internal.Addr() &&
				(internal.Port() == 0 || internal.Port() == s.spec.Internal.Port())
		},
	}
}

// From admits connections only from this peer, if the protocol supports that. Port 0 means
// any port of the address. As a selector, From selects the mappings for that peer.
func From(peer netip.AddrPort) Criterion {
	return criterion{
		option: func(s *spec) error {
			if !peer.Addr().IsValid() {
				return invalid("From without an address")
			}
			s.Remote = peer
			return s.markGiven("From")
		},
		match: func(s *subject) bool { return s.spec.Remote == peer },
	}
}

// Description is the text that the gateway shows in its table, if the protocol supports one.
// As a selector, Description selects the mappings with that text.
func Description(text string) Criterion {
	return criterion{
		option: func(s *spec) error { s.Description = text; return s.markGiven("Description") },
		match:  func(s *subject) bool { return s.spec.Description == text },
	}
}

// matchAll is a selector that selects all mappings.
type matchAll string

func (matchAll) selects(*subject) bool { return true }

// Foreign also selects mappings of other programs, of other hosts and of the administrator,
// if the gateway lists them. Gateways list mappings through UPnP, even if the Forwarder uses
// another protocol. Foreign must be combined with another selector, or with Everything. For
// entries of the gateway's table, Both selects each of the two protocols.
func Foreign() Selector { return matchAll("Foreign") }

// Everything selects all mappings.
func Everything() Selector { return matchAll("Everything") }

// Exact makes Enable fail with backends.ErrConflict if the gateway grants another external
// port than [External] requests, or another external address than [ExternalAddr] requests.
func Exact() Option {
	return optionFunc(func(s *spec) error { s.Exact = true; return nil })
}

// SamePort makes the internal port equal to the external port that the gateway grants. Listen
// on the port that Mapping.Internal returns.
func SamePort() Option {
	return optionFunc(func(s *spec) error { s.SamePort = true; return nil })
}

// IPv6 opens a pinhole in the gateway's IPv6 firewall to a stable global address of this
// host. There is no translation, so the external endpoint is this host's own. The gateway
// must support PCP over IPv6 (RFC 6887) or UPnP's WANIPv6FirewallControl.
func IPv6() Option {
	return optionFunc(func(s *spec) error { s.ipv6 = true; return nil })
}

// Lifetime is the lifetime to request with each grant, rounded up to whole seconds. The
// gateway may grant less. Zero means Config.Lifetime. [Forever] requests a mapping without an
// end, if the protocol supports that: UPnP does, and PCP as far as the gateway allows. Such a
// mapping is deleted like any other, but remains if the program is killed. It is requested
// again every 20 minutes, in case the gateway has lost it.
func Lifetime(d time.Duration) Option {
	return optionFunc(func(s *spec) error {
		if d < 0 {
			return invalid("negative lifetime %v", d)
		}
		if d > 0 {
			s.Lifetime = d
		}
		return s.markGiven("Lifetime")
	})
}

// Forever is the [Lifetime] of a mapping without an end.
const Forever = backends.Forever

// minRenewEvery limits the rate of requests if RenewEvery is too short by mistake.
const minRenewEvery = time.Second

// RenewEvery sets the interval between renewals. The default is half of the lifetime that the
// gateway granted (RFC 6886, section 3.3), and a longer interval has no effect. An interval
// below one second fails with backends.ErrInvalid.
func RenewEvery(d time.Duration) Option {
	return optionFunc(func(s *spec) error {
		if d < minRenewEvery {
			return invalid("RenewEvery(%v) is shorter than %v", d, minRenewEvery)
		}
		s.RenewEvery = d
		return s.markGiven(optionRenewEvery)
	})
}

// Once keeps the mapping for one lifetime and does not renew it.
func Once() Option {
	return optionFunc(func(s *spec) error { s.Once = true; return nil })
}

// OnChange calls f for each event of this mapping, after Config.OnEvent and under the same
// rules.
func OnChange(f func(Event)) Option {
	return optionFunc(func(s *spec) error {
		if f == nil {
			return invalid("OnChange without a function")
		}
		s.onChange = f
		return s.markGiven("OnChange")
	})
}

// Background makes Enable return at once. The mapping is requested in the background, with
// retries until it is closed, even if there is no network yet. See Mapping.Wait.
func Background() Option {
	return optionFunc(func(s *spec) error { s.Background = true; return nil })
}

// NoDefault makes Disable and Refresh skip this mapping unless a selector is given. It is for
// a library that uses the Forwarder of its program. Mappings of Listen and ListenPacket
// always have it.
func NoDefault() Option {
	return optionFunc(func(s *spec) error { s.noDefault = true; return nil })
}

// Names of options that other code refers to.
const (
	optionProtocol   = "of a protocol"
	optionRenewEvery = "RenewEvery"
)

// newSpec applies the options to the defaults of the Config.
func (f *Forwarder) newSpec(opts []Option) (spec, error) {
	s := spec{Spec: gateway.Spec{
		Protocols: []backends.Protocol{backends.TCP}, Lifetime: f.config.Lifetime, Description: f.config.Description,
		RequestTimeout: f.config.RequestTimeout, ProbeTimeout: f.config.DiscoveryTimeout,
	}}
	err := s.add(opts)
	return s, err
}

// add applies options and checks the resulting spec.
func (s *spec) add(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return invalid("nil option")
		}
		if err := o.apply(s); err != nil {
			return err
		}
	}
	for _, p := range s.ports[min(1, len(s.ports)):] {
		if first := s.ports[0]; p.port != first.port {
			return s.twoPortsError(first, p)
		}
	}
	last := s.Internal.Port() + max(s.Count, 1) - 1
	switch {
	case s.Count > 1 && s.SamePort:
		return invalid("SamePort and Ports exclude each other")
	case s.Count > 1 && s.External != 0 && s.External+(s.Count-1) < s.External, last < s.Internal.Port():
		return invalid("the range ends above port 65535")
	case s.ipv6 && s.Internal.Addr().Is4():
		return invalid("the option IPv6 needs an IPv6 address, but To names %v", s.Internal.Addr())
	case s.Once && s.Background:
		return invalid("Once and Background exclude each other")
	case s.Once && s.Lifetime == Forever:
		return invalid("Once and Lifetime(Forever) exclude each other: the mapping would never end")
	case s.Once && slices.Contains(s.given, optionRenewEvery):
		return invalid("Once and RenewEvery exclude each other")
	case s.SamePort && s.External != 0 && s.Internal.Port() != 0 && s.External != s.Internal.Port():
		return invalid("SamePort needs equal ports, but the external port is %d and the internal port is %d", s.External, s.Internal.Port())
	case s.Exact && s.External == 0 && s.Internal.Port() == 0:
		return invalid("Exact needs a port")
	case s.Internal.Port() == 0 && s.Internal.Addr().IsValid():
		return invalid("To needs an internal port: a port that is free on this host may be in use on the other")
	}
	return nil
}

// twoPortsError returns the error for two options that name different internal ports. If one
// of them is To, the other was probably meant to name the external port.
func (s *spec) twoPortsError(a, b portOption) error {
	if a.isTo {
		a, b = b, a
	}
	hint := ""
	if b.isTo {
		hint = fmt.Sprintf(": to forward external port %d to %v, use External(%d) and %s", a.port, netip.AddrPortFrom(s.Internal.Addr(), b.port), a.port, b.option)
	}
	return invalid("%s and %s name two internal ports%s", a.option, b.option, hint)
}
