package gatewaytest

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Gateway is a running router. Its methods may be called by several goroutines
// at once.
type Gateway struct {
	config         Config
	clock          *clock
	table          *table
	record         *recorder
	faults         faults
	natpmp         natpmpServer
	pcp            pcpServer
	upnp           upnpServer
	udpServers     []*udpServer // of NAT-PMP and PCP over IPv4, and over IPv6 if there is one
	delayedReplies atomic.Int32 // answers held back

	done    <-chan struct{} // closed by Close
	stop    context.CancelFunc
	onClose func(func()) (forget func() bool)
	wg      sync.WaitGroup // joined only through spawn

	mu              sync.Mutex
	closed          bool
	external        netip.Addr
	boot            time.Time          // on the gateway's clock; the epoch counts from it
	cancelAnnounce  context.CancelFunc // ends the series under way
	cancelNotify    context.CancelFunc // the same of ssdp:alive
	cancelUpdates   context.CancelFunc // the same of mapping updates
	outsideConns    map[io.Closer]struct{}
	outsideUDP      map[netip.AddrPort]*packetConn
	lastOutsidePort uint16 // the last one that the gateway chose
}

// TB is what New needs of a *testing.T, *testing.B or *testing.F. It is an interface, so
// that a program that starts a gateway does not link package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// New starts a gateway that is closed when the test ends. If that fails, so does the test.
func New(t TB, config Config) *Gateway {
	t.Helper()
	g, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// Start starts a gateway without a test. Close it in the end. It fails with an error that
// is backends.ErrInvalid if config makes no sense, and with the system's error if an
// address cannot be listened on.
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

// newGateway is a gateway that does not listen yet.
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

// Close stops the gateway, closes what Dial and ListenPacket gave, and waits
// for its goroutines. It returns nil. It may be called more than once, but not by a
// function that the gateway calls.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	conns := append(g.detachUDP(), g.upnp.detachListeners()...)
	outsideConns := g.outsideConns
	g.outsideConns = nil
	g.mu.Unlock()

	g.stop()
	for _, conn := range conns {
		_ = conn.Close()
	}
	for c := range outsideConns {
		_ = c.Close()
	}
	g.upnp.closeConns()
	g.wg.Wait()
	return nil
}

// spawn runs f on a goroutine that Close waits for, unless closed.
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

// speaks reports whether the gateway speaks the protocol.
func (g *Gateway) supports(service string) bool { return g.config.supports(service) }

// Addr is the address where the gateway answers NAT-PMP and PCP. It stays the same while
// the gateway is down.
func (g *Gateway) Addr() netip.AddrPort { return g.udpServers[0].addr }

// Addr6 is the address where the gateway answers PCP over IPv6, or the zero AddrPort
// without [Config.Listen6].
func (g *Gateway) Addr6() netip.AddrPort {
	if len(g.udpServers) < 2 {
		return netip.AddrPort{}
	}
	return g.udpServers[1].addr
}

// AnnounceAddr is the address that announcements of NAT-PMP and PCP go to, for a listener
// such as forward.TestNetwork.Announce: [Config.Announce], or what the gateway chose for it.
func (g *Gateway) AnnounceAddr() netip.AddrPort { return g.config.Announce }

// NotifyAddr is the address that notifications of UPnP go to, for a listener such as
// forward.TestNetwork.Notify: [Config.Notify], or what the gateway chose for it.
func (g *Gateway) NotifyAddr() netip.AddrPort { return g.config.Notify }

// External is the virtual external address; 0.0.0.0 is none.
func (g *Gateway) External() netip.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.external
}

// SetExternal gives the gateway another external IPv4 address, with the table
// as it is, and announces it. With quirks.PCP.MappingUpdates it calls
// [Gateway.UpdateMappings] too. 0.0.0.0 or the zero Addr is no address.
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

