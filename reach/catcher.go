package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/catch"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/netbind"
)

// pollInterval is the interval at which the table of sockets is read while a connection is
// expected. A prober keeps its connection open longer.
const pollInterval = 20 * time.Millisecond

// maxExamined is the number of connections that are examined at once.
const maxExamined = 32

// Port is a Catcher for a port of this host that does not report to a program's own Catcher.
// Close it after use.
type Port struct {
	owner  Owner
	target Target
	queue  catch.Queue
	conn   *net.UDPConn
	ln     *net.TCPListener
	unmark func()        // removes the mark of a temporary socket, or nil
	slots  chan struct{} // has room for maxExamined connections
	work   sync.WaitGroup
	ctx    context.Context //nolint:containedctx // ends with Close
	cancel context.CancelFunc

	mu    sync.Mutex
	blind error // why it cannot observe all that arrives, or nil
}

// Open returns a Catcher for the internal port of a target. If the port is free, Open opens it
// until Close: other programs cannot use it in that time, and connections without a nonce are
// closed. If another program has the port, the Catcher reads the table of sockets. Open fails
// only if the target has no internal port.
func Open(ctx context.Context, t Target) (*Port, error) { return open(ctx, t, true) }

// Watch is Open for a port that the Catcher must not open, because a program is about to listen
// on it.
func Watch(ctx context.Context, t Target) (*Port, error) { return open(ctx, t, false) }

func open(ctx context.Context, t Target, mayListen bool) (*Port, error) {
	if !t.Internal.IsValid() || t.Internal.Port() == 0 {
		return nil, fmt.Errorf("reach: %w: the internal port is not known", backends.ErrInvalid)
	}
	p := &Port{target: t, slots: make(chan struct{}, maxExamined)}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if t.Protocol != backends.TCP && t.Protocol != backends.UDP {
		p.blind = fmt.Errorf("%w: only TCP and UDP ports can be observed, not %v", backends.ErrUnsupported, t.Protocol)
		return p, nil
	}
	if !netbind.HasAddr(t.Internal.Addr()) {
		p.blind = fmt.Errorf("the port belongs to another host, %v: it cannot be observed here", t.Internal.Addr())
		return p, nil
	}
	used, err := Listeners(t.Protocol, t.Internal.Port())
	other := !mayListen
	switch {
	case other:
	case err != nil:
		other = isUsedAtAll(t)
	default:
		received, receivesErr := receives(used, t)
		other = received || receivesErr != nil
	}
	at := netip.AddrPortFrom(t.bound(), t.Internal.Port())
	switch {
	case other && isMarked(t.Protocol, at):
		p.blind = errMeasured
		return p, nil
	case other:
		p.openOther()
		return p, nil
	}
	unmark, markErr := mark(t.Protocol, at)
	if errno.IsInUse(markErr) {
		p.blind = errMeasured
		return p, nil
	}
	listenErr := p.listen(ctx, t)
	if listenErr != nil && unmark != nil {
		unmark() // the socket at the endpoint is not of a measurement
	}
	switch {
	case listenErr == nil:
		p.owner, p.unmark = OwnerTemporary, unmark
		if t.Protocol == backends.TCP && !catch.Supported {
			p.missed(fmt.Errorf("%w: connections cannot be examined on this system", errors.ErrUnsupported))
		}
	case errno.IsInUse(listenErr):
		p.openOther()
	default:
		p.blind = fmt.Errorf("the port cannot be opened to observe it: %w", errors.Join(listenErr, err))
	}
	return p, nil
}

// errMeasured means that another Port has opened the port.
var errMeasured = errors.New("the port cannot be observed: another measurement of it is under way")

// isUsedAtAll reports whether another socket has the port at the unspecified address of a family.
// Some systems then still admit a socket at one address, which would take the connections of a
// program away.
func isUsedAtAll(t Target) bool {
	for _, addr := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if used, _ := isUsed(t.Protocol, netip.AddrPortFrom(addr, t.Internal.Port())); used {
			return true
		}
	}
	return false
}

// openAny opens a free port at the internal address of a target.
func openAny(ctx context.Context, t Target) (*Port, error) {
	t.Internal = netip.AddrPortFrom(t.Internal.Addr(), 0)
	p := &Port{owner: OwnerTemporary, target: t, slots: make(chan struct{}, maxExamined)}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := p.listen(ctx, t); err != nil {
		p.cancel()
		return nil, err
	}
	var local net.Addr
	if p.conn != nil {
		local = p.conn.LocalAddr()
	} else {
		local = p.ln.Addr()
	}
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		p.Close()
		return nil, err
	}
	p.target.Internal = netip.AddrPortFrom(t.Internal.Addr(), at.Port())
	return p, nil
}

// openOther prepares to observe the port of another program.
func (p *Port) openOther() {
	p.owner = OwnerOther
	switch _, err := readTable(p.target.Protocol, p.target.Internal.Port()); {
	case err != nil:
		p.blind = fmt.Errorf("another program has the port, and what arrives there cannot be observed: %w", err)
	case p.target.Protocol != backends.TCP:
		p.blind = errors.New("another program has the port, and the datagrams that arrive there cannot be observed")
	}
}

