package ssdp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/natforward/goforward/internal/netbind"
)

// Listener receives the notifications of devices (UPnP Device Architecture 1.1, section
// 1.2). The zero Listener receives them on all interfaces that are up. It checks the
// interfaces every 5 seconds. If an interface comes up, or is created again under the
// same name, the Listener receives notifications on it from the next check on.
type Listener struct {
	// Addr is the address to listen at. The zero AddrPort means Multicast and
	// Multicast6, or one of them if the other is not available. If Addr is a multicast
	// address, the Listener joins the group, and shares the address with other
	// listeners. If it is a unicast address, the Listener binds it.
	Addr netip.AddrPort
	// Interface is the interface to listen on. If it is empty, the Listener uses the
	// zone of Addr, or all interfaces if Addr has no zone. Interface has no effect if
	// Addr is a unicast address.
	Interface string
}

// maxQueued is the number of notifications that can wait while notify runs. Further
// notifications are lost.
const maxQueued = 64

// maxInterfaces limits the number of sockets on a host with many interfaces.
const maxInterfaces = 32

// interfaceCheckInterval is the time between two checks of the interfaces.
const interfaceCheckInterval = 5 * time.Second

// Listen calls notify for each notification until ctx ends, and returns the cause of
// that end (context.Cause). It fails earlier only if it cannot open any socket at the
// start. Calls of notify do not overlap, and Listen does not return while notify runs.
// Listen ignores all other datagrams, such as searches.
func (l Listener) Listen(ctx context.Context, notify func(Notification)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	conns, err := l.open(ctx)
	if err != nil {
		return fmt.Errorf("ssdp: listen: %w", err)
	}
	return l.serve(ctx, conns, notify)
}

// serve reads notifications from the sockets, and replaces the sockets if the interfaces
// change. It closes all of them before it returns.
func (l Listener) serve(ctx context.Context, conns socketSet, notify func(Notification)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	defer cancel()

	notifications := make(chan Notification, maxQueued)
	start := func(conns socketSet) {
		for _, conn := range conns {
			wg.Go(func() {
				readDatagrams(ctx, conn, func(b []byte, from netip.AddrPort) { enqueue(notifications, b, from) })
			})
		}
	}
	start(conns)
	tick := time.NewTicker(interfaceCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			added, _ := l.update(ctx, conns) // the next tick retries failed addresses
			start(added)
		case n := <-notifications:
			if ctx.Err() == nil {
				notify(n)
			}
		}
	}
}

// enqueue parses a datagram, and queues it if it is a notification and the queue has
// space.
func enqueue(notifications chan<- Notification, datagram []byte, from netip.AddrPort) {
	n, err := ParseNotification(datagram)
	if err != nil {
		return
	}
	n.From = from
	select {
	case notifications <- n:
	default:
	}
}

// socketSet holds the sockets of a Listener by the keys of their listen addresses.
type socketSet map[string]*net.UDPConn

// listenAddr is the address at which a socket listens: a group with the interfaces on which
// the socket joins it, or a unicast address.
type listenAddr struct {
	addr       netip.AddrPort
	interfaces []net.Interface
}

// key returns a string that differs between listen addresses. It contains the index of each
// interface, because an interface that is created again usually has another index.
func (p listenAddr) key() string {
	key := p.addr.String()
	for _, ifi := range p.interfaces {
		key += fmt.Sprintf(" %d:%s", ifi.Index, ifi.Name)
	}
	return key
}

// open opens the sockets. It fails if it cannot open any.
func (l Listener) open(ctx context.Context) (socketSet, error) {
	conns := socketSet{}
	_, err := l.update(ctx, conns)
	return conns, err
}