// epoch is the time since the gateway's table was last empty, on its clock.
func (g *Gateway) epoch() time.Duration {
	now := g.clock.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	return now.Sub(g.boot)
}

// Advance moves the gateway's clock: entries expire and the epoch grows.
func (g *Gateway) Advance(d time.Duration) { g.clock.advance(d) }

// RestartOptions say how a gateway restarts.
type RestartOptions struct {
	// KeepEpoch lets the epoch go on, as a gateway does that must not.
	KeepEpoch bool
	// KeepTable keeps the mappings. Static ones are always kept.
	KeepTable bool
	// Silent leaves the announcement out.
	Silent bool
	// Disconnect closes the connections that Dial gave.
	Disconnect bool
}

// Restart behaves as if the power had failed for a moment: mappings are lost,
// the epoch and UPnP's uptime start from 0, SSDP has another BOOTID, and the
// gateway announces itself as [Gateway.Announce] does. Connections and packet sockets from
// outside stay, unless o says otherwise.
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

// Table returns a snapshot of the mappings, by protocol and external port.
func (g *Gateway) Table() []Entry {
	all := g.table.entries()
	external := g.External()
	for i, e := range all {
		if !e.External.Addr().IsValid() {
			all[i].External = netip.AddrPortFrom(external, e.External.Port())
		}
	}
	return all
}

// AddMapping adds an entry as an administrator or another host of the LAN would, for
// example to make a port taken. Of External only the port counts. Inbound traffic goes
// to Internal. It fails with an error that wraps
// backends.ErrInvalid if e lacks something, backends.ErrConflict if the port is taken or
// the gateway's own (UDP 5350 and 5351), and backends.ErrNoResources if the table is full.
func (g *Gateway) AddMapping(e Entry) error {
	if e.Protocol == 0 || e.External.Port() == 0 || !e.Internal.IsValid() || e.Internal.Port() == 0 {
		return fmt.Errorf("gatewaytest: %w: an entry has a protocol, an internal endpoint and an external port", backends.ErrInvalid)
	}
	if e.Remaining == 0 {
		e.Remaining = backends.Forever
	}
	if e.Service == "" {
		e.Service = "admin"
	}
	e.External = netip.AddrPortFrom(netip.Addr{}, e.External.Port())
	e.Remote = netip.AddrPort{}
	// Another port of the same host is another entry.
	_, err := g.table.grant(mappingSpec{Entry: e, exactPort: true, allowSecond: true, ignoreNonce: true})
	if err != nil {
		return fmt.Errorf("%w: %v port %d", err, e.Protocol, e.External.Port())
	}
	return nil
}

// RemoveMapping removes the entry at an external IPv4 port, static or not, and
// reports whether there was one.
func (g *Gateway) RemoveMapping(p backends.Protocol, externalPort uint16) bool {
	return g.table.deleteExternal(endpoint{p, netip.AddrPortFrom(netip.Addr{}, externalPort)})
}

// Config returns a config for a Forwarder that uses the gateway, also its announcements and
// UPnP devices. Each call returns another one, whose other fields are the caller's to set.
func (g *Gateway) Config() *forward.Config {
	return &forward.Config{
		Gateway: g.Addr(),
		Test:    forward.TestNetwork{Announce: g.AnnounceAddr(), SSDP: g.SSDP(), Notify: g.NotifyAddr()},
	}
}

// private4 is where hosts on the internet cannot connect to: private, shared
// and link-local addresses, and those of protocol assignments (RFC 6890).
var privatePrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("192.0.0.0/24"),
}

// private reports whether hosts on the internet cannot reach the address.
func isPrivate(addr netip.Addr) bool {
	for _, p := range privatePrefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// clock is the router's clock.
type clock struct {
	start  time.Time
	manual bool

	mu     sync.Mutex
	offset time.Duration
}

func newClock(manual bool) *clock { return &clock{start: time.Now(), manual: manual} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		return c.start.Add(c.offset)
	}
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}
