package gatewaytest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/freeport"
)

// Config describes the router to start. The zero value is a router that follows the
// standards and supports all protocols, on loopback ports that it chooses. If a field is
// invalid, New and Start fail with an error that wraps backends.ErrInvalid.
type Config struct {
	// Protocols lists the protocols that the gateway supports: "natpmp", "pcp" and
	// "upnp". Nil or empty means all. A gateway that supports only one of NAT-PMP and
	// PCP responds to requests of the other with an unsupported-version error, as the
	// standards require.
	Protocols []string
	// Listen is the IPv4 address at which the gateway receives NAT-PMP and PCP requests.
	// The zero address means 127.0.0.1, and port 0 means any free port. The port of the
	// standards is 5351.
	Listen netip.AddrPort
	// Listen6 is the IPv6 address, such as [::1]:0, at which the gateway receives PCP
	// requests. UPnP uses other ports of the same address. The zero value means no IPv6.
	// Start fails on a machine that does not have the address.
	Listen6 netip.AddrPort
	// ListenSSDP is the IPv4 address at which the gateway receives UPnP searches.
	// ListenHTTP is the IPv4 address at which it serves the device description and UPnP
	// control. The zero address means the address of Listen, and port 0 means any free
	// port. The gateway joins no multicast group.
	ListenSSDP, ListenHTTP netip.AddrPort
	// External is the virtual external address. The zero Addr means 45.45.45.1; 0.0.0.0
	// means that the gateway has no external address. Private addresses are reported and
	// mapped like others, unless a RefusePrivate field of Quirks is set.
	External netip.Addr
	// Announce is the address to which NAT-PMP and PCP announcements are sent. The zero
	// value means a loopback address that the gateway chooses, see
	// [Gateway.AnnounceAddr]. The system assigns the port of that address to no other
	// socket, so that a program under test can listen there. With port 0, such as
	// 127.0.0.1:0, no announcements are sent. The address of the standards is
	// 224.0.0.1:5350.
	Announce netip.AddrPort
	// Announce6 is the address to which PCP announcements over IPv6 are sent. The zero
	// value means that none are sent. It requires Listen6. The address of the standard
	// is [ff02::1]:5350, with a zone.
	Announce6 netip.AddrPort
	// Notify is the address to which UPnP notifications are sent. The zero value means
	// another loopback address that the gateway chooses, see [Gateway.NotifyAddr]. With
	// port 0, no notifications are sent. The address of the standard is
	// 239.255.255.250:1900.
	Notify netip.AddrPort
	// MinLifetime and MaxLifetime limit the lifetimes that the gateway grants. The
	// protocols express lifetimes in whole seconds. Zero means no limit.
	MinLifetime, MaxLifetime time.Duration
	// TableLimit is the maximum number of mappings in the table. Zero means no limit
	// other than the number of ports.
	TableLimit int
	// Admit reports whether the gateway handles requests from an address. Requests from
	// other addresses are dropped. Nil admits all. Several goroutines may call it at the
	// same time.
	Admit func(netip.Addr) bool
	// Uptime is the time for which the gateway has been up when it starts: the epoch
	// that NAT-PMP and PCP report, and the uptime that UPnP reports. Zero means one day,
	// so that a client that has seen the epoch once detects a restart immediately.
	Uptime time.Duration
	// ManualClock stops the gateway's clock: only Advance moves it.
	ManualClock bool
	// Quirks are the differences from the standards.
	Quirks quirks.Quirks
}

var (
	loopback        = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	defaultExternal = netip.AddrFrom4([4]byte{45, 45, 45, 1})
	// defaultOutside and defaultOutside6 are the addresses from which Dial connects by
	// default.
	defaultOutside  = netip.AddrFrom4([4]byte{45, 45, 45, 100})
	defaultOutside6 = netip.MustParseAddr("2001:db8::100")
)

