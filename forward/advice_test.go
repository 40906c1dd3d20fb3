package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/gateway"
)

// TestErrorKinds checks that every kind of error has advice, and that the most severe
// kind is the Kind of the whole error.
func TestErrorKinds(t *testing.T) {
	config, _ := (*Config)(nil).check()
	for i, kind := range kinds {
		for _, lesser := range kinds[i:] {
			var e *Error
			err := newError(situation{attempts: []error{lesser, kind}, config: &config, replied: true})
			if !errors.As(err, &e) || !errors.Is(e.Kind, kind) || !errors.Is(err, lesser) || errors.Is(err, ErrNoGateway) {
				t.Errorf("%v and %v: %v", lesser, kind, err)
			}
			if e.Advice == "" || !strings.HasSuffix(err.Error(), "\n  → "+e.Advice) {
				t.Errorf("%v does not end in the advice %q", err, e.Advice)
			}
		}
	}
	if err := newError(situation{attempts: []error{backends.ErrNoReply}, config: &config}); !errors.Is(err, ErrNoGateway) {
		t.Errorf("no reply, and Config names no gateway: %v", err)
	}
	if err := newError(situation{config: &config}); err != nil {
		t.Errorf("no attempts: %v", err)
	}
	if text := (&Error{Kind: backends.ErrNoReply}).Error(); text != "no reply from the gateway:" {
		t.Errorf("an error without advice: %q", text)
	}
}

