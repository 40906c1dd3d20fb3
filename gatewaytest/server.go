package gatewaytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends/natpmp"
)

// maxDatagram is more than any request of these protocols has.
const maxDatagram = 2048

// maxLate bounds the answers that faults hold back; more are lost.
const maxLate = 4096

// port is one of the gateway's UDP ports, of IPv4 or IPv6.
type port struct {
	network string
	addr    netip.AddrPort // settled by the first open
	conn    *net.UDPConn   // nil while down
	receive func(conn *net.UDPConn, from netip.AddrPort, raw []byte)
}

// Down closes the ports of the protocols named, or of all if none is, as a router does
// that has port mapping switched off or whose service died: clients get an ICMP error, or
// are refused, connections of UPnP are cut, and nothing is notified. NAT-PMP and PCP share
// a port, over IPv6 too, so that either name closes it. Forwarding goes on. Down panics if
// a name is none of "natpmp", "pcp" and "upnp".
func (g *Gateway) Down(protocols ...string) {
	shared, upnp := len(protocols) == 0, len(protocols) == 0
	for _, name := range protocols {
		switch name {
		case serviceNATPMP, servicePCP:
			shared = true
		case serviceUPnP:
			upnp = true
		default:
			panic(fmt.Sprintf("gatewaytest: no protocol %q", name))
		}
	}
	if shared {
		g.downPCP()
	}
	if upnp {
		g.upnp.down()
	}
}

// downPCP closes the port of NAT-PMP and PCP.
func (g *Gateway) downPCP() {
	g.mu.Lock()
	conns := g.shut()
	g.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close() // returns when the port is really closed
	}
}

// Up opens the ports that Down closed. It fails if another socket has one of them by now,
// and with net.ErrClosed after Close.
func (g *Gateway) Up() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	return g.open()
}

// open opens the ports that are closed. Callers hold the lock.
func (g *Gateway) open() error {
	if err := g.openUDP(g.ports); err != nil {
		return err
	}
	return g.upnp.open()
}

// openUDP opens the ports that are closed, all or none, and reads them until
// they are closed again. Callers hold the lock.
func (g *Gateway) openUDP(ports []*port) error {
	var opened []*port
	for _, p := range ports {
		if p.conn != nil {
			continue
		}
		conn, err := listenUDP(p.network, p.addr)
		if err != nil {
			for _, p := range opened {
				_ = p.conn.Close()
				p.conn = nil
			}
			return fmt.Errorf("gatewaytest: %w", err)
		}
		p.conn = conn
		opened = append(opened, p)
	}
	for _, p := range opened {
		if p.addr.Port() == 0 {
			p.addr = localAddrPort(p.conn)
		}
		conn := p.conn
		g.wg.Go(func() { g.serve(p, conn) })
	}
	return nil
}

// shut marks the ports as closed and returns what is to be closed, without the
// lock. Callers hold the lock.
func (g *Gateway) shut() []io.Closer { return shutUDP(g.ports) }

func shutUDP(ports []*port) []io.Closer {
	var conns []io.Closer
	for _, p := range ports {
		if p.conn != nil {
			conns = append(conns, p.conn)
			p.conn = nil
		}
	}
	return conns
}

// The ports that a gateway chooses are below those that systems assign by
// themselves: they begin at 32768 (Linux) or 49152 (macOS, Windows). Otherwise the
// kernel may give the port of a gateway that is down to any socket that asks for a
// free one. Processes choose from different blocks, where they can.
const (
	firstPort     = 20000
	blocks        = 10
	portsPerBlock = 1000
)

var chosen atomic.Uint32

// choose makes a socket at an address. If its port is 0, it tries ports that
// systems do not assign, and then any.
func choose[T any](at netip.AddrPort, listen func(netip.AddrPort) (T, error)) (T, error) {
	const tries = 50
	if at.Port() == 0 {
		for range tries {
			pid := uint32(os.Getpid()) //nolint:gosec // any number will do
			n := pid%blocks*portsPerBlock + (pid/blocks+chosen.Add(1))%portsPerBlock
			if socket, err := listen(netip.AddrPortFrom(at.Addr(), uint16(firstPort+n))); err == nil { //nolint:gosec // in range
				return socket, nil
			}
		}
	}
	return listen(at)
}

func listenUDP(network string, at netip.AddrPort) (*net.UDPConn, error) {
	return choose(at, func(at netip.AddrPort) (*net.UDPConn, error) {
		return net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	})
}

func listenTCP(network string, at netip.AddrPort) (*net.TCPListener, error) {
	return choose(at, func(at netip.AddrPort) (*net.TCPListener, error) {
		return net.ListenTCP(network, net.TCPAddrFromAddrPort(at))
	})
}

