package forward

import (
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// Option says what Enable is to enable.
type Option interface {
	apply(w *spec) error
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
	protocolGiven bool
	ipv6          bool
	ipv4          bool // whatever the family of a gateway that was named
	aside         bool // not what Disable and Refresh take without selectors
}

// optionFunc is an Option that is no Selector.
type optionFunc func(w *spec) error

func (f optionFunc) apply(w *spec) error { return f(w) }

// criterion is a Criterion made of two functions.
type criterion struct {
	option optionFunc
	match  func(s *subject) bool
}

func (c criterion) apply(w *spec) error     { return c.option(w) }
func (c criterion) selects(s *subject) bool { return c.match(s) }

// TCP is TCP to an internal port of this host; 0 is a free one, or, selecting,
// any.
func TCP(internal uint16) Criterion { return Protocol(backends.TCP, internal) }

// UDP is UDP to an internal port of this host; 0 is a free one, or, selecting,
// any.
func UDP(internal uint16) Criterion { return Protocol(backends.UDP, internal) }

// Protocol is any protocol to an internal port of this host; 0 is a free one,
// or, selecting, any.
func Protocol(p backends.Protocol, internal uint16) Criterion {
	return protocols(internal, p)
}

// Both is TCP and UDP to an internal port of this host, with one external port
// for both, or neither; 0 is a free one, or, selecting, any.
func Both(internal uint16) Criterion { return protocols(internal, backends.TCP, backends.UDP) }

func protocols(internal uint16, ps ...backends.Protocol) Criterion {
	return criterion{
		option: func(w *spec) error {
			if w.protocolGiven {
				return invalid("two options name a protocol: use Both, or enable twice")
			}
			if ps[0] == 0 {
				return invalid("protocol 0")
			}
			w.protocolGiven, w.Protocols = true, ps
			if internal != 0 {
				w.Internal = netip.AddrPortFrom(w.Internal.Addr(), internal)
			}
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

// External suggests an external port, the internal port's number being the
// default. The gateway may grant another, which is success, unless Exact. Port
// 0 fails with backends.ErrInvalid. Selecting, it is the port that was granted.
func External(port uint16) Criterion {
	return criterion{
		option: func(w *spec) error {
			if port == 0 {
				return invalid("external port 0")
			}
			w.External = port
			return nil
		},
		match: func(s *subject) bool {
			return len(s.granted) > 0 && s.granted[0].External.Port() == port
		},
	}
}

// To forwards to another address than this host's, where the protocol and the
// gateway allow it. With port 0 it is the address that counts.
func To(internal netip.AddrPort) Criterion {
	return criterion{
		option: func(w *spec) error {
			if !internal.Addr().IsValid() {
				return invalid("To without an address")
			}
			port := w.Internal.Port()
			if internal.Port() != 0 {
				port = internal.Port()
			}
			w.Internal = netip.AddrPortFrom(internal.Addr().Unmap(), port)
			w.ipv6 = w.ipv6 || familyOf(internal.Addr()) == ipv6
			return nil
		},
		match: func(s *subject) bool {
			return internal.Addr().Unmap() == s.spec.Internal.Addr() &&
				(internal.Port() == 0 || internal.Port() == s.spec.Internal.Port())
		},
	}
}

// From admits only connections from this peer, where the protocol can; with
// port 0, from any port of the address.
func From(peer netip.AddrPort) Criterion {
	return criterion{
		option: func(w *spec) error {
			if !peer.Addr().IsValid() {
				return invalid("From without an address")
			}
			w.Remote = peer
			return nil
		},
		match: func(s *subject) bool { return s.spec.Remote == peer },
	}
}

// Description is what the gateway shows in its table, where the protocol
// carries one.
func Description(s string) Criterion {
	return criterion{
		option: func(w *spec) error { w.Description = s; return nil },
		match:  func(of *subject) bool { return of.spec.Description == s },
	}
}

// wide selectors select all.
type wide string

func (wide) selects(*subject) bool { return true }

// Foreign selects also what other programs, other hosts and the administrator
// have mapped, where the gateway lists that (UPnP, also where mappings go by
// another protocol). It needs another selector beside it, or Everything. Of an
// entry of the table, Both selects either protocol.
func Foreign() Selector { return wide("Foreign") }

// Everything selects all.
func Everything() Selector { return wide("Everything") }

// Exact fails with backends.ErrConflict rather than accept another external
// port than that of External.
func Exact() Option {
	return optionFunc(func(w *spec) error { w.Exact = true; return nil })
}

// SamePort makes the internal port follow the external one: whatever the
// gateway grants, both are the same number. Ask Mapping.Internal where to listen.
func SamePort() Option {
	return optionFunc(func(w *spec) error { w.SamePort = true; return nil })
}

// IPv6 opens a pinhole in the IPv6 firewall of the gateway, to a stable global
// address of this host: nothing is translated, so the external endpoint is this
// host's own. It takes a gateway that speaks PCP over IPv6 (RFC 6887) or has
// UPnP's WANIPv6FirewallControl.
func IPv6() Option {
	return optionFunc(func(w *spec) error { w.ipv6 = true; return nil })
}

// Lifetime is how long each grant is to last, in whole seconds, rounded up. The
// gateway may grant less. Zero is the Config's.
func Lifetime(d time.Duration) Option {
	return optionFunc(func(w *spec) error {
		if d < 0 {
			return invalid("negative lifetime %v", d)
		}
		if d > 0 {
			w.Lifetime = d
		}
		return nil
	})
}

// Permanent asks for a mapping without an end, where the protocol can: UPnP, and
// PCP as far as the gateway goes. It is taken away like any other, but one that
// a program leaves behind stays. Every twenty minutes it is made sure that the
// gateway still has it.
func Permanent() Option { return Lifetime(backends.Forever) }

// Once leaves the mapping for one lifetime, and does not renew it.
func Once() Option {
	return optionFunc(func(w *spec) error { w.Once = true; return nil })
}

// Background makes Enable return at once, and go on trying until the mapping is
// disabled, also before there is a network. See Mapping.Wait.
func Background() Option {
	return optionFunc(func(w *spec) error { w.Background = true; return nil })
}

// Aside keeps the mapping from Disable and Refresh without selectors, which take
// the last one enabled: for a library that maps by its program's Forwarder. Those
// of Listen are aside.
func Aside() Option {
	return optionFunc(func(w *spec) error { w.aside = true; return nil })
}

// newSpec sums options up, over the Config's defaults.
func (f *Forwarder) newSpec(opts []Option) (spec, error) {
	w := spec{Spec: gateway.Spec{
		Protocols: []backends.Protocol{backends.TCP}, Lifetime: f.config.Lifetime, Description: f.config.Description,
		Timeout: f.config.Timeout, Wait: f.config.Wait,
	}}
	err := w.add(opts)
	return w, err
}

// add applies options and checks the whole.
func (w *spec) add(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return invalid("nil option")
		}
		if err := o.apply(w); err != nil {
			return err
		}
	}
	switch {
	case w.ipv6 && w.Internal.Addr().Is4():
		return invalid("IPv6 to the IPv4 address %v", w.Internal.Addr())
	case w.Once && w.Background:
		return invalid("Once and Background exclude each other")
	case w.SamePort && w.External != 0 && w.Internal.Port() != 0 && w.External != w.Internal.Port():
		return invalid("SamePort, but external port %d and internal port %d", w.External, w.Internal.Port())
	case w.Exact && w.External == 0 && w.Internal.Port() == 0:
		return invalid("Exact needs a port")
	case w.Internal.Port() == 0 && w.Internal.Addr().IsValid():
		return invalid("To another address needs an internal port")
	}
	return nil
}