// TestAdvice checks the advice for each situation.
func TestAdvice(t *testing.T) {
	named := Config{Gateway: netip.MustParseAddrPort("192.0.2.1:5351")}
	only := func(names ...string) Config { return Config{Protocols: names} }
	ready := Config{Backends: []backends.Backend{&struct{ backends.Backend }{}}}
	spec := func(change func(*gateway.Spec)) *gateway.Spec {
		s := &gateway.Spec{Protocols: []backends.Protocol{backends.TCP}, Internal: netip.MustParseAddrPort("0.0.0.0:8080")}
		if change != nil {
			change(s)
		}
		return s
	}
	refused := fmt.Errorf("%w: %w", backends.ErrNoReply, errno.ECONNREFUSED)
	to := func(addr string) *gateway.Spec {
		return spec(func(s *gateway.Spec) { s.Internal = netip.AddrPortFrom(netip.MustParseAddr(addr), 8080) })
	}
	exact := func(external, internal uint16) *gateway.Spec {
		return spec(func(s *gateway.Spec) {
			s.External, s.Exact, s.Internal = external, true, netip.AddrPortFrom(netip.Addr{}, internal)
		})
	}
	from := func(peer string) *gateway.Spec {
		return spec(func(s *gateway.Spec) { s.Remote = netip.MustParseAddrPort(peer) })
	}
	protocols := func(ps ...backends.Protocol) *gateway.Spec {
		return spec(func(s *gateway.Spec) { s.Protocols = ps })
	}
	forever := spec(func(s *gateway.Spec) { s.Lifetime = backends.Forever })
	externalAddr := spec(func(s *gateway.Spec) {
		s.External, s.Exact, s.Address = 80, true, netip.MustParseAddr("45.45.45.1")
	})
	gateway6 := netip.MustParseAddr("fe80::1")
	const thisDevice = "allow port forwarding for this device in the gateway's settings"

	for name, tt := range map[string]struct {
		config  Config
		attempt error
		other   error // of another backend
		spec    *gateway.Spec
		gateway netip.Addr
		want    string
	}{
		"conflict, exact":         {attempt: backends.ErrConflict, spec: exact(80, 8080), want: "request another external port, or omit the option Exact: another port is then used"},
		"conflict, two protocols": {attempt: backends.ErrConflict, spec: protocols(backends.TCP, backends.UDP), want: "request another external port, or a mapping of its own for each protocol and port"},
		"conflict, any port":      {attempt: backends.ErrConflict, spec: spec(nil), want: "request another external port: all that were tried are taken"},
		"conflict in the program": {attempt: &gateway.ConflictError{}, spec: exact(80, 80), want: "close the other mapping of this program first, or give both the same options"},

		"refused":               {attempt: backends.ErrNotAuthorized, spec: spec(nil), want: thisDevice},
		"address refused":       {attempt: backends.ErrNotAuthorized, want: thisDevice},
		"high port refused":     {attempt: backends.ErrNotAuthorized, spec: exact(9000, 8080), want: thisDevice},
		"own address refused":   {attempt: backends.ErrNotAuthorized, spec: to("127.0.0.1"), want: thisDevice},
		"other host refused":    {attempt: backends.ErrNotAuthorized, spec: to("192.0.2.9"), want: "request the mapping on that host itself, or allow mappings for other hosts in the gateway's settings"},
		"peer refused":          {attempt: backends.ErrNotAuthorized, spec: from("198.51.100.7:0"), want: "omit the option From, and admit only this peer in this host's firewall; or " + thisDevice},
		"low port refused":      {attempt: backends.ErrNotAuthorized, spec: exact(80, 8080), want: "request an external port from 1024 on, because many gateways refuse lower ones; or allow this port for this device in the gateway's settings"},
		"low internal port":     {attempt: backends.ErrNotAuthorized, spec: exact(8080, 80), want: thisDevice + ", or use an internal port from 1024 on: some gateways refuse lower ones"},
		"same low port refused": {attempt: backends.ErrNotAuthorized, spec: exact(0, 80), want: "request an external port from 1024 on, because many gateways refuse lower ones; or allow this port for this device in the gateway's settings"},
		"pinhole refused":       {attempt: backends.ErrNotAuthorized, spec: spec(nil), gateway: gateway6, want: "allow incoming IPv6 connections (pinholes) for this device in the gateway's settings"},

		"private address": {attempt: backends.ErrPrivateWAN, spec: spec(nil), want: "another NAT is between the gateway and the internet: switch that router to bridge mode, forward the port on it too, or ask the provider for a public address"},
		"shared address": {
			attempt: fmt.Errorf("%w: %w", &pcp.ResultError{Code: pcp.NoResources, External: netip.MustParseAddrPort("100.64.0.1:0")}, backends.ErrPrivateWAN), spec: spec(nil),
			want: "the provider's NAT is between the gateway and the internet: ask the provider for a public address, or use the option IPv6",
		},
		"NAT before it": {attempt: &pcp.ResultError{Code: pcp.AddressMismatch}, spec: spec(nil), want: "another NAT is between this host and the gateway: request the mapping from a host of the gateway's own network, or from the router that is next to this host"},
		"full":          {attempt: backends.ErrNoResources, spec: spec(nil), want: "remove unused mappings from the gateway, or restart it"},
		"quota":         {attempt: &pcp.ResultError{Code: pcp.UserExceededQuota}, spec: spec(nil), want: "delete other mappings of this host: the gateway limits their number"},
		"no connection": {attempt: backends.ErrNetworkFailure, spec: spec(nil), want: "check the gateway's internet connection; if it works, another NAT is between the gateway and the internet"},

		"malformed":               {attempt: backends.ErrMalformed, want: "update the gateway's firmware, or switch on another protocol in its settings"},
		"malformed, one protocol": {config: only("upnp"), attempt: backends.ErrMalformed, want: "omit Config.Protocols: another protocol of the gateway may work"},

		"silent":                      {attempt: backends.ErrNoReply, want: "switch on NAT-PMP, PCP or UPnP in the gateway's settings; behind a VPN or in a container, name the gateway (Config.Gateway)"},
		"silent, named":               {config: named, attempt: backends.ErrNoReply, want: "check that Config.Gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
		"silent, one protocol":        {config: only("pcp"), attempt: backends.ErrNoReply, want: "switch on the protocol in the gateway's settings, or omit Config.Protocols to try the others too"},
		"silent, short":               {config: Config{DiscoveryTimeout: time.Millisecond}, attempt: backends.ErrNoReply, want: "increase Config.DiscoveryTimeout: a gateway may need a second to reply"},
		"silent, URL":                 {config: Config{UPnPURL: "http://192.0.2.1/"}, attempt: backends.ErrNoReply, want: "check Config.UPnPURL: the device may use another port after a restart; without the URL, it is searched for"},
		"silent, IPv6":                {attempt: backends.ErrNoReply, gateway: gateway6, want: "switch on PCP, or UPnP with IPv6 pinholes, in the gateway's settings"},
		"silent, ready-made":          {config: ready, attempt: backends.ErrNoReply, spec: spec(nil), want: "check the gateway of Config.Backends: its address, and whether its protocol is on"},
		"silent after a reply":        {config: named, attempt: backends.ErrNoReply, spec: spec(nil), want: "try again; if the gateway is slow, increase Config.RequestTimeout"},
		"silent, but another replied": {attempt: backends.ErrNoReply, other: backends.ErrUnsupported, spec: forever, want: "omit the option Lifetime(Forever), or switch on PCP or UPnP in the gateway's settings"},
		"silent, and another replied": {attempt: backends.ErrNoReply, other: backends.ErrUnsupported, spec: spec(nil), want: "try again; if the gateway is slow, increase Config.RequestTimeout"},
		"closed port":                 {attempt: refused, want: "the gateway's port is closed: switch on NAT-PMP, PCP or UPnP in its settings; in a container, name the router (Config.Gateway)"},
		"closed port, named":          {config: named, attempt: refused, want: "its port is closed: check that Config.Gateway is the router; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
		"closed port, one protocol":   {config: only("natpmp"), attempt: refused, want: "the gateway's port is closed: switch on the protocol in its settings, or omit Config.Protocols to try the others too"},
		"closed port, short, timeout": {config: Config{DiscoveryTimeout: time.Millisecond}, attempt: refused, want: "the gateway's port is closed: switch on NAT-PMP, PCP or UPnP in its settings; in a container, name the router (Config.Gateway)"},

		"unsupported":                {attempt: backends.ErrUnsupported, spec: spec(nil), want: "switch on another protocol in the gateway's settings"},
		"unsupported, one protocol":  {config: only("upnp"), attempt: backends.ErrUnsupported, want: "omit Config.Protocols: another protocol of the gateway may support the request"},
		"equal ports only":           {attempt: &gateway.UnequalPortsError{Port: 49152}, spec: spec(nil), want: "use the option SamePort: the gateway grants only equal external and internal ports, as those of VPN providers do"},
		"no other host":              {attempt: backends.ErrUnsupported, spec: to("192.0.2.9"), want: "request the mapping on that host itself, or switch on PCP or UPnP in the gateway's settings"},
		"no other host, natpmp only": {config: only("natpmp"), attempt: backends.ErrUnsupported, spec: to("192.0.2.9"), want: "request the mapping on that host itself, or add pcp or upnp to Config.Protocols"},
		"PCP without peers":          {attempt: &pcp.ResultError{Code: pcp.UnsupportedOption}, spec: from("198.51.100.7:0"), want: "omit the option From, or switch on UPnP in the gateway's settings"},
		"no protocol with peers":     {attempt: &pcp.ResultError{Code: pcp.UnsupportedOption}, other: &upnp.Fault{Code: upnp.RemoteHostOnlySupportsWildcard}, spec: from("198.51.100.7:0"), want: "omit the option From"},
		"no peer":                    {attempt: backends.ErrUnsupported, spec: from("198.51.100.7:0"), want: "omit the option From, or switch on PCP or UPnP in the gateway's settings"},
		"no peer, natpmp only":       {config: only("natpmp"), attempt: backends.ErrUnsupported, spec: from("198.51.100.7:0"), want: "omit the option From, or add pcp or upnp to Config.Protocols"},
		"no port of a peer":          {attempt: backends.ErrUnsupported, spec: from("198.51.100.7:53"), want: "omit the option From, or its port, or switch on PCP in the gateway's settings"},
		"SCTP":                       {attempt: backends.ErrUnsupported, spec: protocols(backends.SCTP), want: "use TCP or UDP, or switch on PCP in the gateway's settings"},
		"SCTP, upnp only":            {config: only("upnp"), attempt: backends.ErrUnsupported, spec: protocols(backends.SCTP), want: "use TCP or UDP, or add pcp to Config.Protocols"},
		"permanent":                  {attempt: backends.ErrUnsupported, spec: forever, want: "omit the option Lifetime(Forever), or switch on PCP or UPnP in the gateway's settings"},
		"permanent, ready-made":      {config: ready, attempt: backends.ErrUnsupported, spec: forever, want: "omit the option Lifetime(Forever)"},
		"external address":           {attempt: backends.ErrUnsupported, spec: externalAddr, want: "omit the option ExternalAddr, or switch on PCP in the gateway's settings"},
		"IPv6":                       {attempt: backends.ErrUnsupported, spec: spec(nil), gateway: gateway6, want: "omit the option IPv6, or switch on PCP or UPnP in the gateway's settings"},
	} {
		config, err := tt.config.check()
		if err != nil {
			t.Fatal(err)
		}
		attempts := []error{tt.attempt}
		if tt.other != nil {
			attempts = append(attempts, tt.other)
		}
		err = newError(situation{attempts: attempts, config: &config, gateway: tt.gateway, spec: tt.spec, replied: tt.spec != nil})
		var e *Error
		if !errors.As(err, &e) || e.Advice != tt.want {
			t.Errorf("%s: %v\nwant %s", name, err, tt.want)
		}
	}
}

// TestRouteAdvice checks the advice if there is no route.
func TestRouteAdvice(t *testing.T) {
	for name, tt := range map[string]struct {
		config Config
		family family
		route  discover.Gateway
		err    error
		want   string
	}{
		"offline":              {err: discover.ErrNoRoute, want: "connect this host to the internet, or name the gateway (Config.Gateway)"},
		"no IPv6":              {family: ipv6, err: discover.ErrNoRoute, want: "this network has no IPv6: omit the option IPv6, or connect this host to a network with IPv6"},
		"routes are not known": {err: errors.ErrUnsupported, want: "name the gateway (Config.Gateway)"},
		"a tunnel":             {route: discover.Gateway{Interface: "tun0"}, want: "name the gateway (Config.Gateway): the VPN provider publishes its address"},
	} {
		f, err := New(&tt.config)
		if err != nil {
			t.Fatal(err)
		}
		f.defaultRoutes[tt.family] = func() (discover.Gateway, error) { return tt.route, tt.err }
		if _, err := f.findPath(tt.family); !errors.Is(err, ErrNoGateway) || !strings.HasSuffix(err.Error(), "\n  → "+tt.want) {
			t.Errorf("%s: %v\nwant %s", name, err, tt.want)
		}
		_ = f.Close()
	}
	c := &Config{Interface: "eth1"}
	if got, want := routeAdvice(c, ipv4, discover.ErrNoRoute), "name the gateway (Config.Gateway), or another interface (Config.Interface)"; got != want {
		t.Errorf("no route through an interface: %s", got)
	}
}