// localAddrPort is the address that a socket is bound to.
func localAddrPort(conn *net.UDPConn) netip.AddrPort {
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (g *Gateway) serve(p *port, conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Some systems report here that an answer was not wanted, or that a
			// datagram was too long.
			if !g.pause(time.Millisecond) {
				return
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		p.receive(conn, from, bytes.Clone(buf[:n]))
	}
}

// receive deals with a datagram and sends the answer.
func (g *Gateway) receive(conn *net.UDPConn, from netip.AddrPort, raw []byte) {
	q := identify(raw)
	q.Time, q.Source = g.clock.now(), from
	replies, fault := g.answer(q)
	g.record.add(q, len(replies) == 0)
	if len(replies) == 0 {
		return
	}
	g.later(fault, 0, func() { g.reply(conn, from, replies) })
}

// dispatch hands the request to the server of its version. Both share a port:
// version 0 is NAT-PMP's, all others are PCP's, and if the gateway speaks only one
// of them, that one says that it does not know the version (RFC 6887, appendix
// A). A refuse other than 0 is the result code to answer with, doing nothing.
func (g *Gateway) dispatch(q Request, refuse int) []byte {
	old := len(q.Raw) > 0 && q.Raw[0] == natpmp.Version
	newer := !g.speaks(serviceNATPMP) || !q.Source.Addr().Is4() // NAT-PMP is IPv4's
	switch {
	case !g.speaks(servicePCP) && !q.Source.Addr().Is4():
		return nil
	case !g.speaks(servicePCP) || old && !newer:
		return g.natpmp.handle(q, refuse)
	default:
		return g.pcp.handle(q, refuse)
	}
}

// identify reads what a datagram asks.
func identify(raw []byte) Request {
	if len(raw) > 0 && raw[0] != natpmp.Version {
		return identifyPCP(raw)
	}
	return identifyNATPMP(raw)
}

// send sends a datagram that nobody asked for, from the port that is asked
// otherwise, unless that is down. Who has received it finds it counted.
func (g *Gateway) send(to netip.AddrPort, b []byte, count func(*Stats)) {
	p := g.ports[0]
	if !to.Addr().Is4() {
		p = g.ports[len(g.ports)-1]
	}
	g.mu.Lock()
	conn := p.conn
	g.mu.Unlock()
	if conn == nil {
		return
	}
	g.record.count(count)
	_, _ = conn.WriteToUDPAddrPort(b, to)
}

// pause waits, and reports whether the gateway still runs.
func (g *Gateway) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-g.done:
		return false
	}
}

// reply sends datagrams in answer.
func (g *Gateway) reply(conn *net.UDPConn, to netip.AddrPort, replies [][]byte) {
	for _, b := range replies {
		g.record.count(func(s *Stats) { s.Replies++ })
		_, _ = conn.WriteToUDPAddrPort(b, to)
	}
}

// later runs send when the fault, or nil, lets it, and after the delay: at once
// if nothing speaks against it.
func (g *Gateway) later(fault *Fault, delay time.Duration, send func()) {
	if fault == nil {
		fault = &Fault{}
	}
	if fault.Delay <= 0 && fault.Hold == nil && delay <= 0 {
		send()
		return
	}
	if g.late.Add(1) > maxLate {
		g.late.Add(-1)
		return
	}
	g.spawn(func() {
		defer g.late.Add(-1)
		if g.await(fault) && g.pause(delay) {
			send()
		}
	})
}

// await waits until the fault lets an answer go, and reports whether the
// gateway still runs.
func (g *Gateway) await(fault *Fault) bool {
	if fault == nil {
		return true
	}
	if fault.Hold != nil {
		select {
		case <-fault.Hold:
		case <-g.done:
			return false
		}
	}
	return g.pause(fault.Delay)
}

// answer does what the request asks and returns the datagrams to send, with
// the fault that they are subject to.
func (g *Gateway) answer(q Request) ([][]byte, *Fault) {
	return g.answerBy(q, func(refuse int) [][]byte { return datagrams(g.dispatch(q, refuse)) })
}

// answerBy is answer with who does it. A refuse other than 0 is the result to
// answer with, doing nothing.
func (g *Gateway) answerBy(q Request, do func(refuse int) [][]byte) ([][]byte, *Fault) {
	if g.config.Admit != nil && !g.config.Admit(q.Source.Addr()) {
		return nil, nil
	}
	var fault Fault
	taken := g.faults.take(q)
	if taken != nil {
		fault = *taken
		taken = &fault
	}
	leave, ok := g.faults.enter(fault.HoldRequest, g.done)
	defer leave()
	if q.Service == serviceUPnP {
		fault.Duplicate, fault.Repeat = 0, 0 // a connection has one request and one answer
	}
	switch {
	case !ok || fault.Drop:
		return nil, taken
	case fault.Reply != nil:
		return fault.spoil(fault.Reply(bytes.Clone(q.Raw))), taken
	}
	replies := do(fault.Result)
	for range min(max(fault.Repeat, 0), maxDuplicates) {
		replies = append(replies, do(fault.Result)...)
	}
	return fault.spoil(replies), taken
}

// datagrams is the list of one answer, or of none.
func datagrams(b []byte) [][]byte {
	if b == nil {
		return nil
	}
	return [][]byte{b}
}
