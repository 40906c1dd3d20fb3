package gateway

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
)

// Protocol is a protocol that gateways are asked by. Another protocol joins Protocols, and
// nothing else.
type Protocol struct {
	Name     string
	Title    string                            // for people
	IPv6     bool                              // gateways of that family may speak it
	Keyed    bool                              // its mappings have a secret, which can be derived from a key
	Searches bool                              // its devices are searched for, by a socket of its own
	uses     func(BackendConfig) BackendConfig // the part that it uses
	open     func(BackendConfig, Key, *slog.Logger) (Prober, error)
}

// Prober is a backend that tells whether its gateway speaks the protocol.
type Prober interface {
	backends.Backend
	Probe(ctx context.Context) error
}

// Protocols are the protocols that there are, the preferred first.
var Protocols = []Protocol{
	{Name: natpmp.Name, Title: "NAT-PMP", open: openNATPMP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce}
	}},
	{Name: pcp.Name, Title: "PCP", IPv6: true, Keyed: true, open: openPCP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce, Nonce: c.Nonce}
	}},
	{Name: upnp.Name, Title: "UPnP", IPv6: true, Searches: true, open: openUPnP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, URL: c.URL, Only: c.Only, SSDP: c.SSDP, Notify: c.Notify, Wait: c.Wait}
	}},
}

// Names returns the names of Protocols.
func Names() (names []string) {
	for _, p := range Protocols {
		names = append(names, p.Name)
	}
	return names
}

// Find returns the protocol with a name, or false.
func Find(name string) (Protocol, bool) {
	for _, p := range Protocols {
		if p.Name == name {
			return p, true
		}
	}
	return Protocol{}, false
}

// Config returns the part of a config that the protocol uses, so that what differs otherwise
// does not keep clients from sharing a backend.
func (p Protocol) Config(c BackendConfig) BackendConfig {
	c = p.uses(c)
	c.Protocol = p.Name
	return c
}

// Open makes the backend of the protocol for a gateway, without I/O.
func (p Protocol) Open(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	return p.open(c, at, log)
}

// How a request is repeated: some leases last a minute, and a link that loses packets
// loses several in a row. The longest wait is for how long a transmission holds the
// gateway's queue; all of them together take fourteen seconds, in which a slow gateway
// answers.
const (
	longestWait   = time.Second
	transmissions = 15
)

func openNATPMP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func openPCP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := pcp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local,
		// The standard's pace is for requests that nobody waits for.
		FirstWait: natpmp.DefaultFirstWait, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	}
	if c.Nonce != "" {
		config.Nonce = func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce([]byte(c.Nonce), gateway, p, internal)
		}
	}
	b, err := pcp.New(config)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func openUPnP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := upnp.Config{
		Gateway: at.Gateway.Addr(), Interface: c.Interface, Source: at.Local, Only: c.Only, URL: c.URL,
		Notify: c.Notify, Wait: c.Wait, Logger: log,
	}
	if c.SSDP.IsValid() {
		config.SSDP = []netip.AddrPort{c.SSDP}
	}
	b, err := upnp.New(config)
	if err != nil {
		return nil, err
	}
	return b, nil
}
