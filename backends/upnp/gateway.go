package upnp

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
)

// Gateway is a gateway device that a search found, and the state that it
// reports.
type Gateway struct {
	// Device is the description of the device.
	Device *Device
	// Service is the service of the device that is used.
	Service Service
	// Status is the state of its internet connection. It is the zero value if
	// the device does not report it.
	Status Status
	// External is its external address. It is the zero Addr if the device does
	// not report it, and over IPv6.
	External netip.Addr
	// Default reports whether the device belongs to Config.Gateway or to
	// Config.URL. Such a device is usually this host's default gateway.
	Default bool
	// Reason explains the position in the list: why the device is used, or why
	// another one is preferred.
	Reason string
}

// gateway is a Gateway with the clients for its services.
type gateway struct {
	Gateway
	client       *Client
	otherClients []*Client // clients for the other services of the same kind, used if this one fails
	bootID       ssdp.ID
	statusTime   time.Time // time at which Status was reported
}

// inspect fetches a description, queries the status of its services, and
// returns the device with the best service. A service that refuses the query
// may still be able to map ports.
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
			unreachable = cmp.Or(unreachable, err) // another service may still work
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

// queryStatus requests the state of the service's connection and its external
// address, or the state of the firewall. A fault or a malformed response is not
// an error.
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
	g.External = external
	return transportError(err)
}

// The ranks of devices, the best first.
const (
	connectedPublic = iota
	connected
	unknownStatus
	disconnected
)

// rank returns the rank of a device, based on the status that it reports. For
// pinholes, the external address is irrelevant.
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

// compare orders gateways, the better one first. Among gateways of equal rank,
// the default gateway comes first, then the newer service.
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

// isOptimal reports whether no other device can be better.
func (g *gateway) isOptimal() bool { return g.rank() == connectedPublic && g.Default }

// waitForBetter returns how long the search waits for a better device than this
// one. The wait is short if this device is the default gateway and is not
// disconnected. Otherwise the search waits until all devices can have responded:
// a disconnected device is of little use, and incoming traffic arrives through
// the default gateway.
func (g *gateway) waitForBetter() time.Duration {
	if g.rank() == disconnected || !g.Default {
		return allResponsesWait
	}
	return betterWait
}

// setReasons sets the Reason of each gateway. The gateways are sorted, the best
// first.
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
			g.Reason += ", and this host's default gateway"
		}
		if i > 0 && g.compare(gateways[0]) == 0 {
			g.Reason += ", but answered later"
		}
	}
}

// onLink reports whether an address is on a network of the interface, or of any
// interface if none is configured. Responses from other networks are ignored.
// For an address of this host, onLink returns false unless it is the configured
// gateway, so that the host does not use itself as its gateway. Loopback
// addresses count only if the gateway is on loopback.
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

// The prefixes of tokens. A token identifies the service that granted a mapping, or
// contains the id of a pinhole. It is part of the Mapping, because mappings outlive
// the process that created them. Two services of a device can have the same UDN and
// type, so a service is identified by its type and control URL.
const (
	serviceToken = "service "
	pinholeToken = "pinhole "
)

func tokenOf(s Service) backends.Token {
	return backends.NewToken([]byte(serviceToken + s.Type + " " + s.ControlURL))
}

func pinholeTokenOf(id uint16) backends.Token {
	return backends.NewToken([]byte(pinholeToken + strconv.Itoa(int(id))))
}

// startingWith returns the clients for all services of the device, c first.
func (g *gateway) startingWith(c *Client) []*Client {
	all := []*Client{c}
	for _, other := range append([]*Client{g.client}, g.otherClients...) {
		if other != c {
			all = append(all, other)
		}
	}
	return all
}

// clientsFor returns the client for the service that granted a mapping. If the device
// has another control port now, that is the service with the same type and path. If
// the token names no service of the device, clientsFor returns all clients. elsewhere is
// true if it names a service of another device.
func (g *gateway) clientsFor(token backends.Token) (clients []*Client, elsewhere bool) {
	all := g.startingWith(g.client)
	text, _ := strings.CutPrefix(string(token.Bytes()), serviceToken)
	serviceType, rawURL, _ := strings.Cut(text, " ")
	e, err := parseIPURL(rawURL)
	if err != nil {
		return all, false
	}
	for _, samePort := range []bool{true, false} {
		for _, c := range all {
			if c.service.Type == serviceType && slices.ContainsFunc(c.urls, func(u ipURL) bool {
				return u.url.RequestURI() == e.url.RequestURI() && u.addr.Addr() == e.addr.Addr() && (u.addr == e.addr || !samePort)
			}) {
				return []*Client{c}, false
			}
		}
	}
	return all, e.addr.Addr() != g.Device.Host
}

// promote makes the service of a client the preferred one, because it granted a mapping
// that the preferred service refused.
func (b *Backend) promote(g *gateway, c *Client, external netip.Addr) {
	if c == g.client {
		return
	}
	promoted := *g
	promoted.client, promoted.otherClients = c, g.startingWith(c)[1:]
	promoted.Service, promoted.Status, promoted.External = c.Service(), Status{}, external
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == g {
		b.current = &promoted
	}
	if b.lastSeen.gateway == g {
		b.lastSeen.gateway = &promoted
	}
}
