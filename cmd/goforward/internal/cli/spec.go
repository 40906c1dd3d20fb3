package cli

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// spec is a mapping that map, unmap or run is to act on: the flags that these commands share,
// and the ports that an argument names.
type spec struct {
	protocols   []backends.Protocol
	udp         bool
	lifetime    time.Duration
	exact       bool
	samePort    bool
	ipv6        bool
	to          netip.Addr
	from        netip.AddrPort
	description string
	asOne       bool // map a range as one unit
	pair        bool // two plain numbers named the ports

	external, internal uint16 // the first ports; 0: none named
	count              uint16 // number of ports, at least 1
}

// register adds the flags to a command.
func (s *spec) register(cmd *cobra.Command) {
	s.registerProtocol(cmd)
	s.registerOptions(cmd)
}

// registerProtocol adds the flags that name a protocol.
func (s *spec) registerProtocol(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP(&flagValue[[]backends.Protocol]{target: &s.protocols, typeName: "NAME", parse: parseProtocols}, "protocol", "p",
		"tcp, udp, both, or another name or number (default tcp)")
	f.BoolVarP(&s.udp, "udp", "u", false, "the same as -p udp")
	_ = cmd.RegisterFlagCompletionFunc("protocol", completeList([]string{"tcp", "udp", "both", "sctp", "dccp", "udplite"}))
}

