package forward

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// Option says what Enable is to enable.
type Option interface {
	apply(s *spec) error
}

// Selector says which mappings are meant.
type Selector interface {
	selects(s *subject) bool
}

// subject is what selectors look at: a mapping of ours, or an entry of the
// gateway's table.
type subject struct {
	spec    *gateway.Spec
	granted []backends.Mapping
	foreign bool
}

// Criterion is both: what to enable, and what an enabled mapping is known by.
type Criterion interface {
	Option
	Selector
}

// spec is the sum of options.
type spec struct {
	gateway.Spec
	ipv6      bool
	ipv4      bool // whatever the family of a gateway that was named
	noDefault bool // not what Disable and Refresh take without selectors
	onChange  func(Event)

	given []string     // the options that may be given once
	ports []portOption // the internal ports that options name
}

// portOf is an internal port that an option names.
type portOption struct {
	option string // as it is written
	port   uint16
	isTo   bool // the option is To
}

// once records that an option is given, and fails if it is given already.
func (s *spec) markGiven(option string) error {
	if slices.Contains(s.given, option) {
		return invalid("the option %s is given twice", option)
	}
	s.given = append(s.given, option)
	return nil
}

// setPort sets the internal port that an option names; 0 names none. Options must agree.
func (s *spec) setPort(p portOption) {
	if p.port != 0 {
		s.ports = append(s.ports, p)
		s.Internal = netip.AddrPortFrom(s.Internal.Addr(), p.port)
	}
}

// optionFunc is an Option that is no Selector.
type optionFunc func(s *spec) error

func (f optionFunc) apply(s *spec) error { return f(s) }

// criterion is a Criterion made of two functions.
type criterion struct {
	option optionFunc
	match  func(s *subject) bool
}

func (c criterion) apply(s *spec) error     { return c.option(s) }
func (c criterion) selects(s *subject) bool { return c.match(s) }

// TCP forwards TCP to an internal port of this host; 0 is a free one. As a selector it
// selects the mappings with that protocol and internal port; 0 is any port.
func TCP(internal uint16) Criterion { return Protocol(backends.TCP, internal) }

// UDP is [TCP] for UDP.
func UDP(internal uint16) Criterion { return Protocol(backends.UDP, internal) }

// Protocol is [TCP] for any protocol.
func Protocol(p backends.Protocol, internal uint16) Criterion {
	return protocols(fmt.Sprintf("%s(%d)", strings.ToUpper(p.String()), internal), internal, p)
}

// Both is [TCP] for TCP and UDP as one unit: with one external port for both, or neither.
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
				return invalid("protocol 0")
			}
			s.Protocols = ps
			s.setPort(portOption{option: name, port: internal})
			return nil
		},
		match: func(s *subject) bool {
			is := slices.Equal(ps, s.spec.Protocols)
			if s.foreign { // which has one protocol
				is = slices.Contains(ps, s.spec.Protocols[0])
			}
			return is && (internal == 0 || internal == s.spec.Internal.Port())
		},
	}
}

// longestRange is the largest number of ports of Ports: each of them is a mapping that
// has to be renewed.
const maxRange = 256

// Ports forwards a range of internal ports, from first to last, as one unit: the external
// ports follow each other as the internal ones do, and the gateway forwards all of them or
// none. The first external port is that of [External], or else first. A range has 256
// ports at most, and other options name no port but the first: UDP(0), Ports(27000, 27010).
// As a selector it selects the mappings of that range.
func Ports(first, last uint16) Criterion {
	name := fmt.Sprintf("Ports(%d, %d)", first, last)
	return criterion{
		option: func(s *spec) error {
			switch {
			case first == 0 || last < first:
				return invalid("%s is no range of ports", name)
			case last-first >= maxRange:
				return invalid("%s has more than %d ports: enable several ranges", name, maxRange)
			}
			s.Count = last - first + 1
			s.setPort(portOption{option: name, port: first})
			return s.markGiven("Ports")
		},
		match: func(s *subject) bool {
			port := s.spec.Internal.Port()
			if s.foreign { // which has one port
				return first <= port && port <= last
			}
			return port == first && max(s.spec.Count, 1) == last-first+1
		},
	}
}

