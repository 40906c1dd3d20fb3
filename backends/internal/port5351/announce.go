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

	"github.com/natforward/goforward/internal/netbind"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Where gateways announce that they restarted or have another address (RFC 6886
// section 3.2.1, RFC 6887 section 14.1.1): all hosts of the link, for each family.
var (
	announce4 = netip.MustParseAddrPort("224.0.0.1:5350")
	announce6 = netip.MustParseAddrPort("[ff02::1]:5350")
)

// Hint says that the gateway may have lost its mappings. It is a hint: anyone
// on the LAN can forge an announcement, so ask the gateway before believing it.
type Hint struct {
	// Restarted is whether the gateway's own clock says so.
	Restarted bool
	// Since is when it did, if after it was heard of last; or the zero Time.
	Since time.Time
	// Reason says how it was noticed.
	Reason string
}

// WatchConfig says what to watch besides the gateway's answers.
type WatchConfig struct {
	// Announce is where to listen for announcements. The zero value: where the
	// standards say, for the gateway's family.
	Announce netip.AddrPort
	// Unsolicited judges a datagram from the gateway that answers no request: it
	// returns the reason for a signal, or "". It is called on the link's reader:
	// it must be quick, keep nothing, and not use the link. Nil: none is one.
	Unsolicited func(datagram []byte) (reason string)
}

// Watch receives the signals about a link's gateway.
type Watch struct {
	// Signals holds at most one: a newer signal takes the place of one not yet
	// received, which has the same consequence.
	Signals     <-chan Hint
	signals     chan Hint
	unsolicited func([]byte) string
	link        *Conn
	listener    *listener
}

// Watch starts watching. Where announcements cannot be listened for, signals
// come from what the gateway sends us alone, and the error says why; the Watch
// is valid nonetheless and needs a Close.
func (l *Conn) Watch(config WatchConfig) (*Watch, error) {
	c := make(chan Hint, 1)
	w := &Watch{Signals: c, signals: c, unsolicited: config.Unsolicited, link: l}
	l.mu.Lock()
	l.watchers[w] = struct{}{}
	l.mu.Unlock()
	addr := config.Announce
	if !addr.IsValid() {
		addr = announce4
		if l.config.Gateway.Addr().Is6() {
			addr = announce6
		}
	}
	var err error
	w.listener, err = listen(addr, l)
	return w, err
}

// unsolicited asks the watchers what to make of a datagram. l.mu is held.
func (l *Conn) unsolicited(datagram []byte) {
	for w := range l.watchers {
		if w.unsolicited == nil {
			continue
		}
		if reason := w.unsolicited(datagram); reason != "" {
			w.push(Hint{Reason: reason})
		}
	}
}

// Close ends the watch and waits for the listener, where it was the last.
func (w *Watch) Close() {
	w.link.mu.Lock()
	delete(w.link.watchers, w)
	w.link.mu.Unlock()
	if w.listener != nil {
		w.listener.release(w.link)
	}
}

// push never blocks. It is called under the link's lock, so that no two
// pushes meet.
func (w *Watch) push(s Hint) {
	select {
	case old := <-w.signals:
		if old.Restarted && !s.Restarted {
			s.Restarted, s.Since = true, old.Since
		}
	default:
	}
	w.signals <- s
}

// listener is the process's one socket at an announcement address.
type listener struct {
	addr netip.AddrPort
	conn net.PacketConn
	done chan struct{}

	mu    sync.Mutex
	links map[*Conn]int // and how many watch through it
}

var listeners = struct {
	mu     sync.Mutex
	byAddr map[netip.AddrPort]*listener
}{byAddr: map[netip.AddrPort]*listener{}}

// listen returns the listener at the address for the link, making it where
// there is none.
func listen(addr netip.AddrPort, l *Conn) (*listener, error) {
	listeners.mu.Lock()
	defer listeners.mu.Unlock()
	ln := listeners.byAddr[addr]
	if ln == nil {
		conn, err := listenAnnounce(context.Background(), addr) // binding does not block
		if err != nil {
			return nil, fmt.Errorf("listen for announcements at %v: %w", addr, err)
		}
		ln = &listener{addr: addr, conn: conn, done: make(chan struct{}), links: map[*Conn]int{}}
		listeners.byAddr[addr] = ln
		if addr.Addr().IsMulticast() {
			ln.join()
		}
		go ln.read()
	}
	ln.mu.Lock()
	ln.links[l]++
	ln.mu.Unlock()
	return ln, nil
}

// release is listen's inverse.
func (ln *listener) release(l *Conn) {
	listeners.mu.Lock()
	ln.mu.Lock()
	if ln.links[l]--; ln.links[l] == 0 {
		delete(ln.links, l)
	}
	last := len(ln.links) == 0
	ln.mu.Unlock()
	if last { // closed before anybody can bind the address anew
		delete(listeners.byAddr, ln.addr)
		_ = ln.conn.Close()
	}
	listeners.mu.Unlock()
	if last {
		<-ln.done
	}
}

// joinEvery is how often the interfaces are looked at. A variable for tests.
var joinEvery = 5 * time.Second

// join joins the group on the interfaces that there are, and makes read do so again
// later: an interface that came up, or was created again under its name, has no
// membership.
func (ln *listener) join() {
	joinEverywhere(ln.conn, ln.addr.Addr())
	_ = ln.conn.SetReadDeadline(time.Now().Add(joinEvery)) // fails on a closed socket only
}

// readPause keeps a socket that fails again and again from taking all time.
const readPause = 10 * time.Millisecond

// read turns announcements into signals until the socket is closed.
func (ln *listener) read() {
	defer close(ln.done)
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := ln.conn.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			ln.join()
			continue
		case err != nil: // Windows fails so for a datagram that is too long
			time.Sleep(readPause)
			continue
		}
		reason := announcement(buf[:n])
		udp, ok := from.(*net.UDPAddr)
		if reason == "" || !ok {
			continue
		}
		ln.announce(udp.AddrPort().Addr().Unmap(), reason)
	}
}