// listen opens the port.
func (p *Port) listen(ctx context.Context, t Target) error {
	var lc net.ListenConfig
	if t.Protocol == backends.UDP {
		conn, err := lc.ListenPacket(ctx, "udp", t.Internal.String())
		if err != nil {
			return err
		}
		p.conn = conn.(*net.UDPConn) //nolint:forcetypeassert // package net guarantees this type for UDP
		// On Linux, the source address decides through which interface multicast leaves. Other
		// systems need the option. For IPv6, the zone of the destination decides.
		if ifi, err := net.InterfaceByName(t.Interface); err == nil && t.Internal.Addr().Unmap().Is4() {
			_ = ipv4.NewPacketConn(p.conn).SetMulticastInterface(ifi)
		}
		p.work.Go(p.readDatagrams)
		return nil
	}
	ln, err := lc.Listen(ctx, "tcp", t.Internal.String())
	if err != nil {
		return err
	}
	p.ln = ln.(*net.TCPListener) //nolint:forcetypeassert // package net guarantees this type for TCP
	p.work.Go(p.accept)
	return nil
}

// Close closes the port. It is idempotent.
func (p *Port) Close() {
	p.cancel()
	if p.ln != nil {
		_ = p.ln.Close()
	}
	if p.conn != nil {
		_ = p.conn.Close()
	}
	p.work.Wait()
	if p.unmark != nil {
		p.unmark()
	}
}

// Owner implements Catcher.
func (p *Port) Owner() Owner { return p.owner }

// Expect implements Catcher.
func (p *Port) Expect(e Expectation) (arrivals <-chan Arrival, stop func()) {
	if p.owner != OwnerOther || e.Source == nil || p.Observing() != nil {
		return p.queue.Expect(e)
	}
	e.Before = p.connections()
	arrivals, remove := p.queue.Expect(e)
	ctx, cancel := context.WithCancel(p.ctx)
	p.work.Go(func() { p.pollTable(ctx) })
	return arrivals, func() { cancel(); remove() }
}

// Observing implements Catcher.
func (p *Port) Observing() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blind
}

// missed records why something that arrived may not have been observed.
func (p *Port) missed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blind = cmp.Or(p.blind, err)
}

// Send implements Catcher.
func (p *Port) Send(b []byte, to netip.AddrPort) error {
	if p.conn == nil {
		return fmt.Errorf("reach: %w: nothing can be sent from the port", errors.ErrUnsupported)
	}
	_, err := p.conn.WriteToUDPAddrPort(b, to)
	return err
}

// Visited implements Catcher. The table of sockets does not show which side opened a
// connection, so there are no visits.
func (p *Port) Visited() (time.Time, netip.AddrPort) { return time.Time{}, netip.AddrPort{} }

// accept examines the connections to a temporary socket. It closes all of them.
func (p *Port) accept() {
	for {
		conn, err := p.ln.AcceptTCP()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.missed(fmt.Errorf("a connection could not be accepted: %w", err)) // for example, too many open files
			if ctxsync.Sleep(p.ctx, pollInterval) != nil {
				return
			}
			continue
		}
		if from, ok := conn.RemoteAddr().(*net.TCPAddr); !ok || !p.queue.Examines(from.AddrPort().Addr()) {
			_ = conn.Close()
			continue
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.missed(fmt.Errorf("more than %d connections arrived at once", maxExamined))
			_ = conn.Close()
			continue
		}
		p.work.Go(func() {
			defer func() { <-p.slots }()
			if !p.queue.Conn(p.ctx, conn) {
				_ = conn.Close()
			}
		})
	}
}

// readDatagrams examines the datagrams that arrive at a temporary socket.
func (p *Port) readDatagrams() {
	buf := make([]byte, 2048)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed), p.ctx.Err() != nil:
			return
		case err != nil: // for example, an ICMP error for an answer
			if ctxsync.Sleep(p.ctx, pollInterval) != nil {
				return
			}
			continue
		}
		if answer, matches, _ := p.queue.Match(buf[:n], from); matches && len(answer) > 0 {
			_, _ = p.conn.WriteToUDPAddrPort(answer, from)
		}
	}
}

// pollTable reports the connections of another program's socket until ctx ends.
func (p *Port) pollTable(ctx context.Context) {
	for ctxsync.Sleep(ctx, pollInterval) == nil {
		for _, remote := range p.connections() {
			p.queue.Seen(remote)
		}
	}
}

// connections returns the remote endpoints of the connections to the internal endpoint.
func (p *Port) connections() (remotes []netip.AddrPort) {
	rows, err := readTable(p.target.Protocol, p.target.Internal.Port())
	if err != nil {
		p.missed(fmt.Errorf("the connections of another program cannot be observed: %w", err))
		return nil
	}
	for _, s := range rows {
		if s.open && s.local == p.target.bound() {
			remotes = append(remotes, s.remote)
		}
	}
	return remotes
}