// External suggests an external port; the default is the internal port. The gateway may
// grant another, which is success, unless [Exact] is given. Port 0 fails with
// backends.ErrInvalid. As a selector it selects the mapping that was granted that port.
func External(port uint16) Criterion {
	return criterion{
		option: func(s *spec) error {
			if port == 0 {
				return invalid("external port 0")
			}
			s.External = port
			return s.markGiven("External")
		},
		match: func(s *subject) bool {
			return len(s.granted) > 0 && s.granted[0].External.Port() == port
		},
	}
}

// ExternalAddr suggests an external address, for a gateway that has several. PCP can ask
// for it (RFC 6887, section 11.1); the other protocols leave the choice to the gateway. The
// gateway may grant another, which is success, unless [Exact] is given.
func ExternalAddr(addr netip.Addr) Option {
	return optionFunc(func(s *spec) error {
		if !addr.IsValid() || addr.IsUnspecified() {
			return invalid("ExternalAddr without an address")
		}
		s.Address = addr.Unmap()
		return s.markGiven("ExternalAddr")
	})
}

// To forwards to another address than this host's, if the protocol and the gateway allow
// it. With port 0 the port is that of another option. As a selector it selects the mappings
// to that address, and to that port if it is not 0.
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

// From admits only connections from this peer, if the protocol can; with port 0, from any
// port of the address.
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

// Description is what the gateway shows in its table, if the protocol has one.
func Description(text string) Criterion {
	return criterion{
		option: func(s *spec) error { s.Description = text; return s.markGiven("Description") },
		match:  func(s *subject) bool { return s.spec.Description == text },
	}
}

// wide selectors select all.
type matchAll string

func (matchAll) selects(*subject) bool { return true }

// Foreign selects also what other programs, other hosts and the administrator
// have mapped, where the gateway lists that (UPnP, also where mappings go by
// another protocol). It needs another selector beside it, or Everything. Of an
// entry of the table, Both selects either protocol.
func Foreign() Selector { return matchAll("Foreign") }

// Everything selects all.
func Everything() Selector { return matchAll("Everything") }

// Exact makes Enable fail with backends.ErrConflict if the gateway grants another external
// port than that of [External], or another external address than that of [ExternalAddr].
func Exact() Option {
	return optionFunc(func(s *spec) error { s.Exact = true; return nil })
}

// SamePort makes the internal port follow the external one: whatever the
// gateway grants, both are the same number. Ask Mapping.Internal where to listen.
func SamePort() Option {
	return optionFunc(func(s *spec) error { s.SamePort = true; return nil })
}

// IPv6 opens a pinhole in the IPv6 firewall of the gateway, to a stable global
// address of this host: nothing is translated, so the external endpoint is this
// host's own. It takes a gateway that speaks PCP over IPv6 (RFC 6887) or has
// UPnP's WANIPv6FirewallControl.
func IPv6() Option {
	return optionFunc(func(s *spec) error { s.ipv6 = true; return nil })
}

// Lifetime is how long each grant is to last, in whole seconds, rounded up. The gateway may
// grant less. Zero is Config.Lifetime. [Forever] requests a mapping without an end, if the
// protocol can: UPnP, and PCP as far as the gateway allows. Such a mapping is deleted like
// any other, but stays if the program is killed. It is requested again every 20 minutes, in
// case the gateway lost it.
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

// shortestRenewEvery keeps a mistake from flooding the gateway.
const minRenewEvery = time.Second

// RenewEvery renews the mapping at this interval, if that is shorter than half of the
// lifetime that the gateway granted, which is the default (RFC 6886, section 3.3). An
// interval below a second fails with backends.ErrInvalid.
func RenewEvery(d time.Duration) Option {
	return optionFunc(func(s *spec) error {
		if d < minRenewEvery {
			return invalid("RenewEvery(%v) is shorter than %v", d, minRenewEvery)
		}
		s.RenewEvery = d
		return s.markGiven(optionRenewEvery)
	})
}

