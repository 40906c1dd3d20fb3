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

// Port is the port of gateways (RFC 6886, section 3; RFC 6887, section 19.5).
const Port = 5351

// Config says which gateway is meant, and which way leads there.
type Config struct {
	// Gateway is the address and port that requests go to. Port 0 is 5351.
	Gateway netip.AddrPort
	// Interface is the interface to leave by, where the OS lets us choose; empty
	// is the kernel's choice.
	Interface string
	// Source is the local address to send from; the zero Addr is the kernel's choice.
	Source netip.Addr
}

// Conn is the way to one gateway. Its methods may be called by several
// goroutines at once.
type Conn struct {
	config  Config
	dial    dialFunc
	refs    int // guarded by links.mu
	closed  chan struct{}
	dialing chan struct{}  // full while a socket is made
	wg      sync.WaitGroup // readers of sockets

	mu      sync.Mutex
	sock    net.Conn
	pending map[*pending]struct{}
	// sender is who transmitted last: an ICMP error names no request, so it is
	// taken to be about that one.
	sender      *pending
	natpmpEpoch epochClock
	pcpEpoch    epochClock
	watchers    map[*Watch]struct{}
}

// dialFunc makes a connected datagram socket.
type dialFunc func(context.Context, Config) (net.Conn, error)

// links are the open ones: one for each way.
var links = struct {
	mu    sync.Mutex
	byWay map[Config]*Conn
}{byWay: map[Config]*Conn{}}

// queues let one request at a time talk to a gateway: RFC 6886 section 3.1 asks for
// one outstanding request, and cheap gateways drop more.
var queues ctxsync.Queues[netip.AddrPort]

// Open returns the process's link for the way, making it where there is none.
// It does no I/O. Every Open needs a Close.
func Open(config Config) (*Conn, error) {
	return open(config, dialUDP)
}

func open(config Config, dial dialFunc) (*Conn, error) {
	addr := config.Gateway.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() {
		return nil, errors.New("no gateway address")
	}
	config.Gateway = netip.AddrPortFrom(addr, cmp.Or(config.Gateway.Port(), Port))
	links.mu.Lock()
	defer links.mu.Unlock()
	if l := links.byWay[config]; l != nil {
		l.refs++
		return l, nil
	}
	l := &Conn{
		config: config, dial: dial, refs: 1,
		closed:   make(chan struct{}),
		dialing:  make(chan struct{}, 1),
		pending:  map[*pending]struct{}{},
		watchers: map[*Watch]struct{}{},
	}
	links.byWay[config] = l
	return l, nil
}

// Close gives the link up. The last of those who opened it ends what is under
// way on it, with net.ErrClosed, and waits for its reader.
func (l *Conn) Close() {
	links.mu.Lock()
	l.refs--
	last := l.refs == 0
	if last {
		delete(links.byWay, l.config)
	}
	links.mu.Unlock()
	if !last {
		return
	}
	l.mu.Lock()
	close(l.closed) // under mu, so that no socket is made after it
	sock := l.sock
	l.sock = nil
	l.mu.Unlock()
	if sock != nil {
		_ = sock.Close()
	}
	l.wg.Wait()
}

// Gateway returns the address and port that requests go to.
func (l *Conn) Gateway() netip.AddrPort { return l.config.Gateway }

// Local returns the local address that requests leave from. It sends nothing.
func (l *Conn) Local(ctx context.Context) (netip.Addr, error) {
	sock, err := l.socket(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return netip.Addr{}, context.Cause(ctx)
	case errors.Is(err, net.ErrClosed):
		return netip.Addr{}, net.ErrClosed
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%w: cannot send to %v: %w", backends.ErrNoReply, l.config.Gateway, err)
	}
	return localAddr(sock), nil
}

// ObserveNATPMP records the epoch of a NAT-PMP response that answered one of
// our questions, and tells the watchers where it shows a loss of state.
func (l *Conn) ObserveNATPMP(epoch time.Duration, r Reply) {
	l.observe(&l.natpmpEpoch, natpmpLost, epoch, r, "the gateway's clock went back")
}

// ObservePCP is ObserveNATPMP for a PCP response. The two are kept apart: one
// server can count them differently.
func (l *Conn) ObservePCP(epoch time.Duration, r Reply) {
	l.observe(&l.pcpEpoch, pcpLost, epoch, r, "the gateway's clock jumped")
}

func (l *Conn) observe(c *epochClock, lost epochRule, epoch time.Duration, r Reply, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost, since := c.observe(epoch, r.Sent, r.Received, lost); lost {
		l.signal(Hint{Restarted: true, Since: since, Reason: reason})
	}
}

// signal tells all watchers. l.mu is held.
func (l *Conn) signal(s Hint) {
	for w := range l.watchers {
		w.push(s)
	}
}

// isClosed reports whether the last user has closed the link.
func (l *Conn) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// current returns the link's socket, or nil if there is none.
func (l *Conn) current() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sock
}

// socket returns the link's socket. If there is none, it makes one and starts its
// reader; other calls wait for that.
func (l *Conn) socket(ctx context.Context) (net.Conn, error) {
	if sock := l.current(); sock != nil {
		return sock, nil
	}
	select {
	case l.dialing <- struct{}{}:
		defer func() { <-l.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.closed:
		return nil, net.ErrClosed
	}
	if sock := l.current(); sock != nil {
		return sock, nil
	}
	made, err := l.dial(ctx, l.config)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isClosed() {
		_ = made.Close()
		return nil, net.ErrClosed
	}
	l.sock = made
	l.wg.Go(func() { l.read(made) })
	return made, nil
}

// drop makes the next transmission use a new socket.
func (l *Conn) drop(sock net.Conn) {
	l.mu.Lock()
	if l.sock == sock {
		l.sock = nil
	}
	l.mu.Unlock()
	_ = sock.Close()
}

// maxDatagram is the size of the largest message of both protocols (RFC 6887,
// section 7).
const maxDatagram = 1100

// read gives each datagram to the exchange that it answers, until the socket
// fails.
func (l *Conn) read(sock net.Conn) {
	buf := make([]byte, maxDatagram+1)
	for {
		n, err := sock.Read(buf)
		switch {
		case err == nil && n <= maxDatagram:
			l.deliver(buf[:n], time.Now(), localAddr(sock))
		case err == nil:
		case isRefused(err):
			l.refuse()
		case errors.Is(err, net.ErrClosed):
			return
		default:
			l.drop(sock)
			return
		}
	}
}

// localAddr is the address that the socket is bound to.
func localAddr(sock net.Conn) netip.Addr {
	if a, ok := sock.LocalAddr().(*net.UDPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// dialUDP makes a socket that is connected to the gateway: the kernel then
// drops what comes from elsewhere, chooses the source address, and reports a
// closed port.
func dialUDP(ctx context.Context, config Config) (net.Conn, error) {
	var d net.Dialer
	if config.Source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(config.Source, 0))
	}
	if config.Interface != "" {
		ifi, err := net.InterfaceByName(config.Interface)
		if err != nil {
			return nil, err
		}
		if d.Control, err = netbind.Control(ifi); err != nil {
			return nil, err
		}
	}
	return d.DialContext(ctx, "udp", config.Gateway.String())
}
