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

// wish is what map and unmap are asked for: their common flags, and then the
// arguments.
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

// register makes the wish flags of a command.
func (w *spec) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP(&flagValue[[]backends.Protocol]{target: &w.protocols, typeName: "NAME", parse: parseProtocols}, "protocol", "p",
		"tcp, udp, both, or another's name or number (default tcp)")
	f.BoolVarP(&w.udp, "udp", "u", false, "the same as -p udp")
	f.VarP(&flagValue[time.Duration]{target: &w.lifetime, typeName: "SECONDS", parse: parseLifetime}, "lifetime", "l",
		"how long, in seconds or as a duration such as 90m, or forever (default 2h)")
	f.BoolVar(&w.exact, "exact", false, "this external port or none")
	f.BoolVar(&w.samePort, "same-port", false, "the same number inside and outside, whichever the gateway grants")
	f.BoolVarP(&w.ipv6, "ipv6", "6", false, "let the port in through the gateway's IPv6 firewall, where the gateway can (PCP, UPnP)")
	f.Var(&flagValue[netip.Addr]{target: &w.to, typeName: "ADDR", parse: parseAddr}, "to",
		"forward to another host, where protocol and gateway can (PCP, UPnP)")
	f.Var(&flagValue[netip.AddrPort]{target: &w.from, typeName: "ADDR[:PORT]", parse: parseEndpoint}, "from",
		"admit only this peer, where protocol and gateway can (PCP, UPnP)")
	f.StringVar(&w.description, "description", "", "`TEXT` that the gateway's table is to show (default \"goforward\")")
	_ = cmd.RegisterFlagCompletionFunc("protocol", completeList([]string{"tcp", "udp", "both", "sctp", "dccp", "udplite"}))
	for _, name := range []string{"lifetime", "to", "from", "description"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// complete adds the arguments, and checks that all of it fits together.
func (w *spec) parseArgs(args []string) error {
	p, err := parsePorts(args)
	if err != nil {
		return err
	}
	w.external, w.internal = p.external, p.internal
	named := [][]backends.Protocol{w.protocols, p.protocols, nil}
	if w.udp {
		named[2] = []backends.Protocol{backends.UDP}
	}
	w.protocols = nil
	for _, ps := range named {
		switch {
		case ps == nil:
		case w.protocols == nil:
			w.protocols = ps
		case !slices.Equal(ps, w.protocols):
			return usagef("two protocols are named: for TCP and UDP at once, -p both")
		}
	}
	if w.protocols == nil {
		w.protocols = []backends.Protocol{backends.TCP}
	}
	switch {
	case w.internal != 0:
	case w.exact:
		return usagef("--exact needs a port")
	case w.to.IsValid():
		return usagef("--to needs a port: one that is free here may not be so there")
	}
	for flag, addr := range map[string]netip.Addr{"to": w.to, "from": w.from.Addr()} {
		if addr.IsUnspecified() || addr.IsMulticast() {
			return usagef("--%s %v, which is no host", flag, addr)
		}
	}
	if w.samePort && w.external != 0 && w.external != w.internal {
		return usagef("--same-port, but external port %d and internal port %d", w.external, w.internal)
	}
	return nil
}

// fits makes the wish one for IPv6 where an address of it is, and checks that
// all are of one family.
func (a *app) setFamily(w *spec) error {
	four, six := "", ""
	if w.ipv6 {
		six = "--ipv6"
	}
	igd, _ := igdHost(a.settings.igd) // none is the zero Addr
	for _, flag := range []struct {
		name string
		addr netip.Addr
	}{{"gateway", a.settings.gateway.Addr()}, {"igd-url", igd}, {"source", a.settings.source}, {"to", w.to}, {"from", w.from.Addr()}} {
		text := fmt.Sprintf("--%s %v", flag.name, flag.addr)
		switch {
		case flag.addr.Is4():
			four = cmp.Or(four, text)
		case flag.addr.Is6():
			six = cmp.Or(six, text)
		}
	}
	if four != "" && six != "" {
		return usagef("%s is IPv6, but %s is IPv4", six, four)
	}
	w.ipv6 = six != ""
	return nil
}

// options are the wish in the words of the facade.
func (w *spec) options() []forward.Option {
	var opts []forward.Option
	if len(w.protocols) > 1 {
		opts = append(opts, forward.Both(w.internal))
	} else {
		opts = append(opts, forward.Protocol(w.protocols[0], w.internal))
	}
	if w.external != 0 {
		opts = append(opts, forward.External(w.external))
	}
	if w.exact {
		opts = append(opts, forward.Exact())
	}
	if w.samePort {
		opts = append(opts, forward.SamePort())
	}
	opts = append(opts, w.gatewayOptions()...)
	if w.to.IsValid() {
		opts = append(opts, forward.To(netip.AddrPortFrom(w.to, 0)))
	}
	if w.from.IsValid() {
		opts = append(opts, forward.From(w.from))
	}
	if w.lifetime != 0 {
		opts = append(opts, forward.Lifetime(w.lifetime))
	}
	if w.description != "" {
		opts = append(opts, forward.Description(w.description))
	}
	return opts
}

// way are the options that say which gateway is meant.
func (w *spec) gatewayOptions() []forward.Option {
	if w.ipv6 {
		return []forward.Option{forward.IPv6()}
	}
	return nil
}
