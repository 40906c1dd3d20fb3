package gatewaytest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Gateway is a running router. Its methods are safe for concurrent use.
type Gateway struct {
	config         Config
	clock          *clock
	table          *table
	record         *recorder
	faults         faults
	natpmp         natpmpServer
	pcp            pcpServer
	upnp           upnpServer
	udpServers     []*udpServer // for NAT-PMP and PCP: over IPv4, and over IPv6 if Config.Listen6 is set
	delayedReplies atomic.Int32 // number of replies that wait for a delay or a fault

	done    <-chan struct{} // closed by Close
	stop    context.CancelFunc
	onClose func(func()) (forget func() bool) // registers a function that Close calls
	wg      sync.WaitGroup                    // incremented only by spawn and by methods that hold mu

	mu              sync.Mutex
	closed          bool
	external        netip.Addr
	boot            time.Time          // on the gateway's clock; the epoch counts from it
	cancelAnnounce  context.CancelFunc // ends the current series of announcements
	cancelNotify    context.CancelFunc // ends the current series of ssdp:alive notifications
	cancelUpdates   context.CancelFunc // ends the current series of mapping updates
	outsideConns    map[io.Closer]struct{}
	outsideUDP      map[netip.AddrPort]*packetConn
	lastOutsidePort uint16 // the port that the gateway chose last, minus firstHighPort
}

// TB is the part of *testing.T, *testing.B and *testing.F that New uses. It is an
// interface so that a program that starts a gateway does not link package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// New starts a gateway and closes it when the test ends. If the gateway does not start,
// New fails the test.
func New(t TB, config Config) *Gateway {
	t.Helper()
	g, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// Start starts a gateway without a test. The caller must close it. Start fails with an
// error that wraps backends.ErrInvalid if config is invalid, and with the system's error if
// it cannot listen on an address.
func Start(config Config) (*Gateway, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	g := newGateway(config)
	if err := g.Up(); err != nil {
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

// newGateway returns a gateway that does not listen yet.
func newGateway(config Config) *Gateway {
	ctx, cancel := context.WithCancel(context.Background())
	clock := newClock(config.ManualClock)
	g := &Gateway{
		config:       config,
		clock:        clock,
		table:        newTable(clock, config.TableLimit),
		record:       newRecorder(),
		done:         ctx.Done(),
		stop:         cancel,
		onClose:      func(f func()) func() bool { return context.AfterFunc(ctx, f) },
		external:     config.External,
		boot:         clock.now().Add(-config.Uptime),
		outsideConns: make(map[io.Closer]struct{}),
		outsideUDP:   make(map[netip.AddrPort]*packetConn),
	}
	g.udpServers = []*udpServer{{network: "udp4", addr: config.Listen, handle: g.receive}}
	if config.Listen6.IsValid() {
		g.udpServers = append(g.udpServers, &udpServer{network: "udp6", addr: config.Listen6, handle: g.receive})
	}
	g.natpmp.g, g.natpmp.quirks = g, config.Quirks.NATPMP
	g.pcp.g, g.pcp.quirks = g, config.Quirks.PCP
	g.upnp.init(g, config)
	return g
}

// Close stops the gateway, closes the connections and sockets that Dial and ListenPacket
// returned, and waits for the gateway's goroutines. It returns nil. It may be called
// more than once. Functions that the gateway calls, for example those of a Fault, must
// not call it.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	conns := append(g.detachUDP(), g.upnp.detachListeners()...)
	outsideConns := g.outsideConns
	g.outsideConns = nil
	g.mu.Unlock()

	g.stop()
	closeAll(conns)
	closeAll(slices.Collect(maps.Keys(outsideConns)))
	g.upnp.closeConns()
	g.wg.Wait()
	return nil
}

// spawn runs f on a goroutine that Close waits for. If the gateway is closed, spawn does
// nothing.
func (g *Gateway) spawn(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Go(f)
	}
}

// isClosed reports whether Close has begun.
func (g *Gateway) isClosed() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}

// supports reports whether the gateway supports the protocol.
func (g *Gateway) supports(service string) bool { return g.config.supports(service) }

// Addr returns the address at which the gateway receives NAT-PMP and PCP requests. It
// stays the same while the gateway is down.
func (g *Gateway) Addr() netip.AddrPort { return g.udpServers[0].addr }

// Addr6 returns the address at which the gateway receives PCP requests over IPv6.
// Without [Config.Listen6] it returns the zero AddrPort.
func (g *Gateway) Addr6() netip.AddrPort {
	if len(g.udpServers) < 2 {
		return netip.AddrPort{}
	}
	return g.udpServers[1].addr
}

// AnnounceAddr returns the address to which NAT-PMP and PCP announcements are sent, for
// a listener such as forward.TestNetwork.Announce. It is [Config.Announce] or, if
// that is zero, the address that the gateway chose.
func (g *Gateway) AnnounceAddr() netip.AddrPort { return g.config.Announce }

// NotifyAddr returns the address to which UPnP notifications are sent, for a listener
// such as forward.TestNetwork.Notify. It is [Config.Notify] or, if that is zero, the
// address that the gateway chose.
func (g *Gateway) NotifyAddr() netip.AddrPort { return g.config.Notify }

// External returns the virtual external address. 0.0.0.0 means that the gateway has no
// external address.
func (g *Gateway) External() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.external
}

// sessionAddr returns the external address of a session: the zero Addr, or
// secondSession.
func (g *Gateway) sessionAddr(session netip.Addr) netip.Addr {
	addr := g.External()
	if session == secondSession && !addr.IsUnspecified() {
		return addr.Next()
	}
	return addr
}