// update opens and returns the sockets of new listen addresses, and closes the sockets of
// listen addresses that no longer exist. It fails if no socket remains.
func (l Listener) update(ctx context.Context, conns socketSet) (added socketSet, err error) {
	addrs, err := l.listenAddrs()
	if err != nil {
		return nil, err
	}
	added = socketSet{}
	old := maps.Clone(conns)
	var errs []error
	for _, p := range addrs {
		key := p.key()
		delete(old, key)
		if conn := conns[key]; conn != nil {
			// Some systems reuse the index of an interface that is created again. Its
			// group memberships were dropped, so the socket must join again. If the
			// memberships still exist, joining fails; that error does not matter.
			_ = join(conn, p.addr.Addr(), p.interfaces)
			continue
		}
		conn, err := p.listen(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		conns[key], added[key] = conn, conn
	}
	for key, conn := range old { // after the new sockets are open, to miss no notification
		_ = conn.Close()
		delete(conns, key)
	}
	if len(conns) == 0 {
		return nil, errors.Join(errs...)
	}
	return added, nil
}

// listenAddrs returns the addresses to listen at: at least one.
func (l Listener) listenAddrs() ([]listenAddr, error) {
	addr := netip.AddrPortFrom(l.Addr.Addr().Unmap(), l.Addr.Port())
	groups := []netip.AddrPort{Multicast, Multicast6}
	if addr.IsValid() {
		if !addr.Addr().IsMulticast() {
			return []listenAddr{{addr: addr}}, nil
		}
		groups = []netip.AddrPort{addr}
		l.Interface = cmp.Or(l.Interface, addr.Addr().Zone())
	}
	interfaces, err := l.interfaces()
	if err != nil {
		return nil, err
	}
	var addrs []listenAddr
	for _, group := range groups {
		for _, shared := range splitInterfaces(group.Addr(), interfaces) {
			addrs = append(addrs, listenAddr{group, shared})
		}
	}
	return addrs, nil
}

// interfaces returns the interfaces to listen on: at least one.
func (l Listener) interfaces() ([]net.Interface, error) {
	if l.Interface != "" {
		ifi, err := net.InterfaceByName(l.Interface)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", l.Interface, err)
		}
		return []net.Interface{*ifi}, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(ifi net.Interface) bool {
		const required = net.FlagUp | net.FlagMulticast
		return ifi.Flags&required != required
	})
	if len(all) == 0 {
		return nil, errors.New("no interface supports multicast")
	}
	return all[:min(len(all), maxInterfaces)], nil
}

// splitInterfaces groups the interfaces by the socket that they share. All interfaces
// share one socket, with one exception: a socket that is bound to an IPv6 link-local group
// is also bound to one interface, so each interface needs its own socket.
func splitInterfaces(group netip.Addr, interfaces []net.Interface) [][]net.Interface {
	if netbind.BindsGroup && group.Is6() && group.IsLinkLocalMulticast() {
		return slices.Collect(slices.Chunk(interfaces, 1))
	}
	return [][]net.Interface{interfaces}
}

// listen opens the socket. If the address is a group, the socket joins the group on each
// interface; listen fails if it cannot join on any of them. If the listenAddr has a single
// interface, the socket receives only the datagrams that arrive on that interface.
func (p listenAddr) listen(ctx context.Context) (*net.UDPConn, error) {
	if !p.addr.Addr().IsMulticast() {
		return bind(ctx, net.ListenConfig{}, "udp", p.addr)
	}
	network, addr := "udp4", p.addr.Addr()
	if addr.Is6() {
		network, addr = "udp6", withZone(addr, p.interfaces[0].Name)
	}
	var only *net.Interface
	if len(p.interfaces) == 1 {
		only = &p.interfaces[0]
	}
	conn, err := netbind.Group(ctx, network, netip.AddrPortFrom(addr, p.addr.Port()), only)
	if err != nil {
		return nil, err
	}
	if err := join(conn, p.addr.Addr(), p.interfaces); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// join joins the group on each interface. It fails if it fails on all of them.
func join(conn *net.UDPConn, group netip.Addr, interfaces []net.Interface) error {
	joinGroup := ipv4.NewPacketConn(conn).JoinGroup
	if group.Is6() {
		joinGroup = ipv6.NewPacketConn(conn).JoinGroup
	}
	var errs []error
	for _, ifi := range interfaces {
		err := joinGroup(&ifi, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group.WithZone(""), 0)))
		if err != nil {
			errs = append(errs, fmt.Errorf("join %v on %s: %w", group, ifi.Name, err))
		}
	}
	if len(errs) == len(interfaces) {
		return errors.Join(errs...)
	}
	return nil
}
