package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	gethnat "github.com/ethereum/go-ethereum/p2p/nat"
	"github.com/huin/goupnp/dcps/internetgateway2"
	natpmp "github.com/jackpal/go-nat-pmp"
	libp2pnat "github.com/libp2p/go-libp2p/p2p/net/nat"
	"tailscale.com/net/netmon"
	"tailscale.com/net/portmapper"
	"tailscale.com/types/logger"
	"tailscale.com/util/eventbus"

	"github.com/natforward/goforward/forward"
)

// candidate is a library or program that is measured, with the calls that it makes.
type candidate struct {
	name    string
	about   string // the measured calls, for the report
	module  string // the module or Debian package, for the version
	process bool   // a whole process is measured, and not calls in a process
	raw     bool   // raw sockets, no library: the lower bound
	prepare func(target) (attempt, error)
}

var candidates = []candidate{
	{name: goforwardName, about: "forward.New, Enable", module: rootModule, prepare: goforward},
	{name: goforwardGatewayName, about: "forward.New with Config.Gateway, Enable", module: rootModule, prepare: goforwardWithGateway},
	{name: goNATPMPName, about: "GetExternalAddress, AddPortMapping, with a configured gateway", module: "github.com/jackpal/go-nat-pmp", prepare: goNATPMP},
	{name: gethName, about: "nat.Any, AddMapping, ExternalIP", module: "github.com/ethereum/go-ethereum", prepare: goEthereum},
	{name: goupnpName, about: "clients of WANIPConnection:1 and :2 at once, GetExternalIPAddress, AddPortMapping", module: "github.com/huin/goupnp", prepare: goUPnP},
	{name: libp2pName, about: "nat.DiscoverNAT, AddMapping, GetMapping", module: "github.com/libp2p/go-libp2p", prepare: libp2p},
	{name: tailscaleName, about: "portmapper.NewClient, Probe, GetCachedMappingOrStartCreatingOne until it changes", module: "tailscale.com", prepare: tailscale},
	{name: rawNATPMPName, about: "external address, map, on one socket, with a configured gateway", raw: true, prepare: rawNATPMP},
	{name: rawPCPName, about: "one MAP, with a configured gateway", raw: true, prepare: rawPCP},
	{name: rawUPnPName, about: "M-SEARCH to the gateway and to multicast, description, GetExternalIPAddress, AddPortMapping", raw: true, prepare: rawUPnP},
	{name: rawUPnPAllName, about: "the same, plus the additional requests of goforward: GetStatusInfo, GetSpecificPortMappingEntry before and after", raw: true, prepare: rawUPnPAll},
	{name: goforwardCloseName, about: "Forwarder.Close with 50 mappings", module: rootModule, prepare: goforwardClose},
	{name: rawCloseNATPMPName, about: "one request for each of 50 mappings, on one socket", raw: true, prepare: rawClose("natpmp", connectNATPMP)},
	{name: rawClosePCPName, about: "one request for each of 50 mappings, on one socket", raw: true, prepare: rawClose("pcp", connectPCP)},
	{name: rawCloseUPnPName, about: "DeletePortMapping for each of 50 mappings", raw: true, prepare: rawClose("upnp", connectUPnP)},
	{name: goforwardMapGatewayName, about: "goforward map -g GATEWAY P:P/udp", module: rootModule, process: true, prepare: goforwardMapGateway},
	{name: goforwardMapName, about: "goforward map P:P/udp", module: rootModule, process: true, prepare: goforwardMap},
	{name: goforwardMapRememberedName, about: "goforward map P:P/udp, after another map with the same state directory", module: rootModule, process: true, prepare: goforwardMapRemembered},
	{name: natpmpcName, about: "natpmpc -g GATEWAY -a P P udp", module: "natpmpc", process: true, prepare: natpmpc},
	{name: upnpcName, about: "upnpc -a @ P P udp", module: "miniupnpc", process: true, prepare: upnpc},
}

func candidateNamed(name string) (candidate, bool) {
	for _, p := range candidates {
		if p.name == name {
			return p, true
		}
	}
	return candidate{}, false
}

func goforward(to target) (attempt, error) {
	return newEnable(to, &forward.Config{Lifetime: lifetime})
}

func goforwardWithGateway(to target) (attempt, error) {
	return newEnable(to, &forward.Config{Lifetime: lifetime, Gateway: netip.AddrPortFrom(to.Gateway, 0), Test: forward.TestNetwork{SSDP: to.SSDP}})
}

func newEnable(to target, config *forward.Config) (attempt, error) {
	var f *forward.Forwarder
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if f, err = forward.New(config); err != nil {
				return outcome{}, err
			}
			m, err := f.Enable(ctx, forward.UDP(to.Port))
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: m.External().AddrPort, Protocol: m.Backend()}, nil
		},
		clean: func() { _ = f.Close() },
	}, nil
}