// withDefaults replaces zero values with their defaults and returns an error if a value is
// invalid.
func (c Config) withDefaults() (Config, error) {
	if !c.Listen.Addr().IsValid() {
		c.Listen = netip.AddrPortFrom(loopback, c.Listen.Port())
	}
	c.External = cmp.Or(c.External, defaultExternal).Unmap()
	c.Uptime = cmp.Or(c.Uptime, 24*time.Hour)
	c.Quirks.AnnounceCount = cmp.Or(c.Quirks.AnnounceCount, 10)
	c.Quirks.PCP.MaxFilters = cmp.Or(c.Quirks.PCP.MaxFilters, 64)
	c.Quirks.PCP.UpdateCount = cmp.Or(c.Quirks.PCP.UpdateCount, 3)
	for _, name := range c.Protocols {
		if name != serviceNATPMP && name != servicePCP && name != serviceUPnP {
			return c, fmt.Errorf("gatewaytest: %w: unknown protocol %q", backends.ErrInvalid, name)
		}
	}
	switch {
	case !c.Listen.Addr().Is4():
		return c, fmt.Errorf("gatewaytest: %w: listen address %v is not IPv4", backends.ErrInvalid, c.Listen)
	case !c.External.Is4():
		return c, fmt.Errorf("gatewaytest: %w: external address %v is not IPv4", backends.ErrInvalid, c.External)
	case c.MaxLifetime != 0 && c.MaxLifetime < c.MinLifetime:
		return c, fmt.Errorf("gatewaytest: %w: minimum lifetime %v is greater than maximum lifetime %v", backends.ErrInvalid, c.MinLifetime, c.MaxLifetime)
	case c.Listen6.IsValid() && (!c.Listen6.Addr().Is6() || c.Listen6.Addr().Is4In6()):
		return c, fmt.Errorf("gatewaytest: %w: listen address %v is not IPv6", backends.ErrInvalid, c.Listen6)
	case c.Listen6.IsValid() && !c.supports(servicePCP) && !c.supports(serviceUPnP), c.Announce6.IsValid() && !c.Listen6.IsValid():
		return c, fmt.Errorf("gatewaytest: %w: IPv6 needs PCP or UPnP, and announcements over IPv6 need Listen6", backends.ErrInvalid)
	case c.Quirks.PCP.MaxFilters < 0 || c.Quirks.PCP.UpdateCount < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config.Quirks.PCP", backends.ErrInvalid)
	case c.TableLimit < 0 || c.Quirks.AnnounceCount < 0 || c.MinLifetime < 0 || c.MaxLifetime < 0 || c.Uptime < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config", backends.ErrInvalid)
	}
	for _, at := range []*netip.AddrPort{&c.ListenSSDP, &c.ListenHTTP} {
		if !at.Addr().IsValid() {
			*at = netip.AddrPortFrom(c.Listen.Addr(), at.Port())
		}
		if !at.Addr().Is4() || at.Addr().IsMulticast() {
			return c, fmt.Errorf("gatewaytest: %w: UPnP address %v is not a unicast IPv4 address", backends.ErrInvalid, at)
		}
	}
	var err error
	for _, at := range []*netip.AddrPort{&c.Announce, &c.Notify} {
		if !at.IsValid() {
			if *at, err = freeport.UDP(); err != nil {
				return c, err
			}
		}
	}
	if c.supports(serviceUPnP) {
		c.Quirks.UPnP, err = upnpDefaults(c.Quirks.UPnP)
	}
	return c, err
}

// supports reports whether the gateway supports the protocol.
func (c Config) supports(service string) bool {
	return len(c.Protocols) == 0 || slices.Contains(c.Protocols, service)
}

// lifetime returns the lifetime that the gateway grants for a requested one.
func (c Config) lifetime(requested time.Duration) time.Duration {
	granted := max(requested, c.MinLifetime)
	if c.MaxLifetime != 0 {
		granted = min(granted, c.MaxLifetime)
	}
	return granted
}

// upnpDefaults replaces zero values with their defaults and returns an error if a value is
// invalid.
func upnpDefaults(u quirks.UPnP) (quirks.UPnP, error) {
	u.Version = cmp.Or(u.Version, 2)
	u.UDN = cmp.Or(u.UDN, randomUDN())
	u.Description.Path = cmp.Or(u.Description.Path, "/rootDesc.xml")
	u.Description.WANDevices = cmp.Or(u.Description.WANDevices, 1)
	if u.Description.URLBase == quirks.URLBaseDeep && u.Description.ControlURL == quirks.ControlRooted {
		u.Description.ControlURL = quirks.ControlRelative
	}
	d := u.Description
	switch {
	case u.Version < 1 || u.Version > 2 || u.Search.Version < 0 || u.Search.Version > 2:
		return u, fmt.Errorf("gatewaytest: %w: IGD version %d, search version %d", backends.ErrInvalid, u.Version, u.Search.Version)
	case !strings.HasPrefix(u.UDN, "uuid:") || strings.ContainsAny(u.UDN, "\r\n<&"):
		return u, fmt.Errorf("gatewaytest: %w: UDN %q", backends.ErrInvalid, u.UDN)
	case !strings.HasPrefix(d.Path, "/") || strings.ContainsAny(d.Path, " \r\n"):
		return u, fmt.Errorf("gatewaytest: %w: description path %q", backends.ErrInvalid, d.Path)
	case d.WANDevices < 0 || d.WANDevices > 16 || d.Connected < 0 || d.Connected >= d.WANDevices:
		return u, fmt.Errorf("gatewaytest: %w: %d WAN devices, device %d connected", backends.ErrInvalid, d.WANDevices, d.Connected)
	case d.Status != 0 && (d.Status < 200 || d.Status > 599), strings.ContainsAny(u.Wire.Version, " \r\n"):
		return u, fmt.Errorf("gatewaytest: %w: status %d of the description, HTTP version %q", backends.ErrInvalid, d.Status, u.Wire.Version)
	case u.Leases.Max < 0 || u.Leases.Reported < 0 || u.Rules.IdleAfter < 0 || u.Rules.IdleAbove < 0 || u.Demands.MaxDescription < 0,
		d.FirstReset < 0 || d.FirstStatus < 0 || u.Rules.DeleteFailures < 0 || u.Search.Delay < 0:
		return u, fmt.Errorf("gatewaytest: %w: negative number in Config.Quirks.UPnP", backends.ErrInvalid)
	case u.Rules.ListedClient.IsValid() && !u.Rules.ListedClient.Is4():
		return u, fmt.Errorf("gatewaytest: %w: listed client %v is not IPv4", backends.ErrInvalid, u.Rules.ListedClient)
	}
	return u, nil
}
