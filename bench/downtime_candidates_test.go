package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	gethnat "github.com/ethereum/go-ethereum/p2p/nat"
	libp2pnat "github.com/libp2p/go-libp2p/p2p/net/nat"
	stconfig "github.com/syncthing/syncthing/lib/config"
	stevents "github.com/syncthing/syncthing/lib/events"
	stnat "github.com/syncthing/syncthing/lib/nat"
	_ "github.com/syncthing/syncthing/lib/pmp" // registers NAT-PMP in lib/nat
	stprotocol "github.com/syncthing/syncthing/lib/protocol"
	_ "github.com/syncthing/syncthing/lib/upnp" // registers UPnP in lib/nat
	"tailscale.com/net/netmon"
	"tailscale.com/net/portmapper"
	"tailscale.com/types/logger"
	"tailscale.com/util/eventbus"

	"github.com/natforward/goforward/forward"
)

// keeper is a library that keeps a mapping alive, as a program uses it.
type keeper struct {
	name, module string
	about        string // how it holds the mapping, for the report
	network      string // the transport protocol of the mapping
	// keep maps the ports and keeps the mappings alive until the process ends. The first
	// port has an echo server. It may return before the mapping exists.
	keep func(ctx context.Context, ports []uint16) (kept, error)
}

// kept returns the state of the mapping of the first port. A function may be nil.
type kept struct {
	endpoints func() []netip.AddrPort // the current external endpoints; empty: none
	protocol  func() string
}

var keepers = []keeper{
	{
		name: goforwardName, module: rootModule, network: "tcp", keep: keepGoforward,
		about: "`forward.New(nil)`, `Enable`: lifetime 2 h",
	},
	{
		name: libp2pName, module: "github.com/libp2p/go-libp2p", network: "tcp", keep: keepLibp2p,
		about: "`nat.DiscoverNAT`, `AddMapping` (`p2p/net/nat`): lifetime 1 min, mapped again every 20 s",
	},
	{
		name: gethName, module: "github.com/ethereum/go-ethereum", network: "tcp", keep: keepGoEthereum,
		about: "`p2p.Server` with `nat.Any()`: lifetime 10 min, mapped again every 8 min, the external address is requested every 2 min (`p2p/server_nat.go`). " +
			"The harness replaces only the internal port by the port of the echo server. The loop of `nat.Map` maps again every 10 min; no package of go-ethereum calls it",
	},
	{
		name: tailscaleName, module: "tailscale.com", network: "udp", keep: keepTailscale,
		about: "`net/portmapper` has no loop. The harness calls it as magicsock does at each STUN round of an active connection, every 20–26 s and after a change " +
			"(`wgengine/magicsock`: `determineEndpoints`, `updateEndpoints`): `GetCachedMappingOrStartCreatingOne`, `Probe`, and again if there was no mapping. " +
			"`Probe` asks a protocol again only 10 min after its last reply; a smaller epoch in the reply then discards the mapping. Lifetime 2 h, renewed at half. " +
			"Without traffic for 45 s, magicsock stops these rounds",
	},
	{
		name: syncthingName, module: "github.com/syncthing/syncthing", network: "tcp", keep: keepSyncthing,
		about: "`lib/nat` with `lib/pmp` and `lib/upnp`, default configuration: lifetime 60 min, mapped again every 30 min, on each protocol. " +
			"The last version that Go can import: later tags have major version 2 without /v2 in the module path. The intervals are the same at 328d910 of August 2026",
	},
}

func keeperNamed(name string) (keeper, bool) {
	for _, k := range keepers {
		if k.name == name {
			return k, true
		}
	}
	return keeper{}, false
}

// keepersLegend describes the keepers for the report.
func keepersLegend() []CandidateInfo {
	var out []CandidateInfo
	for _, k := range keepers {
		out = append(out, CandidateInfo{Name: k.name, What: k.about, Module: k.module})
	}
	return out
}

// some returns a list of one endpoint, or nil if the endpoint is invalid.
func some(e netip.AddrPort) []netip.AddrPort {
	if !e.IsValid() || e.Port() == 0 {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(e.Addr().Unmap(), e.Port())}
}

func keepGoforward(ctx context.Context, ports []uint16) (kept, error) {
	f, err := forward.New(nil)
	if err != nil {
		return kept{}, err
	}
	var first *forward.Mapping
	for _, port := range ports {
		m, err := f.Enable(ctx, forward.TCP(port))
		if err != nil {
			return kept{}, err
		}
		if first == nil {
			first = m
		}
	}
	return kept{
		endpoints: func() []netip.AddrPort { return some(first.External().AddrPort) },
		protocol:  first.Backend,
	}, nil
}

