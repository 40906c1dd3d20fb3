package upnp

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
)

// Gateway is a gateway device that was found, and what it says of itself.
type Gateway struct {
	// Device is its description.
	Device *Device
	// Service is the one of its services that is used.
	Service Service
	// Status is that of its connection to the internet; the zero value where it
	// does not tell.
	Status Status
	// External is its external address; the zero Addr where it does not tell, and
	// over IPv6.
	External netip.Addr
	// Default is whether it is the gateway that leads out.
	Default bool
	// Reason says why it is used, or why another is.
	Reason string
}

// gateway is a Gateway to work with.
type gateway struct {
	Gateway
	client          *Client
	externalQueried bool      // External was told, if only to be empty
	otherClients    []*Client // more services of the kind, for one that does not do what it says
	bootID          ssdp.ID
	statusTime      time.Time // when Status was told
}

// survey fetches a description, picks the best service in it, and asks what it
// says of its connection. Asked for its status, a device may refuse and be good
// all the same.
func (b *Backend) inspect(ctx context.Context, c candidate) (*gateway, error) {
	d, err := Describe(ctx, c.url, b.clientConfig)
	if err != nil {
		return nil, err
	}
	var best *gateway
	var clients []*Client
	for _, s := range d.Services {
		if (s.Kind() == IPv6Firewall) != b.is6 {
			continue
		}
		client, err := NewClient(s, b.clientConfig)
		if err != nil {
			continue
		}
		clients = append(clients, client)
	}
	var unreachable error
	for _, client := range clients {
		g := &gateway{Gateway: Gateway{Device: d, Service: client.Service(), Default: c.isGateway}, client: client, bootID: c.bootID}
		if err := b.queryStatus(ctx, g); err != nil {
			unreachable = cmp.Or(unreachable, err) // another service may be good all the same
			continue
		}
		if best == nil || g.compare(best) < 0 {
			best = g
		}
	}
	if best == nil && unreachable != nil {
		return nil, unreachable
	}
	if best == nil {
		kind := "WAN connection"
		if b.is6 {
			kind = "IPv6 firewall"
		}
		return nil, fmt.Errorf("upnp: %w: %q has no %s service", backends.ErrUnsupported, d.Model, kind)
	}
	for _, client := range clients {
		if client != best.client {
			best.otherClients = append(best.otherClients, client)
		}
	}
	return best, nil
}

// interview asks a service what it says of its connection.
func (b *Backend) queryStatus(ctx context.Context, g *gateway) error {
	if b.is6 {
		f, err := g.client.FirewallStatus(ctx)
		if err == nil && !f.InboundPinholeAllowed && f.Enabled {
			g.Status.Connection = "pinholes switched off"
		}
		return transportError(err)
	}
	status, err := g.client.Status(ctx)
	if err := transportError(err); err != nil {
		return err
	}
	g.Status, g.statusTime = status, time.Now()
	external, err := g.client.ExternalAddr(ctx)
	g.External, g.externalQueried = external, err == nil
	return transportError(err)
}

// The merits of a device, the best first.
const (
	connectedPublic = iota
	connected
	unknownStatus
	disconnected
)

// merit is what a device's own words make of it. Pinholes do not hang on its
// external address.
func (g *gateway) rank() int {
	switch {
	case g.Service.Kind() == IPv6Firewall && g.Status.Connection == "":
		return connectedPublic
	case g.Status.Connection == "":
		return unknownStatus
	case !g.Status.Connected():
		return disconnected
	case backends.ScopeOf(g.External) == backends.ScopePublic:
		return connectedPublic
	}
	return connected
}

// compare orders gateways, the better first. Among equals, it is the one that
// leads out, and then the newer service.
func (g *gateway) compare(other *gateway) int {
	return cmp.Or(
		cmp.Compare(g.rank(), other.rank()),
		cmp.Compare(boolToInt(other.Default), boolToInt(g.Default)),
		cmp.Compare(g.Service.Kind(), other.Service.Kind()),
		cmp.Compare(other.Service.Version(), g.Service.Version()),
	)
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// unbeatable reports whether nothing better can come.
func (g *gateway) isOptimal() bool { return g.rank() == connectedPublic && g.Default }

// patience is how long it waits for a better one: a moment if it could do, and
// else until every device can have answered. Bytes come in by the device that
// leads out.
func (g *gateway) waitForBetter() time.Duration {
	if g.rank() == disconnected || !g.Default {
		return allResponsesWait
	}
	return betterWait
}

// explain fills in why each of the gateways, the best first, is used or not.
func setReasons(gateways []*gateway) {
	for i, g := range gateways {
		switch g.rank() {
		case connectedPublic:
			g.Reason = "connected, with a public address"
		case connected:
			g.Reason = "connected, without a public address"
		case unknownStatus:
			g.Reason = "does not report whether it is connected"
		case disconnected:
			g.Reason = "not connected: " + g.Status.Connection
		}
		if g.Service.Kind() == IPv6Firewall {
			g.Reason = cmp.Or(g.Status.Connection, "opens pinholes")
		}
		if g.Default {
			g.Reason += ", and this host's way out"
		}
		if i > 0 && g.compare(gateways[0]) == 0 {
			g.Reason += ", but answered later"
		}
	}
}

// onLink reports whether an address is on a network of the interface, or of any
// where none is named: no other answers a search. Addresses of this host are not,
// lest it takes itself for its gateway, unless it is told to.
func (b *Backend) onLink(a netip.Addr) bool {
	if b.isGateway(a) {
		return true
	}
	if a.IsLoopback() {
		return b.config.Gateway.IsLoopback()
	}
	return onLink(a, b.config.Interface)
}

func onLink(a netip.Addr, iface string) bool {
	var addrs []net.Addr
	var err error
	if iface == "" {
		addrs, err = net.InterfaceAddrs()
	} else {
		var i *net.Interface
		if i, err = net.InterfaceByName(iface); err == nil {
			addrs, err = i.Addrs()
		}
	}
	if err != nil {
		return false
	}
	contained := false
	for _, addr := range addrs {
		p, err := netip.ParsePrefix(addr.String())
		if err != nil {
			continue
		}
		if p.Addr() == a.WithZone("") {
			return false
		}
		contained = contained || p.Contains(a.WithZone(""))
	}
	return contained
}

// A token says which service granted something, and which number a pinhole had
// then: mappings outlive the process that made them.
const (
	serviceToken = "service "
	pinholeToken = "pinhole "
)

func tokenOf(s Service) backends.Token {
	return backends.NewToken([]byte(serviceToken + s.UDN + " " + s.Type))
}

func pinholeTokenOf(id uint16) backends.Token {
	return backends.NewToken([]byte(pinholeToken + strconv.Itoa(int(id))))
}

// clientFor returns the service that granted something, or the preferred one
// where that is not known any more.
func (g *gateway) clientFor(token backends.Token) *Client {
	for _, c := range g.otherClients {
		if tokenOf(c.Service()) == token {
			return c
		}
	}
	return g.client
}

// addr is where the service is asked.
func (g *gateway) addr() netip.AddrPort { return g.client.endpoints[g.client.current.Load()].addr }
