package port5351

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/netbind"
)

// Port is the UDP port on which gateways receive requests (RFC 6886, section 3; RFC
// 6887, section 19.5).
const Port = 5351

// Config names a gateway and how to reach it. Conns with equal Configs are shared.
type Config struct {
	// Gateway is the address and port to which requests are sent. Port 0 means
	// 5351.
	Gateway netip.AddrPort
	// Interface is the network interface that sends the requests, if the operating
	// system lets a program choose it. If it is empty, the kernel chooses.
	Interface string
	// Source is the local address of the socket. The zero Addr lets the kernel
	// choose.
	Source netip.Addr
}

// Conn sends requests to one gateway and receives its replies. Its methods may be
// called by several goroutines at once.
type Conn struct {
	config  Config
	dial    dialFunc
	refs    int // guarded by conns.mu
	closed  chan struct{}
	dialing chan struct{}  // holds one element while a socket is opened
	wg      sync.WaitGroup // the goroutines that read sockets

	mu      sync.Mutex
	sock    net.Conn
	pending map[*inFlight]struct{}
	// lastSender is the transaction that transmitted last. An ICMP error does not
	// identify a request, so it is attributed to lastSender.
	lastSender  *inFlight
	natpmpEpoch epochClock
	pcpEpoch    epochClock
	losses      int // how often an epoch has shown a loss of state
	watchers    map[*Watch]struct{}
}

// dialFunc opens a connected datagram socket.
type dialFunc func(context.Context, Config) (net.Conn, error)

// conns has the open Conns, one for each Config.
var conns = struct {
	mu       sync.Mutex
	byConfig map[Config]*Conn
}{byConfig: map[Config]*Conn{}}

// queues limit each gateway to one request at a time. RFC 6886 section 3.1 requires
// one outstanding request, and cheap gateways drop further requests.
var queues ctxsync.Queues[netip.AddrPort]

// Open returns the Conn of the process for the config, and creates it if there is
// none. Open does no I/O. Each Open requires one Close.
func Open(config Config) (*Conn, error) {
	return open(config, dialUDP)
}

func open(config Config, dial dialFunc) (*Conn, error) {
	addr := config.Gateway.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() {
		return nil, errors.New("no gateway address")
	}
	config.Gateway = netip.AddrPortFrom(addr, cmp.Or(config.Gateway.Port(), Port))
	conns.mu.Lock()
	defer conns.mu.Unlock()
	if c := conns.byConfig[config]; c != nil {
		c.refs++
		return c, nil
	}
	c := makeConn(config, dial)
	conns.byConfig[config] = c
	return c, nil
}

func makeConn(config Config, dial dialFunc) *Conn {
	return &Conn{
		config: config, dial: dial, refs: 1,
		closed:   make(chan struct{}),
		dialing:  make(chan struct{}, 1),
		pending:  map[*inFlight]struct{}{},
		watchers: map[*Watch]struct{}{},
	}
}

// Close releases the Conn. The last Close ends the calls that are in progress with
// net.ErrClosed, and waits for the goroutine that reads the socket.
func (c *Conn) Close() {
	conns.mu.Lock()
	c.refs--
	last := c.refs == 0
	if last && conns.byConfig[c.config] == c {
		delete(conns.byConfig, c.config)
	}
	conns.mu.Unlock()
	if !last {
		return
	}
	c.mu.Lock()
	close(c.closed) // with mu held, so that no socket is opened later
	sock := c.sock
	c.sock = nil
	c.mu.Unlock()
	if sock != nil {
		_ = sock.Close()
	}
	c.wg.Wait()
}

// Gateway returns the address and port to which requests are sent.
func (c *Conn) Gateway() netip.AddrPort { return c.config.Gateway }

// Local returns the local address and port from which requests are sent. It sends
// nothing.
func (c *Conn) Local(ctx context.Context) (netip.AddrPort, error) {
	sock, err := c.socket(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return netip.AddrPort{}, context.Cause(ctx)
	case errors.Is(err, net.ErrClosed):
		return netip.AddrPort{}, net.ErrClosed
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("%w: cannot send to %v: %w", backends.ErrNoReply, c.config.Gateway, err)
	}
	return localAddr(sock), nil
}