// announce tells the links whose gateway has the address. The source port is
// not looked at: a gateway may announce from another socket than it answers from.
func (ln *listener) announce(source netip.Addr, reason string) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	for l := range ln.links {
		gateway := l.config.Gateway.Addr().Unmap()
		if gateway == source || gateway.Zone() == "" && gateway == source.WithZone("") {
			l.mu.Lock()
			l.signal(Hint{Reason: reason})
			l.mu.Unlock()
		}
	}
}

// announcement says what an unsolicited datagram announces, or "" where it
// announces nothing: a NAT-PMP external address response with result 0, or a
// PCP ANNOUNCE response with result 0.
func announcement(b []byte) string {
	const response = 0x80
	switch {
	case len(b) >= 12 && b[0] == 0 && b[1] == response && b[2] == 0 && b[3] == 0:
		return "the gateway announced its external address"
	case len(b) >= 24 && len(b)%4 == 0 && b[0] == 2 && b[1] == response && b[3] == 0:
		return "the gateway announced a restart"
	}
	return ""
}

// listenAnnounce binds an announcement address. A multicast address is shared
// with whoever else listens there; RFC 6886 section 3.2.1 wants it bound
// itself, and not all addresses, which keeps unicast datagrams out. A link-local
// group is bound on one interface: there it is all addresses.
func listenAnnounce(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	if !addr.Addr().IsMulticast() {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	}
	network, at := "udp4", addr
	if addr.Addr().Is6() {
		network, at = "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	return netbind.Group(ctx, network, at, nil)
}

// joinEverywhere joins the group on each interface that can and has not yet. All
// hosts are members of 224.0.0.1 and ff02::1 anyway (RFC 1112 section 4, RFC 4291
// section 2.8), so failures do not matter. Linux delivers what comes to these two
// without a membership of the socket. Other systems may not.
func joinEverywhere(conn net.PacketConn, group netip.Addr) {
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
