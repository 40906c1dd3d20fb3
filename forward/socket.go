package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	netipv6 "golang.org/x/net/ipv6"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/catch"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/reach"
)

// acceptGap is how long ago a program may have been waiting for connections, so that those
// that arrive now still count as observed.
const acceptGap = time.Second

// acceptPoll is how often a verification looks whether the program waits for connections.
const acceptPoll = 10 * time.Millisecond

// socketState observes what arrives at the socket of a Listener or PacketConn.
type socketState struct {
	protocol backends.Protocol
	port     uint16
	conn     *net.UDPConn // for UDP; nil for TCP
	queue    catch.Queue
	accepter *accepter // for TCP; nil for UDP

	verifying atomic.Int32              // the number of verifications that are under way
	waiting   atomic.Int32              // the number of calls that wait for a connection or datagram
	waitedAt  atomic.Pointer[time.Time] // when the last of these calls returned during a verification
	visits    [2]atomic.Pointer[visit]  // the last visit, by address family
	lastVisit atomic.Pointer[visit]     // the last visit of either family
}

// visit is a connection from the internet.
type visit struct {
	at       time.Time
	from, to netip.AddrPort
}

// begin and end surround a call that waits for a connection or datagram.
func (s *socketState) begin() { s.waiting.Add(1) }

func (s *socketState) end() {
	if s.verifying.Load() > 0 {
		now := time.Now()
		s.waitedAt.Store(&now)
	}
	s.waiting.Add(-1)
}

// beginVerification waits until the program takes connections or datagrams, at most acceptGap: it
// may be busy with the last one. The caller must call the returned function.
func (s *socketState) beginVerification(ctx context.Context) (end func()) {
	s.verifying.Add(1)
	for range acceptGap / acceptPoll {
		if s.isWaiting() || ctxsync.Sleep(ctx, acceptPoll) != nil {
			break
		}
	}
	return func() { s.verifying.Add(-1) }
}

// isWaiting reports whether the program takes the connections or datagrams that arrive.
func (s *socketState) isWaiting() bool {
	at := s.waitedAt.Load()
	return s.waiting.Load() > 0 || at != nil && time.Since(*at) < acceptGap
}

// takeDatagram reports whether a datagram belongs to a prober, and answers it.
func (s *socketState) takeDatagram(b []byte, from netip.AddrPort) bool {
	if s.queue.IsEmpty() {
		return false
	}
	answer, matches, _ := s.queue.Match(b, from)
	if matches && len(answer) > 0 {
		_, _ = s.conn.WriteToUDPAddrPort(answer, from)
	}
	return matches
}

// socketCatcher is the reach.Catcher of a mapping with a Listener or PacketConn.
type socketCatcher struct {
	*socketState
	target  reach.Target
	since   time.Time // the time of the last change of the mapping
	skipped int       // of the accepter, when the verification began
}

var _ reach.Catcher = socketCatcher{}

// Owner implements reach.Catcher.
func (socketCatcher) Owner() reach.Owner { return reach.OwnerProgram }

// Expect implements reach.Catcher.
func (c socketCatcher) Expect(e reach.Expectation) (<-chan reach.Arrival, func()) {
	return c.queue.Expect(e)
}

// Observing implements reach.Catcher.
func (c socketCatcher) Observing() error {
	if !c.isWaiting() {
		return errors.New("the program does not accept connections or read datagrams at the moment, so arrivals cannot be observed")
	}
	if c.accepter.skippedCount() != c.skipped {
		return errors.New("too many connections arrived at once, so not all of them were observed")
	}
	return nil
}

// Send implements reach.Catcher.
func (c socketCatcher) Send(b []byte, to netip.AddrPort) error {
	if c.conn == nil {
		return fmt.Errorf("forward: %w: nothing can be sent from a listener", backends.ErrUnsupported)
	}
	var control []byte
	if to.Addr().Is6() && !to.Addr().Is4In6() { // else the kernel may choose the link-local address as the source
		control = (&netipv6.ControlMessage{Src: c.target.Internal.Addr().AsSlice()}).Marshal()
	}
	_, _, err := c.conn.WriteMsgUDPAddrPort(b, control, to)
	return err
}

// Visited implements reach.Catcher.
func (c socketCatcher) Visited() (time.Time, netip.AddrPort) {
	v := c.visits[familyOf(c.target.Internal.Addr())].Load()
	if v == nil || v.at.Before(c.since) || v.to.Addr() != c.target.Internal.Addr().Unmap().WithZone("") {
		return time.Time{}, netip.AddrPort{}
	}
	return v.at, v.from
}

// tcpEndpoint converts an address of package net.
func tcpEndpoint(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