// ObserveNATPMP records the epoch of a NAT-PMP response to a request of this
// process. If the epoch shows that the gateway lost its state, the watchers receive
// a Hint.
func (c *Conn) ObserveNATPMP(epoch time.Duration, reply Reply) {
	c.observe(&c.natpmpEpoch, natpmpLost, epoch, reply, "the gateway's clock went back")
}

// ObservePCP is ObserveNATPMP for a PCP response. The two epochs are kept apart,
// because one server can count them differently.
func (c *Conn) ObservePCP(epoch time.Duration, reply Reply) {
	c.observe(&c.pcpEpoch, pcpLost, epoch, reply, "the gateway's clock jumped")
}

func (c *Conn) observe(clock *epochClock, rule epochRule, epoch time.Duration, reply Reply, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if lost, since := clock.observe(epoch, reply.Sent, reply.Received, rule); lost {
		c.losses++
		c.notifyWatchers(Hint{Restarted: true, Since: since, Reason: reason})
	}
}

// Losses returns how often the epochs have shown that the gateway lost its state.
func (c *Conn) Losses() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.losses
}

// SendHint sends a Hint to the watchers.
func (c *Conn) SendHint(hint Hint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notifyWatchers(hint)
}

// notifyWatchers sends the hint to all watchers. c.mu must be held.
func (c *Conn) notifyWatchers(hint Hint) {
	for w := range c.watchers {
		w.push(hint)
	}
}

// isClosed reports whether the last user has closed the Conn.
func (c *Conn) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// currentSocket returns the open socket, or nil if there is none.
func (c *Conn) currentSocket() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sock
}

// socket returns the open socket. If there is none, it opens one and starts to read
// from it. Concurrent calls wait for that socket.
func (c *Conn) socket(ctx context.Context) (net.Conn, error) {
	if sock := c.currentSocket(); sock != nil {
		return sock, nil
	}
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.closed:
		return nil, net.ErrClosed
	}
	if sock := c.currentSocket(); sock != nil {
		return sock, nil
	}
	sock, err := c.dial(ctx, c.config)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		_ = sock.Close()
		return nil, net.ErrClosed
	}
	c.sock = sock
	c.wg.Go(func() { c.readLoop(sock) })
	return sock, nil
}

// discardSocket closes the socket. The next transmission opens a new one.
func (c *Conn) discardSocket(sock net.Conn) {
	c.mu.Lock()
	if c.sock == sock {
		c.sock = nil
	}
	c.mu.Unlock()
	_ = sock.Close()
}

// maxDatagram is the size of the largest PCP message (RFC 6887, section 7). NAT-PMP
// messages are shorter.
const maxDatagram = 1100

// readLoop delivers each datagram to the transaction that it answers, until the
// socket fails.
func (c *Conn) readLoop(sock net.Conn) {
	buf := make([]byte, maxDatagram+1)
	for {
		n, err := sock.Read(buf)
		switch {
		case err == nil && n <= maxDatagram:
			c.deliver(buf[:n], time.Now(), localAddr(sock).Addr())
		case err == nil:
		case isRefused(err):
			c.deliverRefusal()
		case errors.Is(err, net.ErrClosed):
			return
		default:
			c.discardSocket(sock)
			return
		}
	}
}

// localAddr returns the address and port to which the socket is bound.
func localAddr(sock net.Conn) netip.AddrPort {
	if a, ok := sock.LocalAddr().(*net.UDPAddr); ok {
		return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// dialUDP opens a socket that is connected to the gateway. The kernel then drops
// datagrams from other addresses, chooses the source address, and reports a closed
// port.
func dialUDP(ctx context.Context, config Config) (net.Conn, error) {
	var d net.Dialer
	if config.Source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(config.Source, 0))
	}
	if config.Interface != "" {
		var err error
		if d.Control, err = netbind.ControlNamed(config.Interface); err != nil {
			return nil, err
		}
	}
	sock, err := d.DialContext(ctx, "udp", config.Gateway.String())
	if err != nil && config.Interface != "" {
		err = fmt.Errorf("interface %q: %w", config.Interface, err)
	}
	return sock, err
}
