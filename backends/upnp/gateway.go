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
	// another one is preferred. It says so if a device is used that is not the
	// default gateway.
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
// returns the device with the best service. The device is usable even if it does
// not report a status.
func (b *Backend) inspect(ctx context.Context, c candidate) (*gateway, error) {
	bounded, cancel := withTimeout(ctx, b.config.Wait*4/5) // the rest is for another attempt
	defer cancel()
	d, err := Describe(bounded, c.url, b.clientConfigFor(hostOf(c.url)))
	if err != nil {
		return nil, err
	}
	if b.isOtherFamily(d.Local) {
		d.Local = b.config.Source // the service does not depend on the family of the connection
	}
	var all []*gateway
	for _, service := range d.Services {
		if (service.Kind() == IPv6Firewall) != b.is6 {
			continue
		}
		if client, err := NewClient(service, b.clientConfigFor(d.Host)); err == nil {
			all = append(all, &gateway{Gateway: Gateway{Device: d, Service: client.Service(), Default: c.isGateway}, client: client, bootID: c.bootID})
		}
	}
	if len(all) == 0 {
		kind := "WAN connection"
		if b.is6 {
			kind = "IPv6 firewall"
		}
		return nil, fmt.Errorf("upnp: description at %s: %w: device %q has no %s service", d.URL, backends.ErrUnsupported, cmp.Or(d.FriendlyName, d.Model), kind)
	}
	for _, g := range all {
		_ = b.queryStatus(ctx, g)
	}
	best := slices.MinFunc(all, (*gateway).compare)
	for _, g := range all {
		if g != best {
			best.otherClients = append(best.otherClients, g.client)
		}
	}
	return best, nil
}

// queryStatus requests the state of the service's connection and its external
// address, or the state of the firewall. It fails only if there is no reply to
// any request: a fault or a malformed response is not an error.
func (b *Backend) queryStatus(ctx context.Context, g *gateway) error {
	if b.is6 {
		return transportError(b.ask(ctx, g.client, "GetFirewallStatus", func(ctx context.Context) error {
			f, err := g.client.FirewallStatus(ctx)
			if err == nil && !f.InboundPinholeAllowed && f.Enabled {
				g.Status.Connection = "pinholes switched off"
			}
			return err
		}))
	}
	var statusErr error
	g.Status, statusErr = b.status(ctx, g.client)
	g.statusTime = time.Now()
	err := b.ask(ctx, g.client, "GetExternalIPAddress", func(ctx context.Context) (err error) {
		g.External, err = g.client.ExternalAddr(ctx)
		return err
	})
	if transportError(statusErr) == nil {
		return nil
	}
	return transportError(err)
}

// status requests the state of a service's connection.
func (b *Backend) status(ctx context.Context, c *Client) (s Status, err error) {
	err = b.ask(ctx, c, "GetStatusInfo", func(ctx context.Context) error {
		s, err = c.Status(ctx)
		return err
	})
	return s, err
}

// The ranks of services, the best first.
const (
	connectedPublic = iota
	connected
	unknownStatus
	disconnected
)

// rank returns the rank of a service, based on the status that it reports. For
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

// compare orders gateways, the better one first. The default gateway comes
// first, regardless of its status: incoming traffic arrives through it, and replies
// leave through it. A firewall that is reached over IPv6 comes before others,
// because many devices open pinholes only for the address of the sender.
func (g *gateway) compare(other *gateway) int {
	return cmp.Or(
		cmp.Compare(boolToInt(other.Default), boolToInt(g.Default)),
		cmp.Compare(boolToInt(g.isOtherFamily()), boolToInt(other.isOtherFamily())),
		cmp.Compare(g.rank(), other.rank()),
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

// isOtherFamily reports whether a firewall for IPv6 is reached over IPv4.
func (g *gateway) isOtherFamily() bool {
	return g.Service.Kind() == IPv6Firewall && g.Device.Host.Is4()
}

// setReasons sets the Reason of each gateway. The gateways are sorted, the best
// first. gatewayErr is the error of the default gateway's own device, if any.
func setReasons(gateways []*gateway, gatewayErr error) {
	for i, g := range gateways {
		g.Reason = [...]string{
			"connected, with a public address", "connected, without a public address",
			"does not report whether it is connected", "not connected: " + g.Status.Connection,
		}[g.rank()]
		if g.Service.Kind() == IPv6Firewall {
			g.Reason = cmp.Or(g.Status.Connection, "opens pinholes")
		}
		switch {
		case g.Default:
			g.Reason += ", and this host's default gateway"
		case i > 0:
			g.Reason += ", but not this host's default gateway"
		case gatewayErr != nil:
			g.Reason += fmt.Sprintf(", but not this host's default gateway, which offers no UPnP that works: %v", gatewayErr)
		default:
			g.Reason += ", but not this host's default gateway, which offers no UPnP"
		}
		if i > 0 && g.compare(gateways[0]) == 0 {
			g.Reason += ", and answered later"
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
func (b *Backend) promote(ctx context.Context, g *gateway, c *Client) {
	if c == g.client {
		return
	}
	promoted := *g
	promoted.client, promoted.otherClients, promoted.Service = c, g.startingWith(c)[1:], c.Service()
	_ = b.queryStatus(ctx, &promoted)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == g {
		b.current = &promoted
	}
	if b.lastSeen.gateway == g {
		b.lastSeen.gateway = &promoted
	}
}
