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

// maxDatagram is larger than any request of these protocols.
const maxDatagram = 2048

// maxDelayedReplies is the maximum number of replies that wait for a delay or a fault.
// Further replies are lost.
const maxDelayedReplies = 4096

// udpServer is one of the gateway's UDP ports, over IPv4 or IPv6.
type udpServer struct {
	network string
	addr    netip.AddrPort // the port is chosen when it is first opened
	conn    *net.UDPConn   // nil while down
	handle  func(conn *net.UDPConn, from netip.AddrPort, raw []byte)
}

// Down closes the ports of the named protocols, or of all protocols if none is named. It
// simulates a router on which port mapping is switched off or whose service has crashed.
// Clients receive an ICMP error, or their connections are refused. Open UPnP connections
// are closed, and no notification is sent. Forwarding continues.
//
// NAT-PMP and PCP share a port, over IPv6 too, so that either name closes it. Down panics
// if a name is none of "natpmp", "pcp" and "upnp".
func (g *Gateway) Down(protocols ...string) {
	shared, upnp := len(protocols) == 0, len(protocols) == 0
	for _, name := range protocols {
		switch name {
		case serviceNATPMP, servicePCP:
			shared = true
		case serviceUPnP:
			upnp = true
		default:
			panic(fmt.Sprintf("gatewaytest: unknown protocol %q", name))
		}
	}
	if shared {
		g.downPCP()
	}
	if upnp {
		g.upnp.down()
	}
}

// downPCP closes the ports of NAT-PMP and PCP.
func (g *Gateway) downPCP() {
	g.mu.Lock()
	conns := g.detachUDP()
	g.mu.Unlock()
	closeAll(conns)
}

// choose returns one of two values, mostly with and without a quirk.
func choose[T any](on bool, with, without T) T {
	if on {
		return with
	}
	return without
}

// closeAll closes all of them. When it returns, their ports are closed.
func closeAll[C io.Closer](all []C) {
	for _, c := range all {
		_ = c.Close()
	}
}

// Up opens the ports that Down closed. It fails if another socket has taken one of them,
// and with net.ErrClosed after Close.
func (g *Gateway) Up() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	return g.open()
}

// open opens the ports that are closed. The caller holds g.mu.
func (g *Gateway) open() error {
	if err := g.openUDP(g.udpServers); err != nil {
		return err
	}
	return g.upnp.open()
}

// openUDP opens the ports that are closed, either all or none of them, and starts a
// goroutine for each that reads requests until the port is closed. The caller holds
// g.mu.
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

// detachUDP marks the ports of NAT-PMP and PCP as closed. It returns the sockets, which
// must be closed without g.mu. The caller holds g.mu.
func (g *Gateway) detachUDP() []io.Closer { return detachConns(g.udpServers) }

// detachConns marks the ports of the servers as closed and returns their sockets.
func detachConns(servers []*udpServer) []io.Closer {
	var conns []io.Closer
	for _, s := range servers {
		if s.conn != nil {
			conns = append(conns, s.conn)
			s.conn = nil
		}
	}
	return conns
}

// The ports that a gateway chooses are below the ephemeral port range, which begins at
// 32768 on Linux and at 49152 on macOS and Windows. If they were in that range, the
// system could assign the port of a gateway that is down to another socket. Each process
// tries a block of ports that depends on its process ID.
const (
	firstPort     = 20000
	blocks        = 10
	portsPerBlock = 1000
)

var portCounter atomic.Uint32

// listenFree opens a socket at an address. If the port is 0, it first tries ports that
// the system does not assign by itself, and then lets the system choose.
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

// listenUDP opens a UDP socket at an address.
func listenUDP(network string, at netip.AddrPort) (*net.UDPConn, error) {
	return listenFree(at, func(at netip.AddrPort) (*net.UDPConn, error) {
		return net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	})
}

// listenTCP opens a TCP listener at an address.
func listenTCP(network string, at netip.AddrPort) (*net.TCPListener, error) {
	return listenFree(at, func(at netip.AddrPort) (*net.TCPListener, error) {
		return net.ListenTCP(network, net.TCPAddrFromAddrPort(at))
	})
}

// localAddrPort returns the address to which a socket is bound.
func localAddrPort(conn *net.UDPConn) netip.AddrPort {
	a := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// serve reads datagrams from the socket and handles them, until the socket is closed.
func (g *Gateway) serve(s *udpServer, conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Some systems report here that an earlier reply was rejected, or that a
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

// receive handles a datagram and sends the response.
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

// dispatch passes the request to the server of its protocol version. NAT-PMP and PCP
// share a port: version 0 is NAT-PMP, and all others are PCP. If the gateway supports
// only one of them, that server responds to all versions, and rejects unknown versions
// (RFC 6887, appendix A). If forcedResult is not 0, the request is not executed, and the
// response has that result code.
func (g *Gateway) dispatch(q Request, forcedResult int) []byte {
	versionZero := len(q.Raw) > 0 && q.Raw[0] == natpmp.Version
	pcpOnly := !g.supports(serviceNATPMP) || !q.Source.Addr().Is4() // NAT-PMP exists over IPv4 only
	switch {
	case !g.supports(servicePCP) && !q.Source.Addr().Is4():
		return nil
	case !g.supports(servicePCP) || versionZero && !pcpOnly:
		return g.natpmp.handle(q, forcedResult)
	default:
		return g.pcp.handle(q, forcedResult)
	}
}

// identify parses a datagram into a Request.
func identify(raw []byte) Request {
	if len(raw) > 0 && raw[0] != natpmp.Version {
		return identifyPCP(raw)
	}
	return identifyNATPMP(raw)
}

// send sends an unsolicited datagram from the port at which the gateway receives
// requests. If that port is down, it sends nothing. The datagram is counted before it is
// sent.
func (g *Gateway) send(to netip.AddrPort, b []byte, count func(*Stats)) {
	s := g.udpServers[choose(to.Addr().Is4(), 0, len(g.udpServers)-1)]
	g.mu.Lock()
	conn := s.conn
	g.mu.Unlock()
	if conn == nil {
		return
	}
	g.record.count(count)
	_, _ = conn.WriteToUDPAddrPort(b, to)
}

// sleep waits for d, and reports whether the gateway is still running.
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

// reply sends the datagrams of a response.
func (g *Gateway) reply(conn *net.UDPConn, to netip.AddrPort, replies [][]byte) {
	for _, b := range replies {
		g.record.count(func(s *Stats) { s.Replies++ })
		_, _ = conn.WriteToUDPAddrPort(b, to)
	}
}

// replyAfter calls send after the delay and when the fault permits it. The fault may be
// nil. Without a delay, replyAfter calls send before it returns.
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

// waitForFault waits for Hold and Delay of the fault, and reports whether the gateway is
// still running.
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

// respond handles the request and returns the datagrams to send, with the fault that
// applies to them.
func (g *Gateway) respond(q Request) ([][]byte, *Fault) {
	return g.respondWith(q, func(forcedResult int) [][]byte { return oneReply(g.dispatch(q, forcedResult)) })
}

// respondWith is like respond, but calls handle to handle the request. If the argument
// of handle is not 0, handle does not execute the request, but returns a response with
// that result.
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
		fault.Duplicate, fault.Repeat = 0, 0 // a request on a connection has exactly one response
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

// oneReply returns b as a list of one datagram, or nil if b is nil.
func oneReply(b []byte) [][]byte {
	if b == nil {
		return nil
	}
	return [][]byte{b}
}