func keepLibp2p(ctx context.Context, ports []uint16) (kept, error) {
	n, err := libp2pnat.DiscoverNAT(ctx)
	if err != nil {
		return kept{}, err
	}
	for _, port := range ports {
		if err := n.AddMapping(ctx, "tcp", int(port)); err != nil {
			return kept{}, err
		}
	}
	return kept{endpoints: func() []netip.AddrPort {
		external, _ := n.GetMapping("tcp", int(ports[0]))
		return some(external)
	}}, nil
}

// echoNAT passes the requests of a server of go-ethereum on, but maps to the port of the echo
// server, because the server itself sends nothing before a handshake.
type echoNAT struct {
	gethnat.Interface
	internal int

	mu       sync.Mutex
	external uint16
}

func (n *echoNAT) AddMapping(protocol string, external, _ int, name string, lifetime time.Duration) (uint16, error) {
	port, err := n.Interface.AddMapping(protocol, external, n.internal, name, lifetime)
	if err == nil {
		n.mu.Lock()
		n.external = port
		n.mu.Unlock()
	}
	return port, err
}

func (n *echoNAT) DeleteMapping(protocol string, external, _ int) error {
	return n.Interface.DeleteMapping(protocol, external, n.internal)
}

func keepGoEthereum(_ context.Context, ports []uint16) (kept, error) {
	key, err := crypto.GenerateKey()
	if err != nil {
		return kept{}, err
	}
	gw := &echoNAT{Interface: gethnat.Any(), internal: int(ports[0])}
	srv := &p2p.Server{Config: p2p.Config{
		PrivateKey: key, MaxPeers: 1, Name: "bench", NoDiscovery: true, NoDial: true,
		ListenAddr: fmt.Sprintf(":%d", ports[0]+10000), NAT: gw,
	}}
	if err := srv.Start(); err != nil {
		return kept{}, err
	}
	return kept{
		endpoints: func() []netip.AddrPort {
			gw.mu.Lock()
			defer gw.mu.Unlock()
			// The record has the address that the server last learned from the gateway, or
			// a loopback address.
			addr := srv.LocalNode().Node().IPAddr()
			if addr.IsLoopback() {
				return nil
			}
			return some(netip.AddrPortFrom(addr, gw.external))
		},
		protocol: gw.String,
	}, nil
}

// keepTailscale calls the port mapper as determineEndpoints of magicsock does, and as often.
func keepTailscale(ctx context.Context, ports []uint16) (kept, error) {
	bus := eventbus.New()
	monitor, err := netmon.New(bus, logger.Discard)
	if err != nil {
		return kept{}, err
	}
	changed := make(chan struct{}, 1)
	c := portmapper.NewClient(portmapper.Config{
		EventBus: bus, NetMon: monitor, Logf: logger.Discard,
		OnChange: func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		},
	})
	c.SetLocalPort(ports[0])
	var (
		mu      sync.Mutex
		current []netip.AddrPort
	)
	go func() {
		for ctx.Err() == nil {
			external, ok := c.GetCachedMappingOrStartCreatingOne()
			_, _ = c.Probe(ctx)
			if !ok {
				external, _ = c.GetCachedMappingOrStartCreatingOne()
			}
			mu.Lock()
			current = some(external)
			mu.Unlock()
			select {
			case <-changed:
			case <-time.After(20*time.Second + rand.N(6*time.Second)):
			case <-ctx.Done():
			}
		}
	}()
	return kept{endpoints: func() []netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		return current
	}}, nil
}

func keepSyncthing(ctx context.Context, ports []uint16) (kept, error) {
	id := stprotocol.NewDeviceID([]byte("bench"))
	dir, err := os.MkdirTemp("", "syncthing")
	if err != nil {
		return kept{}, err
	}
	config := stconfig.Wrap(filepath.Join(dir, "config.xml"), stconfig.New(id), id, stevents.NoopLogger)
	service := stnat.NewService(id, config)
	go func() { _ = config.Serve(ctx) }()
	go func() { _ = service.Serve(ctx) }()
	m := service.NewMapping(stnat.TCP, stnat.IPv4Only, nil, int(ports[0]))
	return kept{endpoints: func() []netip.AddrPort {
		var out []netip.AddrPort
		for _, a := range m.ExternalAddresses() {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(a.Port)))
			}
		}
		return out
	}}, nil
}
