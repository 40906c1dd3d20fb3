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
const maxDelayedReplies = 4096

// port is one of the gateway's UDP ports, of IPv4 or IPv6.
type udpServer struct {
	network string
	addr    netip.AddrPort // settled by the first open
	conn    *net.UDPConn   // nil while down
	handle  func(conn *net.UDPConn, from netip.AddrPort, raw []byte)
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
	conns := g.detachUDP()
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
	if err := g.openUDP(g.udpServers); err != nil {
		return err
	}
	return g.upnp.open()
}

// openUDP opens the ports that are closed, all or none, and reads them until
// they are closed again. Callers hold the lock.
func (g *Gateway) openUDP(servers []*udpServer) error {
	var opened []*udpServer
	for _, s := range servers {
		if s.conn != nil {
			continue
		}
		conn, err := listenUDP(s.network, s.addr)
		if err != nil {
			for _, s := range opened {
				_ = s.conn.Close()
				s.conn = nil
			}
			return fmt.Errorf("gatewaytest: %w", err)
		}
		s.conn = conn
		opened = append(opened, s)
	}
	for _, s := range opened {
		if s.addr.Port() == 0 {
			s.addr = localAddrPort(s.conn)
		}
		conn := s.conn
		g.wg.Go(func() { g.serve(s, conn) })
	}
	return nil
}

// shut marks the ports as closed and returns what is to be closed, without the
// lock. Callers hold the lock.
func (g *Gateway) detachUDP() []io.Closer { return detachConns(g.udpServers) }

func detachConns(servers []*udpServer) []io.Closer {
	var conns []io.Closer
	for _, p := range servers {
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

var portCounter atomic.Uint32

// choose makes a socket at an address. If its port is 0, it tries ports that
// systems do not assign, and then any.
func listenFree[T any](at netip.AddrPort, listen func(netip.AddrPort) (T, error)) (T, error) {
	const attempts = 50
	if at.Port() == 0 {
		for range attempts {
			pid := uint32(os.Getpid()) //nolint:gosec // any number will do
			n := pid%blocks*portsPerBlock + (pid/blocks+portCounter.Add(1))%portsPerBlock
			if socket, err := listen(netip.AddrPortFrom(at.Addr(), uint16(firstPort+n))); err == nil { //nolint:gosec // in range
				return socket, nil
			}
		}
	}
	return listen(at)
}

func listenUDP(network string, at netip.AddrPort) (*net.UDPConn, error) {
	return listenFree(at, func(at netip.AddrPort) (*net.UDPConn, error) {
		return net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	})
}

func listenTCP(network string, at netip.AddrPort) (*net.TCPListener, error) {
	return listenFree(at, func(at netip.AddrPort) (*net.TCPListener, error) {
		return net.ListenTCP(network, net.TCPAddrFromAddrPort(at))
	})
}

// localAddrPort is the address that a socket is bound to.
func localAddrPort(conn *net.UDPConn) netip.AddrPort {
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (g *Gateway) serve(s *udpServer, conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Some systems report here that an answer was not wanted, or that a
			// datagram was too long.
			if !g.sleep(time.Millisecond) {
				return
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		s.handle(conn, from, bytes.Clone(buf[:n]))
	}
}

// receive deals with a datagram and sends the answer.
func (g *Gateway) receive(conn *net.UDPConn, from netip.AddrPort, raw []byte) {
	q := identify(raw)
	q.Time, q.Source = g.clock.now(), from
	replies, fault := g.respond(q)
	g.record.add(q, len(replies) == 0)
	if len(replies) == 0 {
		return
	}
	g.replyAfter(fault, 0, func() { g.reply(conn, from, replies) })
}

// dispatch hands the request to the server of its version. Both share a port:
// version 0 is NAT-PMP's, all others are PCP's, and if the gateway speaks only one
// of them, that one says that it does not know the version (RFC 6887, appendix
// A). A refuse other than 0 is the result code to answer with, doing nothing.
func (g *Gateway) dispatch(q Request, forcedResult int) []byte {
	versionZero := len(q.Raw) > 0 && q.Raw[0] == natpmp.Version
	pcpOnly := !g.supports(serviceNATPMP) || !q.Source.Addr().Is4() // NAT-PMP is IPv4's
	switch {
	case !g.supports(servicePCP) && !q.Source.Addr().Is4():
		return nil
	case !g.supports(servicePCP) || versionZero && !pcpOnly:
		return g.natpmp.handle(q, forcedResult)
	default:
		return g.pcp.handle(q, forcedResult)
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
	s := g.udpServers[0]
	if !to.Addr().Is4() {
		s = g.udpServers[len(g.udpServers)-1]
	}
	g.mu.Lock()
	conn := s.conn
	g.mu.Unlock()
	if conn == nil {
		return
	}
	g.record.count(count)
	_, _ = conn.WriteToUDPAddrPort(b, to)
}

// pause waits, and reports whether the gateway still runs.
func (g *Gateway) sleep(d time.Duration) bool {
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
func (g *Gateway) replyAfter(fault *Fault, delay time.Duration, send func()) {
	if fault == nil {
		fault = &Fault{}
	}
	if fault.Delay <= 0 && fault.Hold == nil && delay <= 0 {
		send()
		return
	}
	if g.delayedReplies.Add(1) > maxDelayedReplies {
		g.delayedReplies.Add(-1)
		return
	}
	g.spawn(func() {
		defer g.delayedReplies.Add(-1)
		if g.waitForFault(fault) && g.sleep(delay) {
			send()
		}
	})
}

// await waits until the fault lets an answer go, and reports whether the
// gateway still runs.
func (g *Gateway) waitForFault(fault *Fault) bool {
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
	return g.sleep(fault.Delay)
}

// answer does what the request asks and returns the datagrams to send, with
// the fault that they are subject to.
func (g *Gateway) respond(q Request) ([][]byte, *Fault) {
	return g.respondWith(q, func(forcedResult int) [][]byte { return oneReply(g.dispatch(q, forcedResult)) })
}

// answerBy is answer with who does it. A refuse other than 0 is the result to
// answer with, doing nothing.
func (g *Gateway) respondWith(q Request, handle func(forcedResult int) [][]byte) ([][]byte, *Fault) {
	if g.config.Admit != nil && !g.config.Admit(q.Source.Addr()) {
		return nil, nil
	}
	var fault Fault
	matched := g.faults.match(q)
	if matched != nil {
		fault = *matched
		matched = &fault
	}
	done, ok := g.faults.enterQueue(fault.HoldRequest, g.done)
	defer done()
	if q.Service == serviceUPnP {
		fault.Duplicate, fault.Repeat = 0, 0 // a connection has one request and one answer
	}
	switch {
	case !ok || fault.Drop:
		return nil, matched
	case fault.Reply != nil:
		return fault.corrupt(fault.Reply(bytes.Clone(q.Raw))), matched
	}
	replies := handle(fault.Result)
	for range min(max(fault.Repeat, 0), maxDuplicates) {
		replies = append(replies, handle(fault.Result)...)
	}
	return fault.corrupt(replies), matched
}

// datagrams is the list of one answer, or of none.
func oneReply(b []byte) [][]byte {
	if b == nil {
		return nil
	}
	return [][]byte{b}
}