// Once leaves the mapping for one lifetime, and does not renew it.
func Once() Option {
	return optionFunc(func(s *spec) error { s.Once = true; return nil })
}

// OnChange calls f for each event of this mapping, after Config.OnEvent and as that does.
func OnChange(f func(Event)) Option {
	return optionFunc(func(s *spec) error {
		if f == nil {
			return invalid("OnChange without a function")
		}
		s.onChange = f
		return s.markGiven("OnChange")
	})
}

// Background makes Enable return at once, and go on trying until the mapping is
// disabled, also before there is a network. See Mapping.Wait.
func Background() Option {
	return optionFunc(func(s *spec) error { s.Background = true; return nil })
}

// NoDefault keeps Disable and Refresh without selectors from taking this mapping as the
// last one enabled: for a library that uses the Forwarder of its program. It holds for
// the mappings of Listen and ListenPacket anyway.
func NoDefault() Option {
	return optionFunc(func(s *spec) error { s.noDefault = true; return nil })
}

// The options that add has to know.
const (
	optionProtocol   = "of a protocol"
	optionRenewEvery = "RenewEvery"
)

// newSpec sums options up, over the Config's defaults.
func (f *Forwarder) newSpec(opts []Option) (spec, error) {
	s := spec{Spec: gateway.Spec{
		Protocols: []backends.Protocol{backends.TCP}, Lifetime: f.config.Lifetime, Description: f.config.Description,
		RequestTimeout: f.config.RequestTimeout, ProbeTimeout: f.config.DiscoveryTimeout,
	}}
	err := s.add(opts)
	return s, err
}

// add applies options and checks the whole.
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
		return invalid("IPv6 to the IPv4 address %v", s.Internal.Addr())
	case s.Once && s.Background:
		return invalid("Once and Background exclude each other")
	case s.Once && s.Lifetime == Forever:
		return invalid("Once and Lifetime(Forever) exclude each other: the mapping would stay for ever")
	case s.Once && slices.Contains(s.given, optionRenewEvery):
		return invalid("Once and RenewEvery exclude each other")
	case s.SamePort && s.External != 0 && s.Internal.Port() != 0 && s.External != s.Internal.Port():
		return invalid("SamePort, but external port %d and internal port %d", s.External, s.Internal.Port())
	case s.Exact && s.External == 0 && s.Internal.Port() == 0:
		return invalid("Exact needs a port")
	case s.Internal.Port() == 0 && s.Internal.Addr().IsValid():
		return invalid("To another address needs an internal port")
	}
	return nil
}

// twoPorts is the error of two options that name different internal ports. If one of them
// is To, the other was probably meant to name the external port.
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

// RandomPort returns a random port from 49152 to 65535.
func RandomPort() uint16 { return gateway.RandomPort() }

// OpenLocalPort returns a port of this host that is free for the protocol, TCP
// or UDP, just now: somebody else may take it before you listen. Another
// protocol fails with backends.ErrUnsupported.
func OpenLocalPort(p backends.Protocol) (uint16, error) {
	return openLocalPort([]backends.Protocol{p})
}

// openLocalPort returns a port that is free for all of the protocols.
func openLocalPort(ps []backends.Protocol) (uint16, error) {
	const tries = 16
	var err error
	for range tries {
		var port uint16
		if port, err = tryBind(ps[0], 0); err != nil {
			return 0, err
		}
		for _, p := range ps[1:] {
			if _, err = tryBind(p, port); err != nil {
				break
			}
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("forward: no local port is free for %v: %w", ps, err)
}

// bindable binds the port, or a free one where it is 0, and lets go of it.
func tryBind(p backends.Protocol, port uint16) (uint16, error) {
	switch p {
	case backends.TCP:
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = ln.Close() }()
		return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // what package net promises for TCP
	case backends.UDP:
		pc, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = pc.Close() }()
		return pc.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // what package net promises for UDP
	}
	return 0, fmt.Errorf("forward: %w: cannot tell which ports are free for protocol %v: name one", backends.ErrUnsupported, p)
}
