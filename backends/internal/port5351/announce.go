package port5351

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// The multicast addresses to which gateways announce a restart or a new external
// address: all hosts on the link, for IPv4 and IPv6 (RFC 6886 section 3.2.1, RFC
// 6887 section 14.1.1).
var (
	announce4 = netip.MustParseAddrPort("224.0.0.1:5350")
	announce6 = netip.MustParseAddrPort("[ff02::1]:5350")
)

// Hint reports that the gateway may have lost its mappings. Any host on the LAN can
// forge an announcement, so send a request to the gateway to confirm a Hint.
type Hint struct {
	// Restarted is set if the gateway's epoch shows a restart.
	Restarted bool
	// Since is the time of the restart, if it was after the previous response.
	// Otherwise it is the zero Time.
	Since time.Time
	// Reason describes how the change was noticed.
	Reason string
}

// Change converts a confirmed hint. The external address was previous before it and is
// current now, as far as they are known. A gateway with another address may reset its
// epoch without a loss of mappings, so such a change is not a restart.
func (h Hint) Change(previous, current netip.Addr) backends.Change {
	c := backends.Change{Kind: backends.Announced, External: backends.HostAddr(current), Reason: h.Reason}
	switch {
	case previous.IsValid() && current.IsValid() && current != previous:
		c.Kind, c.Reason = backends.AddressChanged, fmt.Sprintf("the external address was %v and is %v", previous, current)
	case h.Restarted:
		c.Kind, c.Since = backends.Restarted, h.Since
	}
	return c
}

// WatchConfig lists what to watch in addition to the gateway's responses.
type WatchConfig struct {
	// Announce is the address on which to listen for announcements. The zero value
	// selects the standard address for the gateway's family.
	Announce netip.AddrPort
	// Unsolicited is called with each datagram from the gateway that answers no
	// request. It returns the reason for a Hint, or "" for none. The goroutine that
	// reads the socket calls it, so it must be fast, must not keep the datagram,
	// and must not use the Conn. If it is nil, such datagrams are ignored.
	Unsolicited func(datagram []byte) (reason string)
}

// Watch receives the Hints about the gateway of a Conn.
type Watch struct {
	// Hints holds at most one Hint. A newer Hint replaces one that was not yet
	// received, because both have the same consequence.
	Hints       <-chan Hint
	hints       chan Hint
	unsolicited func([]byte) string
	conn        *Conn
	listener    *listener
}

// Watch starts to watch the gateway. If it cannot listen for announcements, it
// returns the error together with a valid Watch, which then has only Hints from the
// datagrams that the gateway sends to this process. In both cases the Watch must be
// closed.
func (c *Conn) Watch(config WatchConfig) (*Watch, error) {
	hints := make(chan Hint, 1)
	w := &Watch{Hints: hints, hints: hints, unsolicited: config.Unsolicited, conn: c}
	c.mu.Lock()
	c.watchers[w] = struct{}{}
	c.mu.Unlock()
	addr := config.Announce
	if !addr.IsValid() {
		addr = announce4
		if c.config.Gateway.Addr().Is6() {
			addr = announce6
		}
	}
	var err error
	w.listener, err = acquireListener(addr, c)
	return w, err
}

// deliverUnsolicited passes a datagram to the watchers. c.mu must be held.
func (c *Conn) deliverUnsolicited(datagram []byte) {
	for w := range c.watchers {
		if w.unsolicited == nil {
			continue
		}
		if reason := w.unsolicited(datagram); reason != "" {
			w.push(Hint{Reason: reason})
		}
	}
}

// Close ends the watch. If no other watch uses its listener, Close waits until the
// listener has stopped.
func (w *Watch) Close() {
	w.conn.mu.Lock()
	delete(w.conn.watchers, w)
	w.conn.mu.Unlock()
	if w.listener != nil {
		w.listener.release(w.conn)
	}
}

// push sends a hint and never blocks. If it replaces a hint that reports a restart,
// the new hint reports that restart too. The Conn's mutex must be held, so that two
// pushes do not overlap.
func (w *Watch) push(hint Hint) {
	select {
	case previous := <-w.hints:
		if previous.Restarted && !hint.Restarted {
			hint.Restarted, hint.Since = true, previous.Since
		}
	default:
	}
	w.hints <- hint
}

// listener is the only socket of the process at an announcement address.
type listener struct {
	addr netip.AddrPort
	conn net.PacketConn
	done chan struct{}

	mu    sync.Mutex
	conns map[*Conn]int // the number of Watches of each Conn
}

var listeners = struct {
	mu     sync.Mutex
	byAddr map[netip.AddrPort]*listener
}{byAddr: map[netip.AddrPort]*listener{}}

