package gatewaytest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// Config says what kind of router to start. The zero value is a router that follows
// the standards and speaks all protocols, on loopback ports that it chooses.
type Config struct {
	// Protocols are those that the gateway speaks: "natpmp", "pcp" and "upnp". Nil or
	// empty: all. A gateway that speaks only one of NAT-PMP and PCP tells the clients of
	// the other that it does not know the version, as the standards say.
	Protocols []string
	// Listen is where the gateway answers NAT-PMP and PCP; the standards say port 5351.
	// The zero address is 127.0.0.1, port 0 any free port. IPv4 only.
	Listen netip.AddrPort
	// Listen6 is where PCP is answered over IPv6, such as [::1]:0, and UPnP on other
	// ports of the address. The zero value: nowhere. Start fails on a machine without the address.
	Listen6 netip.AddrPort
	// ListenSSDP is where searches of UPnP are answered, and ListenHTTP where description
	// and control are served. The zero address is that of Listen, port 0 any free port.
	// No multicast group is joined. IPv4 only.
	ListenSSDP, ListenHTTP netip.AddrPort
	// External is the virtual external address. The zero Addr is 45.45.45.1; 0.0.0.0 is
	// a gateway without an address. See [quirks.NATPMP] for what can happen to private ones.
	External netip.Addr
	// Announce is where announcements of NAT-PMP and PCP go: a socket of the test on
	// loopback, or 224.0.0.1:5350 as the standards say. The zero value: nowhere.
	Announce netip.AddrPort
	// Announce6 is the same over IPv6, always in PCP's form: the standard says
	// [ff02::1]:5350, with a zone. It needs Listen6.
	Announce6 netip.AddrPort
	// Notify is where notifications of UPnP go: a socket of the test, or
	// 239.255.255.250:1900 as the standard says. The zero value: nowhere.
	Notify netip.AddrPort
	// MinLifetime and MaxLifetime bound what is granted, in whole seconds. Zero: as asked.
	MinLifetime, MaxLifetime time.Duration
	// TableLimit is how many mappings fit. Zero: as many as there are ports.
	TableLimit int
	// Admit says whose requests are heard; the others are dropped. Nil: everybody's.
	Admit func(netip.Addr) bool
	// ManualClock stops the gateway's clock: only Advance moves it.
	ManualClock bool
	// Quirks are the differences from the standards.
	Quirks quirks.Quirks
}

var (
	loopback        = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	defaultExternal = netip.AddrFrom4([4]byte{45, 45, 45, 1})
	// defaultOutside and defaultOutside6 are where Dial comes from.
	defaultOutside  = netip.AddrFrom4([4]byte{45, 45, 45, 100})
	defaultOutside6 = netip.MustParseAddr("2001:db8::100")
)

// withDefaults fills in the zero values and refuses what makes no sense.
func (c Config) withDefaults() (Config, error) {
	if !c.Listen.Addr().IsValid() {
		c.Listen = netip.AddrPortFrom(loopback, c.Listen.Port())
	}
	if !c.External.IsValid() {
		c.External = defaultExternal
	}
	c.External = c.External.Unmap()
	if c.Quirks.AnnounceCount == 0 {
		c.Quirks.AnnounceCount = 10
	}
	if c.Quirks.PCP.MaxFilters == 0 {
		c.Quirks.PCP.MaxFilters = 64
	}
	if c.Quirks.PCP.UpdateCount == 0 {
		c.Quirks.PCP.UpdateCount = 3
	}
	for _, name := range c.Protocols {
		if name != serviceNATPMP && name != servicePCP && name != serviceUPnP {
			return c, fmt.Errorf("gatewaytest: %w: no protocol %q", backends.ErrInvalid, name)
		}
	}
	switch {
	case !c.Listen.Addr().Is4():
		return c, fmt.Errorf("gatewaytest: %w: listening on %v, which is not IPv4", backends.ErrInvalid, c.Listen)
	case !c.External.Is4():
		return c, fmt.Errorf("gatewaytest: %w: external address %v is not IPv4", backends.ErrInvalid, c.External)
	case c.MaxLifetime != 0 && c.MaxLifetime < c.MinLifetime:
		return c, fmt.Errorf("gatewaytest: %w: lifetimes from %v to %v", backends.ErrInvalid, c.MinLifetime, c.MaxLifetime)
	case c.Listen6.IsValid() && (!c.Listen6.Addr().Is6() || c.Listen6.Addr().Is4In6()):
		return c, fmt.Errorf("gatewaytest: %w: listening on %v, which is not IPv6", backends.ErrInvalid, c.Listen6)
	case c.Listen6.IsValid() && !c.speaks(servicePCP) && !c.speaks(serviceUPnP), c.Announce6.IsValid() && !c.Listen6.IsValid():
		return c, fmt.Errorf("gatewaytest: %w: IPv6 needs PCP or UPnP, and announcements over IPv6 need Listen6", backends.ErrInvalid)
	case c.Quirks.PCP.MaxFilters < 0 || c.Quirks.PCP.UpdateCount < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config.Quirks.PCP", backends.ErrInvalid)
	case c.TableLimit < 0 || c.Quirks.AnnounceCount < 0 || c.MinLifetime < 0 || c.MaxLifetime < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config", backends.ErrInvalid)
	}
	for _, at := range []*netip.AddrPort{&c.ListenSSDP, &c.ListenHTTP} {
		if !at.Addr().IsValid() {
			*at = netip.AddrPortFrom(c.Listen.Addr(), at.Port())
		}
		if !at.Addr().Is4() || at.Addr().IsMulticast() {
			return c, fmt.Errorf("gatewaytest: %w: UPnP on %v, which is no IPv4 address of a host", backends.ErrInvalid, at)
		}
	}
	var err error
	if c.speaks(serviceUPnP) {
		c.Quirks.UPnP, err = upnpDefaults(c.Quirks.UPnP)
	}
	return c, err
}

// speaks reports whether the gateway speaks the protocol.
func (c Config) speaks(service string) bool {
	return len(c.Protocols) == 0 || slices.Contains(c.Protocols, service)
}

// lifetime is what a gateway of this kind grants for a wish.
func (c Config) lifetime(wish time.Duration) time.Duration {
	granted := max(wish, c.MinLifetime)
	if c.MaxLifetime != 0 {
		granted = min(granted, c.MaxLifetime)
	}
	return granted
}