func goNATPMP(to target) (attempt, error) {
	var c *natpmp.Client
	return attempt{
		run: func(context.Context) (outcome, error) {
			c = natpmp.NewClient(to.Gateway.AsSlice())
			addr, err := c.GetExternalAddress()
			if err != nil {
				return outcome{}, err
			}
			m, err := c.AddPortMapping("udp", int(to.Port), int(to.Port), int(lifetime.Seconds()))
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: netip.AddrPortFrom(netip.AddrFrom4(addr.ExternalIPAddress), m.MappedExternalPort)}, nil
		},
		clean: func() { _, _ = c.AddPortMapping("udp", int(to.Port), 0, 0) },
	}, nil
}

// goEthereum maps a port and requests the external address, as a node of go-ethereum does.
func goEthereum(to target) (attempt, error) {
	var gw gethnat.Interface
	return attempt{
		run: func(context.Context) (outcome, error) {
			gw = gethnat.Any()
			port, err := gw.AddMapping("UDP", int(to.Port), int(to.Port), "bench", lifetime)
			if err != nil {
				return outcome{}, err
			}
			ip, err := gw.ExternalIP()
			if err != nil {
				return outcome{}, err
			}
			addr, _ := netip.AddrFromSlice(ip)
			return outcome{External: netip.AddrPortFrom(addr.Unmap(), port), Protocol: gw.String()}, nil
		},
		clean: func() { _ = gw.DeleteMapping("UDP", int(to.Port), int(to.Port)) },
	}, nil
}

// connection has the methods that goupnp's clients for WANIPConnection:1 and :2 share.
type connection interface {
	GetExternalIPAddressCtx(context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
	LocalAddr() net.IP
}

// goUPnP follows the guide of goupnp: it searches for both versions of the service at once,
// and uses the first service of the newest version that it finds.
func goUPnP(to target) (attempt, error) {
	var c connection
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if c, err = pickConnection(ctx); err != nil {
				return outcome{}, err
			}
			text, err := c.GetExternalIPAddressCtx(ctx)
			if err != nil {
				return outcome{}, err
			}
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return outcome{}, err
			}
			err = c.AddPortMappingCtx(ctx, "", to.Port, "UDP", to.Port, c.LocalAddr().String(), true, "bench", uint32(lifetime.Seconds()))
			return outcome{External: netip.AddrPortFrom(addr, to.Port)}, err
		},
		clean: func() { _ = c.DeletePortMappingCtx(context.Background(), "", to.Port, "UDP") },
	}, nil
}

func pickConnection(ctx context.Context) (connection, error) {
	var (
		wg   sync.WaitGroup
		ip1  []*internetgateway2.WANIPConnection1
		ip2  []*internetgateway2.WANIPConnection2
		errs [2]error
	)
	wg.Go(func() { ip1, _, errs[0] = internetgateway2.NewWANIPConnection1ClientsCtx(ctx) })
	wg.Go(func() { ip2, _, errs[1] = internetgateway2.NewWANIPConnection2ClientsCtx(ctx) })
	wg.Wait()
	switch {
	case len(ip2) > 0:
		return ip2[0], nil
	case len(ip1) > 0:
		return ip1[0], nil
	}
	return nil, fmt.Errorf("no services found: %w", errors.Join(errs[:]...))
}

// lifetime is the lifetime that every candidate requests.
const lifetime = time.Hour

func libp2p(to target) (attempt, error) {
	var n *libp2pnat.NAT
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if n, err = libp2pnat.DiscoverNAT(ctx); err != nil {
				return outcome{}, err
			}
			if err := n.AddMapping(ctx, "udp", int(to.Port)); err != nil {
				return outcome{}, err
			}
			external, ok := n.GetMapping("udp", int(to.Port))
			if !ok {
				return outcome{}, errors.New("found a gateway, but got no mapping")
			}
			return outcome{External: external}, nil
		},
		clean: func() {
			_ = n.RemoveMapping(context.Background(), "udp", int(to.Port))
			_ = n.Close()
		},
	}, nil
}

