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

// spec is the mapping that map or unmap is to act on: the flags that these commands share, and
// their arguments.
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

	external, internal uint16
}

// register adds the flags to a command.
func (s *spec) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP(&flagValue[[]backends.Protocol]{target: &s.protocols, typeName: "NAME", parse: parseProtocols}, "protocol", "p",
		"tcp, udp, both, or the name or number of another protocol (default tcp)")
	f.BoolVarP(&s.udp, "udp", "u", false, "the same as -p udp")
	f.VarP(&flagValue[time.Duration]{target: &s.lifetime, typeName: "SECONDS", parse: parseLifetime}, "lifetime", "l",
		"how long to map: seconds, a duration such as 90m, or forever (default 2h)")
	f.BoolVar(&s.exact, "exact", false, "fail if the gateway does not grant this external port")
	f.BoolVar(&s.samePort, "same-port", false, "use the same port number inside and outside, whichever the gateway grants")
	f.BoolVarP(&s.ipv6, "ipv6", "6", false, "open the port in the gateway's IPv6 firewall, if the gateway can (PCP, UPnP)")
	f.Var(&flagValue[netip.Addr]{target: &s.to, typeName: "ADDR", parse: parseAddr}, "to",
		"forward to another host, if the protocol and the gateway can (PCP, UPnP)")
	f.Var(&flagValue[netip.AddrPort]{target: &s.from, typeName: "ADDR[:PORT]", parse: parseEndpoint}, "from",
		"admit only this peer, if the protocol and the gateway can (PCP, UPnP)")
	f.StringVar(&s.description, "description", "", "show this `TEXT` in the gateway's table (default \"goforward\")")
	_ = cmd.RegisterFlagCompletionFunc("protocol", completeList([]string{"tcp", "udp", "both", "sctp", "dccp", "udplite"}))
	for _, name := range []string{"lifetime", "to", "from", "description"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// parseArgs adds the arguments, and checks that flags and arguments fit together.
func (s *spec) parseArgs(args []string) error {
	p, err := parsePorts(args)
	if err != nil {
		return err
	}
	s.external, s.internal = p.external, p.internal
	named := [][]backends.Protocol{s.protocols, p.protocols, nil}
	if s.udp {
		named[2] = []backends.Protocol{backends.UDP}
	}
	s.protocols = nil
	for _, ps := range named {
		switch {
		case ps == nil:
		case s.protocols == nil:
			s.protocols = ps
		case !slices.Equal(ps, s.protocols):
			return usagef("two protocols are named: to map TCP and UDP together, use -p both")
		}
	}
	if s.protocols == nil {
		s.protocols = []backends.Protocol{backends.TCP}
	}
	switch {
	case s.internal != 0:
	case s.exact:
		return usagef("--exact needs a port")
	case s.to.IsValid():
		return usagef("--to needs a port: a port that is free on this host may be in use on the other")
	}
	for flag, addr := range map[string]netip.Addr{"to": s.to, "from": s.from.Addr()} {
		if addr.IsUnspecified() || addr.IsMulticast() {
			return usagef("--%s %v is not the address of a host", flag, addr)
		}
	}
	if s.samePort && s.external != 0 && s.external != s.internal {
		return usagef("--same-port needs equal ports, but the external port is %d and the internal port is %d", s.external, s.internal)
	}
	return nil
}

// setFamily sets ipv6 if an address of the flags is an IPv6 address. It fails if the flags
// have addresses of different families.
func (a *app) setFamily(s *spec) error {
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

// gatewayOptions returns the options that select the gateway.
func (s *spec) gatewayOptions() []forward.Option {
	if s.ipv6 {
		return []forward.Option{forward.IPv6()}
	}
	return nil
}
