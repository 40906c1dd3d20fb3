package gatewaytest

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// Config says what kind of router to start. The zero value is a well-behaved
// one on a loopback port of the system's choice.
type Config struct {
	// Listen is where the gateway answers requests; the standards say port 5351.
	// The zero address is 127.0.0.1, port 0 any free port. IPv4 only.
	Listen netip.AddrPort
	// Listen6 is where PCP is answered over IPv6, such as [::1]:0, and UPnP on other
	// ports of the address. The zero value: nowhere. Start fails on a machine without the address.
	Listen6 netip.AddrPort
	// External is the virtual external address. The zero Addr is 45.45.45.1;
	// 0.0.0.0 is a gateway without an address, see [NATPMP.RefusePrivate] for private ones.
	External netip.Addr
	// Announce is where announcements go: a socket of the test on loopback, or
	// 224.0.0.1:5350 as the standards say. The zero value: nowhere.
	Announce netip.AddrPort
	// Announce6 is the same over IPv6, always in PCP's form: the standard says
	// [ff02::1]:5350, with a zone. It needs Listen6.
	Announce6 netip.AddrPort
	// AnnounceAs is the form of announcements to Announce. The zero value is NAT-PMP's.
	AnnounceAs AnnounceForm
	// AnnounceCount is how many packets an announcement has, 250 ms, 500 ms,
	// 1 s … apart. Zero is ten (RFC 6886, section 3.2.1; RFC 6887, section 14.1).
	// The notifications of UPnP are three at most.
	AnnounceCount int
	// MinLifetime and MaxLifetime bound what is granted, in whole seconds. Zero: as asked.
	MinLifetime, MaxLifetime time.Duration
	// TableLimit is how many mappings fit. Zero: as many as there are ports.
	TableLimit int
	// MultiplePorts makes a request for an internal port that is mapped already
	// add a mapping where it names another external port, as miniupnpd does. By
	// default it gets the port already assigned (RFC 6886, section 3.3). NAT-PMP's only.
	MultiplePorts bool
	// Admit says whose requests are heard; the others are dropped. Nil: everybody's.
	Admit func(netip.Addr) bool
	// ManualClock stops the gateway's clock: only Advance moves it.
	ManualClock bool
	// NATPMP has the quirks of the NAT-PMP server.
	NATPMP NATPMP
	// PCP has the options and quirks of the PCP server, on the same port.
	PCP PCP
	// UPnP has the options and quirks of the Internet Gateway Device, on ports of its own.
	UPnP UPnP
}

// NATPMP has the quirks of the NAT-PMP server. The zero value follows RFC 6886.
type NATPMP struct {
	// Off leaves version 0 to PCP, which refuses it with 24 bytes of version 2
	// and result 1; with PCP off too it is ignored.
	Off bool
	// VersionError is the answer to other versions, while PCP is off.
	VersionError VersionErrorForm
	// ShortOpcodeError answers an unknown opcode with eight bytes and the epoch,
	// as miniupnpd does, rather than with the request itself (RFC 6886, section 3.5).
	ShortOpcodeError bool
	// RefusePrivate answers with result 3 while the external address is private
	// or carrier-grade, as miniupnpd does. By default the address is told.
	// Without any address (0.0.0.0) the result is always 3.
	RefusePrivate bool
	// AnyDeletePort accepts a deletion that names an external port, which the
	// standard forbids (RFC 6886, section 3.4). By default it is refused with result 2.
	AnyDeletePort bool
	// EchoErrors echoes the wished port and lifetime in errors, where the
	// standard wants zeros.
	EchoErrors bool
	// LowByte keeps only the low eight bits of the ports in answers.
	LowByte bool
	// EpochStuck tells 0 as the epoch, always.
	EpochStuck bool
	// EpochBack lets two clones answer in turn, the second with an epoch 1000 s
	// behind the first's.
	EpochBack bool
	// ExternalZero tells 0.0.0.0 as the external address, with success.
	ExternalZero bool
	// VPN behaves as the gateways of VPN providers do: internal port 0 is
	// welcome, a client has one port, the same inside and outside and for both
	// protocols, whatever it wished; answers have internal port 0 and 60 s.
	VPN bool
	// PCPOnly answers version 0 as Off does, whether PCP is off or not.
	PCPOnly bool
	// PCPOnlyTruncated is PCPOnly with the short answers of some routers: 2
	// bytes, or 12 to a mapping request.
	PCPOnlyTruncated bool
}

// VersionErrorForm is how a NAT-PMP gateway answers an unknown version.
type VersionErrorForm uint8

// The forms of an answer to an unknown version.
const (
	// VersionErrorRFC: eight bytes with opcode 0 (RFC 6886, section 3.5).
	VersionErrorRFC VersionErrorForm = iota
	// VersionErrorOpcode: eight bytes with the request's opcode plus 128.
	VersionErrorOpcode
	// VersionErrorSilent: none.
	VersionErrorSilent
)

// AnnounceForm is the protocol of announcements.
type AnnounceForm uint8

// The forms of an announcement.
const (
	// AnnounceNATPMP: 12 bytes (RFC 6886, section 3.2.1).
	AnnounceNATPMP AnnounceForm = iota
	// AnnouncePCP: 24 bytes, the ANNOUNCE opcode (RFC 6887, section 14.1).
	AnnouncePCP
	// AnnounceBoth: first the one, then the other.
	AnnounceBoth
)

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
	if c.AnnounceCount == 0 {
		c.AnnounceCount = 10
	}
	if c.PCP.MaxFilters == 0 {
		c.PCP.MaxFilters = 64
	}
	if c.PCP.UpdateCount == 0 {
		c.PCP.UpdateCount = 3
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
	case c.Listen6.IsValid() && c.PCP.Off && c.UPnP.Off, c.Announce6.IsValid() && !c.Listen6.IsValid():
		return c, fmt.Errorf("gatewaytest: %w: IPv6 needs PCP or UPnP, and announcements over IPv6 need Listen6", backends.ErrInvalid)
	case c.PCP.MaxFilters < 0 || c.PCP.UpdateCount < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config.PCP", backends.ErrInvalid)
	case c.TableLimit < 0 || c.AnnounceCount < 0 || c.MinLifetime < 0 || c.MaxLifetime < 0:
		return c, fmt.Errorf("gatewaytest: %w: negative number in Config", backends.ErrInvalid)
	}
	var err error
	if !c.UPnP.Off {
		c.UPnP, err = c.UPnP.withDefaults(c.Listen.Addr())
	}
	return c, err
}

// lifetime is what a gateway of this kind grants for a wish.
func (c Config) lifetime(wish time.Duration) time.Duration {
	granted := max(wish, c.MinLifetime)
	if c.MaxLifetime != 0 {
		granted = min(granted, c.MaxLifetime)
	}
	return granted
}