// tailscale probes and then maps, as the client of Tailscale does. The event bus and the
// network monitor are arguments of the constructor. The client creates them long before, so
// their creation is not measured.
func tailscale(to target) (attempt, error) {
	bus := eventbus.New()
	monitor, err := netmon.New(bus, logger.Discard)
	if err != nil {
		return attempt{}, err
	}
	mapped := make(chan struct{}, 1)
	var c *portmapper.Client
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			c = portmapper.NewClient(portmapper.Config{
				EventBus: bus, NetMon: monitor, Logf: logger.Discard,
				OnChange: func() { mapped <- struct{}{} },
			})
			c.SetLocalPort(to.Port)
			found, err := c.Probe(ctx)
			if err != nil {
				return outcome{}, err
			}
			if !found.PCP && !found.PMP && !found.UPnP {
				return outcome{}, errors.New("the probe found nothing")
			}
			if external, ok := c.GetCachedMappingOrStartCreatingOne(); ok {
				return outcome{External: external}, nil
			}
			select {
			case <-mapped:
			case <-time.After(tailscaleTimeout):
				return outcome{}, errors.New("no mapping within tailscaleTimeout")
			case <-ctx.Done():
				return outcome{}, context.Cause(ctx)
			}
			external, ok := c.GetCachedMappingOrStartCreatingOne()
			if !ok {
				return outcome{}, errors.New("a change without a mapping")
			}
			return outcome{External: external}, nil
		},
		clean: func() { _ = c.Close() },
	}, nil
}

// tailscaleTimeout is longer than the time for which the client tries to map. The client
// does not report that it has failed.
const tailscaleTimeout = 5500 * time.Millisecond

// command returns an attempt that measures a whole process. parse parses its output.
func command(parse func(output string) (outcome, error), clean func(), name string, args ...string) attempt {
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.WaitDelay = grace / 2
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				text := strings.Join(strings.Fields(errs.String()+out.String()), " ")
				return outcome{}, fmt.Errorf("%w: %s", err, text)
			}
			return parse(out.String())
		},
		clean: clean,
	}
}

func goforwardMapGateway(to target) (attempt, error) {
	return mapCommand(to, "map", "-g", to.Gateway.String())
}

func goforwardMap(to target) (attempt, error) { return mapCommand(to, "map") }

// goforwardMapRemembered maps and unmaps the port, and then measures another map, which uses
// what the first one has stored.
func goforwardMapRemembered(to target) (attempt, error) {
	a, err := mapCommand(to, "map")
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), watchdog)
	defer cancel()
	if _, err := a.run(ctx); err != nil {
		return a, err
	}
	a.clean()
	return a, nil
}

// mapCommand returns an attempt with an empty state directory, in the lab and not in the
// user's home directory: the command has stored nothing about the router.
func mapCommand(to target, args ...string) (attempt, error) {
	dir, err := os.MkdirTemp("/run", "state-")
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", dir)
	}
	if err != nil {
		return attempt{}, err
	}
	port := fmt.Sprintf("%d:%d/udp", to.Port, to.Port)
	parse := func(out string) (outcome, error) {
		external, err := netip.ParseAddrPort(strings.TrimSpace(out))
		return outcome{External: external}, err
	}
	clean := func() {
		args := append([]string{"unmap"}, args[1:]...)
		_, _ = command(parse, nil, to.Command, append(args, port)...).run(context.Background())
	}
	return command(parse, clean, to.Command, append(args, port, "-l", seconds())...), nil
}

func seconds() string { return strconv.Itoa(int(lifetime.Seconds())) }

func natpmpc(to target) (attempt, error) {
	port := strconv.Itoa(int(to.Port))
	parse := endpoint(regexp.MustCompile(`Public IP address : (\S+)`), regexp.MustCompile(`Mapped public port (\d+)`))
	clean := func() { rawNATPMPUnmap(to) }
	return command(parse, clean, "natpmpc", "-g", to.Gateway.String(), "-a", port, port, "udp", seconds()), nil
}

func upnpc(to target) (attempt, error) {
	port := strconv.Itoa(int(to.Port))
	redirected := regexp.MustCompile(`external (\S+):(\d+) UDP is redirected`)
	parse := func(out string) (outcome, error) {
		m := redirected.FindStringSubmatch(out)
		if m == nil {
			return outcome{}, fmt.Errorf("unexpected output %q", out)
		}
		external, err := netip.ParseAddrPort(m[1] + ":" + m[2])
		return outcome{External: external, Protocol: "upnp"}, err
	}
	clean := func() { _ = rawUPnPUnmap(to) }
	return command(parse, clean, "upnpc", "-a", to.Self.String(), port, port, "udp", seconds()), nil
}

// endpoint returns a parser for programs that print the address and the port separately.
func endpoint(addr, port *regexp.Regexp) func(string) (outcome, error) {
	return func(out string) (outcome, error) {
		a, p := addr.FindStringSubmatch(out), port.FindStringSubmatch(out)
		if a == nil || p == nil {
			return outcome{}, fmt.Errorf("unexpected output %q", out)
		}
		external, err := netip.ParseAddrPort(a[1] + ":" + p[1])
		return outcome{External: external}, err
	}
}
