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

// Listener hears what devices announce (UPnP Device Architecture 1.1, section
// 1.2). The zero Listener hears it on all interfaces that are up. Interfaces are
// looked at every 5 seconds: one that came up, or was created again under its name,
// is heard from then on.
type Listener struct {
	// Addr is where to listen. The zero AddrPort: Multicast and Multicast6,
	// whichever of them can be had. A multicast address is joined, and shared with
	// whoever else listens there; any other is bound.
	Addr netip.AddrPort
	// Interface is the interface to listen on; empty: the one that is the zone of
	// Addr, else all. It does not matter where Addr is a unicast address.
	Interface string
}

// maxQueue is how many notices wait for a notify that is slow; beyond them they
// are lost.
const maxQueue = 64

// maxInterfaces bounds the sockets on a host with very many interfaces.
const maxInterfaces = 32

// interfacesEvery is how often the interfaces are looked at.
const interfacesEvery = 5 * time.Second

// Listen calls notify for each notice, until ctx ends, and returns the cause of
// that end (context.Cause). It fails earlier only if it can listen nowhere when it
// starts. Calls do not overlap, and Listen does not return before a running one does.
// All else that arrives, such as searches, is ignored.
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

// serve reads notices from the sockets, which are its own, and replaces them if the
// interfaces change.
func (l Listener) serve(ctx context.Context, conns byPlace, notify func(Notification)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	defer cancel()

	notices := make(chan Notification, maxQueue)
	start := func(conns byPlace) {
		for _, conn := range conns {
			wg.Go(func() {
				read(ctx, conn, func(b []byte, from netip.AddrPort) { queue(notices, b, from) })
			})
		}
	}
	start(conns)
	tick := time.NewTicker(interfacesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			added, _ := l.update(ctx, conns) // what failed is tried again at the next tick
			start(added)
		case n := <-notices:
			if ctx.Err() == nil {
				notify(n)
			}
		}
	}
}

// queue keeps a datagram if it is a notice and there is room.
func queue(notices chan<- Notification, datagram []byte, from netip.AddrPort) {
	n, err := ParseNotification(datagram)
	if err != nil {
		return
	}
	n.From = from
	select {
	case notices <- n:
	default:
	}
}

// byPlace are the sockets of a Listener, by the key of their place.
type byPlace map[string]*net.UDPConn

// place is where a socket listens: at a group on some interfaces, or at a unicast
// address.
type place struct {
	addr       netip.AddrPort
	interfaces []net.Interface
}

// key differs between places. An interface that is created again has another index.
func (p place) key() string {
	key := p.addr.String()
	for _, ifi := range p.interfaces {
		key += fmt.Sprintf(" %d:%s", ifi.Index, ifi.Name)
	}
	return key
}

// open makes the sockets; it fails where there would be none.
func (l Listener) open(ctx context.Context) (byPlace, error) {
	conns := byPlace{}
	_, err := l.update(ctx, conns)
	return conns, err
}

// update makes the sockets that are missing, which it returns, and closes those that
// have no place any more. It fails if none is left.
func (l Listener) update(ctx context.Context, conns byPlace) (added byPlace, err error) {
	places, err := l.places()
	if err != nil {
		return nil, err
	}
	added = byPlace{}
	old := maps.Clone(conns)
	var errs []error
	for _, p := range places {
		key := p.key()
		delete(old, key)
		if conn := conns[key]; conn != nil {
			// Some systems give an interface that is created again the index that it
			// had. Its memberships are gone. If they are not, this fails.
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
	for key, conn := range old { // only now, so that no notice is missed in between
		_ = conn.Close()
		delete(conns, key)
	}
	if len(conns) == 0 {
		return nil, errors.Join(errs...)
	}
	return added, nil
}

// places are those to listen at, at least one.
func (l Listener) places() ([]place, error) {
	addr := netip.AddrPortFrom(l.Addr.Addr().Unmap(), l.Addr.Port())
	groups := []netip.AddrPort{Multicast, Multicast6}
	if addr.IsValid() {
		if !addr.Addr().IsMulticast() {
			return []place{{addr: addr}}, nil
		}
		groups = []netip.AddrPort{addr}
		l.Interface = cmp.Or(l.Interface, addr.Addr().Zone())
	}
	interfaces, err := l.interfaces()
	if err != nil {
		return nil, err
	}
	var places []place
	for _, group := range groups {
		for _, part := range parts(group.Addr(), interfaces) {
			places = append(places, place{group, part})
		}
	}
	return places, nil
}

// interfaces are those to listen on, at least one.
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
		const need = net.FlagUp | net.FlagMulticast
		return ifi.Flags&need != need
	})
	if len(all) == 0 {
		return nil, errors.New("no interface has multicast")
	}
	return all[:min(len(all), maxInterfaces)], nil
}

// parts are the interfaces that share a socket. All do, except that a link-local
// group is bound on one interface.
func parts(group netip.Addr, interfaces []net.Interface) [][]net.Interface {
	if netbind.BindsGroup && group.Is6() && group.IsLinkLocalMulticast() {
		return slices.Collect(slices.Chunk(interfaces, 1))
	}
	return [][]net.Interface{interfaces}
}

// listen makes the socket. At a group's address, it has joined the group on at least
// one of the interfaces. Of a single one it hears nothing but that.
func (p place) listen(ctx context.Context) (*net.UDPConn, error) {
	if !p.addr.Addr().IsMulticast() {
		return bind(ctx, net.ListenConfig{}, "udp", p.addr)
	}
	network, addr := "udp4", p.addr.Addr()
	if addr.Is6() {
		network, addr = "udp6", scoped(addr, p.interfaces[0].Name)
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

// join fails where no interface can.
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
