package cli

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/holders"
)

// holderKey returns the key under which all programs of this user hold the internal endpoint
// of a mapping, or its external one.
func holderKey(gateway netip.AddrPort, m backends.Mapping, external bool) holders.Key {
	e := holders.Endpoint{
		Gateway: netip.AddrPortFrom(gateway.Addr(), cmp.Or(gateway.Port(), natpmp.Port)),
		Host:    m.Internal.Addr(), Protocol: m.Protocol, Port: m.Internal.Port(),
	}
	if external {
		e.External, e.Port, e.Remote = true, m.External.Port(), m.Remote.Addr()
	}
	return e.Key()
}

// holderText describes the program that holds an endpoint. It returns "" if there is none.
func holderText(k holders.Key) string {
	programs, _ := holders.Default() // without it, no other program is known
	switch pid, held := programs.Holder(k); {
	case !held:
		return ""
	case pid == 0:
		return "another program keeps it alive"
	default:
		return fmt.Sprintf("process %d keeps it alive", pid)
	}
}

// otherHolder describes the program that still holds a mapping which this one has released. It
// returns "" if there is none.
func (a *app) otherHolder(m backends.Mapping) string {
	gateway := m.Gateway
	isUPnP := m.Backend == upnp.Name
	if isUPnP { // it has another port
		gateway = netip.AddrPortFrom(gateway.Addr(), 0)
		if named := a.settings.namedGateway(); named.IsValid() {
			gateway = named
		}
	}
	return holderText(holderKey(gateway, m, isUPnP && gateway.Addr().Is4()))
}

// checkNoneHeld returns an error if another program keeps a mapping to this host alive.
func checkNoneHeld(result *probeResult) error {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		for port := 1; port <= math.MaxUint16; port++ {
			internal := netip.AddrPortFrom(result.localAddr(), uint16(port))
			if text := holderText(holderKey(result.gateway, backends.Mapping{Protocol: p, Internal: internal}, false)); text != "" {
				return keptMapping(p, internal, text)
			}
		}
	}
	return nil
}

// beginUnmap reserves an internal port, so that no program of this user requests a mapping of
// it until the caller calls end. It fails if another program holds one and force is false.
func beginUnmap(gateway netip.AddrPort, p backends.Protocol, internal netip.AddrPort, force bool) (end func(), err error) {
	programs, _ := holders.Default()
	k := holderKey(gateway, backends.Mapping{Protocol: p, Internal: internal}, false)
	if end, ok := programs.BeginDelete(k); ok {
		return end, nil
	}
	if force {
		return func() {}, nil
	}
	return nil, keptMapping(p, internal, cmp.Or(holderText(k), "another program keeps it alive"))
}

// keptMapping returns the error for a mapping that another program keeps alive.
func keptMapping(p backends.Protocol, internal netip.AddrPort, by string) error {
	return keptError(fmt.Sprintf("%v port %d stays: %s\n  → end that program, or delete the mapping nevertheless with --force", p, internal.Port(), by))
}

// keptError means that another program of this user keeps a mapping alive.
type keptError string

func (e keptError) Error() string { return string(e) }
func (keptError) Unwrap() error   { return backends.ErrConflict }