// acquireListener returns the listener at the address for the Conn, and creates it
// if there is none.
func acquireListener(addr netip.AddrPort, c *Conn) (*listener, error) {
	listeners.mu.Lock()
	defer listeners.mu.Unlock()
	ln := listeners.byAddr[addr]
	if ln == nil {
		conn, err := listenAnnounce(context.Background(), addr) // a bind does not block
		if err != nil {
			return nil, fmt.Errorf("listen for announcements at %v: %w", addr, err)
		}
		ln = &listener{addr: addr, conn: conn, done: make(chan struct{}), conns: map[*Conn]int{}}
		listeners.byAddr[addr] = ln
		if addr.Addr().IsMulticast() {
			ln.joinGroup()
		}
		go ln.read()
	}
	ln.mu.Lock()
	ln.conns[c]++
	ln.mu.Unlock()
	return ln, nil
}

// release undoes acquireListener. The last release closes the socket.
func (ln *listener) release(c *Conn) {
	listeners.mu.Lock()
	ln.mu.Lock()
	if ln.conns[c]--; ln.conns[c] == 0 {
		delete(ln.conns, c)
	}
	last := len(ln.conns) == 0
	ln.mu.Unlock()
	if last { // close the socket before the address can be bound again
		delete(listeners.byAddr, ln.addr)
		_ = ln.conn.Close()
	}
	listeners.mu.Unlock()
	if last {
		<-ln.done
	}
}

// joinInterval is how often the list of interfaces is read. Tests change it.
var joinInterval = 5 * time.Second

// joinGroup joins the group on the present interfaces, and sets the deadline after
// which read does so again. An interface that came up later, or was created again
// under the same name, has no membership.
func (ln *listener) joinGroup() {
	joinAll(ln.conn, ln.addr.Addr())
	_ = ln.conn.SetReadDeadline(time.Now().Add(joinInterval)) // fails only if the socket is closed
}

// readRetryDelay limits the CPU use of a socket whose reads fail repeatedly.
const readRetryDelay = 10 * time.Millisecond

// read sends a Hint for each announcement until the socket is closed.
func (ln *listener) read() {
	defer close(ln.done)
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := ln.conn.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			ln.joinGroup()
			continue
		case err != nil: // Windows returns an error for a datagram that is too long
			time.Sleep(readRetryDelay)
			continue
		}
		reason := announcementReason(buf[:n])
		udp, ok := from.(*net.UDPAddr)
		if reason == "" || !ok {
			continue
		}
		ln.dispatch(udp.AddrPort().Addr().Unmap(), reason)
	}
}

// dispatch sends a Hint to each Conn whose gateway has the source address. The
// source port is ignored, because a gateway may announce from another socket than
// the one that responds to requests.
func (ln *listener) dispatch(source netip.Addr, reason string) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	for c := range ln.conns {
		gateway := c.config.Gateway.Addr().Unmap()
		if gateway == source || gateway.Zone() == "" && gateway == source.WithZone("") {
			c.mu.Lock()
			c.notifyWatchers(Hint{Reason: reason})
			c.mu.Unlock()
		}
	}
}

// announcementReason describes what an unsolicited datagram announces: a NAT-PMP
// external address response, possibly with a result that says that the gateway has
// no usable address, or a PCP ANNOUNCE response with result 0. For any other
// datagram it returns "".
func announcementReason(b []byte) string {
	const response = 0x80
	switch {
	case len(b) >= 12 && b[0] == 0 && b[1] == response:
		return "the gateway announced its external address"
	case len(b) >= 24 && len(b)%4 == 0 && b[0] == 2 && b[1] == response && b[3] == 0:
		return "the gateway announced a restart"
	}
	return ""
}

// listenAnnounce binds a socket to an announcement address. Other sockets can share
// a multicast address. RFC 6886 section 3.2.1 requires the socket to be bound to
// the multicast address itself rather than to all addresses, which keeps unicast
// datagrams out. A link-local IPv6 group would be bound to one interface only, so
// an IPv6 socket is bound to all addresses.
func listenAnnounce(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsMulticast() {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	}
	network, bindAddr := "udp4", addr
	if addr.Addr().Is6() {
		network, bindAddr = "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	return netbind.Group(ctx, network, bindAddr, nil)
}

// joinAll joins the group on each interface that is up and supports multicast. It
// ignores errors: an interface may have joined before, and all hosts are members of
// 224.0.0.1 and ff02::1 anyway (RFC 1112 section 4, RFC 4291 section 2.8). Linux
// delivers datagrams for these two groups without a membership of the socket. Other
// systems may not.
func joinAll(conn net.PacketConn, group netip.Addr) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return
	}
	join := ipv4.NewPacketConn(conn).JoinGroup
	if group.Is6() {
		join = ipv6.NewPacketConn(conn).JoinGroup
	}
	for _, ifi := range interfaces {
		if ifi.Flags&(net.FlagUp|net.FlagMulticast) == net.FlagUp|net.FlagMulticast {
			_ = join(&ifi, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, 0)))
		}
	}
}