// registerOptions adds all other flags.
func (s *spec) registerOptions(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP(&flagValue[time.Duration]{target: &s.lifetime, typeName: "SECONDS", parse: parseLifetime}, "lifetime", "l",
		"how long to map: seconds, 90m, 2d, forever (default 2h)")
	f.BoolVar(&s.exact, "exact", false, "fail if the gateway does not grant this external port")
	f.BoolVar(&s.samePort, "same-port", false, "use the same port number inside and outside")
	f.BoolVar(&s.asOne, "as-one", false, "map a range of ports as one unit, or nothing")
	f.BoolVarP(&s.ipv6, "ipv6", "6", false, "open the port in the gateway's IPv6 firewall (PCP, UPnP)")
	f.Var(&flagValue[netip.Addr]{target: &s.to, typeName: "ADDR", parse: parseAddr}, "to",
		"forward to another host, if the gateway permits it (PCP, UPnP)")
	f.Var(&flagValue[netip.AddrPort]{target: &s.from, typeName: "ADDR[:PORT]", parse: parseEndpoint}, "from",
		"admit only this peer, if the gateway can (PCP, UPnP)")
	f.StringVar(&s.description, "description", "", "show this `TEXT` in the gateway's table (default \"goforward\")")
	for _, name := range []string{"lifetime", "to", "from", "description"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// parseArgs returns a spec for each mapping that the arguments name, with the flags of s. A
// range is one mapping for each port, or a single mapping with --as-one. Without arguments,
// there is one spec without a port.
func (s *spec) parseArgs(args []string) ([]*spec, error) {
	named, pair, err := parsePorts(args)
	if err != nil {
		return nil, err
	}
	if pair && s.lifetime == 0 {
		s.lifetime = pairLifetime
	}
	s.pair = pair
	return s.forPorts(named)
}

// forPorts returns a spec for each mapping of the ports.
func (s *spec) forPorts(named []ports) ([]*spec, error) {
	if len(named) == 0 {
		named = []ports{{count: 1}}
	}
	var specs []*spec
	for _, p := range named {
		one, err := s.withPorts(p)
		if err != nil {
			return nil, err
		}
		if s.asOne {
			if p.count > maxAsOne {
				return nil, usagef("--as-one: %d-%d has more than %d ports", p.internal, p.internal+p.count-1, maxAsOne)
			}
			specs = append(specs, one)
			continue
		}
		for i := range p.count {
			single := *one
			single.count, single.internal = 1, p.internal+i
			if p.external != 0 {
				single.external = p.external + i
			}
			specs = append(specs, &single)
		}
	}
	if s.asOne && !slices.ContainsFunc(specs, func(one *spec) bool { return one.count > 1 }) {
		return nil, usagef("--as-one needs a range of ports, as in 27015-27020")
	}
	return specs, checkOverlap(specs)
}

// pairLifetime is the lifetime if two plain numbers are given, as in py-natpmp.
const pairLifetime = time.Hour

// maxAsOne is the largest number of ports in a range that is mapped as one unit.
const maxAsOne = 256 // as in forward.Ports

// withPorts returns a copy of the spec with the ports of an argument. It checks that flags and
// argument fit together.
func (s *spec) withPorts(p ports) (*spec, error) {
	one := *s
	one.external, one.internal, one.count = p.external, p.internal, p.count
	named := [][]backends.Protocol{s.protocols, p.protocols, nil}
	if s.udp {
		named[2] = []backends.Protocol{backends.UDP}
	}
	one.protocols = nil
	for _, ps := range named {
		switch {
		case ps == nil:
		case one.protocols == nil:
			one.protocols = ps
		case !slices.Equal(ps, one.protocols):
			return nil, usagef("two protocols are named: to map TCP and UDP together, use -p both")
		}
	}
	if one.protocols == nil {
		one.protocols = []backends.Protocol{backends.TCP}
	}
	switch {
	case one.internal != 0:
	case one.exact:
		return nil, usagef("--exact needs a port")
	case one.to.IsValid():
		return nil, usagef("--to needs a port: a port that is free on this host may be in use on the other")
	}
	for flag, addr := range map[string]netip.Addr{"to": s.to, "from": s.from.Addr()} {
		if addr.IsUnspecified() || addr.IsMulticast() {
			return nil, usagef("--%s %v is not the address of a host", flag, addr)
		}
	}
	switch {
	case one.samePort && one.external != 0 && one.external != one.internal:
		return nil, usagef("--same-port needs equal ports, but the external port is %d and the internal port is %d", one.external, one.internal)
	case one.samePort && one.asOne && one.count > 1:
		return nil, usagef("--same-port and --as-one exclude each other")
	}
	return &one, nil
}

// checkOverlap returns an error if two specs have a protocol and an internal port, or an
// external port, in common.
func checkOverlap(specs []*spec) error {
	type end struct {
		protocol backends.Protocol
		port     uint16
	}
	internal, external := map[end]bool{}, map[end]bool{}
	isRepeated := func(seen map[end]bool, p backends.Protocol, port uint16) bool {
		e := end{p, port}
		repeated := seen[e]
		seen[e] = true
		return repeated
	}
	for _, s := range specs {
		for _, p := range s.protocols {
			for i := range s.count {
				switch {
				case s.internal != 0 && isRepeated(internal, p, s.internal+i):
					return usagef("%v port %d is named twice", p, s.internal+i)
				case s.external != 0 && isRepeated(external, p, s.external+i):
					return usagef("external %v port %d is named twice", p, s.external+i)
				}
			}
		}
	}
	return nil
}

// setFamily sets ipv6 if an address of the flags is an IPv6 address. It fails if the flags
// have addresses of different families.
func (a *app) setFamily(s *spec) error {
	a.spec = s
	ipv4, ipv6 := "", "" // a flag of that family
	if s.ipv6 {
		ipv6 = "--ipv6"
	}
	igd, _ := igdHost(a.settings.igd) // the zero Addr if there is no URL
	if igd.Is4() {
		igd = netip.Addr{} // such a device may open pinholes too
	}
	for _, flag := range []struct {
		name string
		addr netip.Addr
	}{{"gateway", a.settings.gateway.Addr()}, {"igd-url", igd}, {"source", a.settings.source}, {"to", s.to}, {"from", s.from.Addr()}} {
		text := fmt.Sprintf("--%s %v", flag.name, flag.addr)
		switch {
		case flag.addr.Is4():
			ipv4 = cmp.Or(ipv4, text)
		case flag.addr.Is6():
			ipv6 = cmp.Or(ipv6, text)
		}
	}
	if ipv4 != "" && ipv6 != "" {
		return usagef("%s needs IPv6, but %s needs IPv4: use one address family", ipv6, ipv4)
	}
	s.ipv6 = ipv6 != ""
	return nil
}

// options returns the spec as options of the forward package.
func (s *spec) options() []forward.Option {
	var opts []forward.Option
	if len(s.protocols) > 1 {
		opts = append(opts, forward.Both(s.internal))
	} else {
		opts = append(opts, forward.Protocol(s.protocols[0], s.internal))
	}
	if s.count > 1 {
		opts = append(opts, forward.Ports(s.internal, s.internal+s.count-1))
	}
	if s.external != 0 {
		opts = append(opts, forward.External(s.external))
	}
	if s.exact {
		opts = append(opts, forward.Exact())
	}
	if s.samePort {
		opts = append(opts, forward.SamePort())
	}
	opts = append(opts, s.gatewayOptions()...)
	if s.to.IsValid() {
		opts = append(opts, forward.To(netip.AddrPortFrom(s.to, 0)))
	}
	if s.from.IsValid() {
		opts = append(opts, forward.From(s.from))
	}
	if s.lifetime != 0 {
		opts = append(opts, forward.Lifetime(s.lifetime))
	}
	if s.description != "" {
		opts = append(opts, forward.Description(s.description))
	}
	return opts
}

// name returns the internal port or ports with the protocol, as in an argument.
func (s *spec) name() string {
	protocol := s.protocols[0].String()
	if len(s.protocols) > 1 {
		protocol = "both"
	}
	if s.internal == 0 {
		return "a free " + protocol + " port"
	}
	return rangeText(s.internal, s.count) + "/" + protocol
}

// requested returns the mappings that are not granted yet, as far as they are known.
func (s *spec) requested() []backends.Mapping {
	var ms []backends.Mapping
	for i := range s.count {
		for _, p := range s.protocols {
			m := backends.Mapping{Protocol: p, Internal: netip.AddrPortFrom(s.to, 0), Lifetime: backends.Forever}
			if s.internal != 0 {
				m.Internal = netip.AddrPortFrom(s.to, s.internal+i)
			}
			ms = append(ms, m)
		}
	}
	return ms
}

// gatewayOptions returns the options that select the gateway.
func (s *spec) gatewayOptions() []forward.Option {
	if s.ipv6 {
		return []forward.Option{forward.IPv6()}
	}
	return nil
}