// SetExternal changes the external IPv4 address of the gateway and announces the change.
// The table stays as it is. With quirks.PCP.MappingUpdates, it also calls
// [Gateway.UpdateMappings]. 0.0.0.0 and the zero Addr mean that the gateway has no
// external address.
func (g *Gateway) SetExternal(addr netip.Addr) {
	addr = addr.Unmap()
	if !addr.Is4() {
		addr = netip.IPv4Unspecified()
	}
	g.mu.Lock()
	g.external = addr
	g.mu.Unlock()
	g.upnp.addressChanged()
	g.Announce()
	if g.config.Quirks.PCP.MappingUpdates {
		g.UpdateMappings()
	}
}

// epoch returns the time since the gateway's table was last empty, on the gateway's
// clock.
func (g *Gateway) epoch() time.Duration {
	now := g.clock.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	return now.Sub(g.boot)
}

// Advance moves the gateway's clock forward by d: entries expire and the epoch grows.
func (g *Gateway) Advance(d time.Duration) { g.clock.advance(d) }

// RestartOptions defines how a gateway restarts.
type RestartOptions struct {
	// KeepEpoch continues the epoch over the restart, as some gateways do in violation
	// of the standards.
	KeepEpoch bool
	// KeepTable keeps the mappings. Static mappings are always kept.
	KeepTable bool
	// Silent suppresses the announcement.
	Silent bool
	// Disconnect closes the TCP connections that Dial returned.
	Disconnect bool
}

// Restart simulates a short power failure. The gateway loses its mappings, the epoch and
// the UPnP uptime start from 0, the SSDP BOOTID changes, and the gateway announces
// itself as [Gateway.Announce] does. Connections and packet sockets from outside stay
// open. The options in o change this.
func (g *Gateway) Restart(o RestartOptions) {
	if !o.KeepTable {
		g.table.clear()
	}
	if !o.KeepEpoch {
		now := g.clock.now()
		g.mu.Lock()
		g.boot = now
		g.mu.Unlock()
	}
	if o.Disconnect {
		g.disconnect()
	}
	g.upnp.restart()
	if !o.Silent {
		g.Announce()
	}
}

// Table returns a snapshot of the mappings, sorted by transport protocol and external
// endpoint.
func (g *Gateway) Table() []Entry {
	all := g.table.entries()
	for i, e := range all {
		if !e.External.Addr().Is6() {
			all[i].External = netip.AddrPortFrom(g.sessionAddr(e.External.Addr()), e.External.Port())
		}
	}
	return all
}

// AddMapping adds an entry as an administrator or another host of the LAN would, for
// example to occupy a port. Only the port of e.External is used; the address is ignored.
// Inbound traffic is forwarded to e.Internal.
//
// AddMapping fails with an error that wraps backends.ErrInvalid if e is incomplete,
// backends.ErrConflict if the port is taken or belongs to the gateway itself (UDP 5350
// and 5351), and backends.ErrNoResources if the table is full.
func (g *Gateway) AddMapping(e Entry) error {
	if e.Protocol == 0 || e.External.Port() == 0 || !e.Internal.IsValid() || e.Internal.Port() == 0 {
		return fmt.Errorf("gatewaytest: %w: an entry needs a protocol, an internal endpoint and an external port", backends.ErrInvalid)
	}
	e.Remaining, e.Service = cmp.Or(e.Remaining, backends.Forever), cmp.Or(e.Service, "admin")
	e.External = netip.AddrPortFrom(netip.Addr{}, e.External.Port())
	e.Remote = netip.AddrPort{}
	// A second external port of the same internal endpoint is a second entry.
	_, err := g.table.grant(mappingSpec{Entry: e, exactPort: true, allowSecond: true, ignoreNonce: true})
	if err != nil {
		return fmt.Errorf("%w: %v port %d", err, e.Protocol, e.External.Port())
	}
	return nil
}

// RemoveMapping deletes the entry, or the entries of both sessions, at an external IPv4
// port, even if it is static. It reports whether there was such an entry.
func (g *Gateway) RemoveMapping(p backends.Protocol, externalPort uint16) bool {
	first := g.table.deleteExternal(transportAddr{p, netip.AddrPortFrom(netip.Addr{}, externalPort)})
	return g.table.deleteExternal(transportAddr{p, netip.AddrPortFrom(secondSession, externalPort)}) || first
}

// Config returns a config for a Forwarder that uses this gateway, its announcements and
// its UPnP device. Each call returns a new config; the caller may set its other fields.
func (g *Gateway) Config() *forward.Config {
	return &forward.Config{
		Gateway: g.Addr(),
		Test:    forward.TestNetwork{Announce: g.AnnounceAddr(), SSDP: g.SSDP(), Notify: g.NotifyAddr()},
	}
}

// privatePrefixes are the addresses to which hosts on the internet cannot connect:
// private, shared and link-local addresses, and those for protocol assignments (RFC
// 6890).
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("192.0.0.0/24"),
}

// isPrivate reports whether hosts on the internet cannot reach the address.
func isPrivate(addr netip.Addr) bool {
	for _, p := range privatePrefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// clock is the gateway's clock. Unless it is manual, it runs with real time.
type clock struct {
	start  time.Time
	manual bool

	mu     sync.Mutex
	offset time.Duration
}

// newClock returns a clock that starts at the current time.
func newClock(manual bool) *clock { return &clock{start: time.Now(), manual: manual} }

// now returns the time on the clock.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		return c.start.Add(c.offset)
	}
	return time.Now().Add(c.offset)
}

// advance moves the clock forward by d.
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}
