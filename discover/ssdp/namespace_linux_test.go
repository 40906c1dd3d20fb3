package ssdp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// inNamespace and ip are short names for functions of package lab.
var inNamespace, ip = lab.Inside, lab.IP

// otherHost is a second host on the link of the interface lan. Its sockets have joined the
// SSDP groups.
type otherHost struct {
	device4 *ipv4.PacketConn
	device6 *ipv6.PacketConn
	// sender4 and sender6 have other ports. They send multicast through the interface far.
	sender4, sender6 *net.UDPConn
}

// newTwoHosts turns this namespace into a host with two interfaces, lan and empty. All
// multicast routes use empty, which has no devices. Only the test sends datagrams.
func newTwoHosts(t *testing.T) otherHost {
	t.Helper()
	for _, name := range []string{"default", "all"} {
		path := "/proc/sys/net/ipv6/conf/" + name + "/addr_gen_mode"
		if err := os.WriteFile(path, []byte("1"), 0); err != nil { // no generated addresses
			t.Logf("%s: %v", path, err)
		}
	}
	ip(t, `
		link set lo up
		link add empty type veth peer name emptypeer
		link set emptypeer up
		link add lan type veth peer name far
		link set empty up
		link set lan up
		addr add 10.2.0.5/24 dev empty
		addr add 10.1.0.5/24 dev lan
		-6 addr add fe80::5/64 dev lan nodad
		-6 addr add fe80::5/64 dev empty nodad
		route add default via 10.2.0.1 dev empty
		-6 route add multicast ff00::/8 dev empty table local metric 1`)
	tid, moved, created := make(chan int), make(chan bool), make(chan otherHost)
	go func() {
		defer close(created)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("create a second namespace: %v", err)
			close(tid)
			return
		}
		tid <- unix.Gettid()
		<-moved
		ip(t, `
			link set lo up
			link set far up
			addr add 10.1.0.1/24 dev far
			-6 addr add fe80::1/64 dev far nodad`)
		created <- newOtherHost(t)
	}()
	id, ok := <-tid
	if !ok {
		t.FailNow()
	}
	ip(t, fmt.Sprintf("link set far netns %d", id))
	moved <- true
	host, ok := <-created
	if !ok || t.Failed() {
		t.FailNow()
	}
	return host
}

// newOtherHost opens the sockets in the network namespace of the thread.
func newOtherHost(t *testing.T) otherHost {
	var h otherHost
	far, err := net.InterfaceByName("far")
	if err != nil {
		t.Error(err)
		return h
	}
	open := func(network string, addr string) *net.UDPConn {
		conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	h.device4, h.device6 = ipv4.NewPacketConn(open("udp4", "0.0.0.0:1900")), ipv6.NewPacketConn(open("udp6", "[::]:1900"))
	h.sender4, h.sender6 = open("udp4", "10.1.0.1:40000"), open("udp6", "[fe80::1%far]:40000")
	if t.Failed() {
		return h
	}
	for _, err := range []error{
		h.device4.JoinGroup(far, net.UDPAddrFromAddrPort(Multicast)),
		h.device4.SetControlMessage(ipv4.FlagTTL|ipv4.FlagDst, true),
		h.device6.JoinGroup(far, net.UDPAddrFromAddrPort(Multicast6)),
		h.device6.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst, true),
		ipv4.NewPacketConn(h.sender4).SetMulticastInterface(far),
		ipv6.NewPacketConn(h.sender6).SetMulticastInterface(far),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	return h
}

// respond4 responds to each IPv4 search. The location in the response is the destination
// and the TTL of the search.
func (h otherHost) respond4() {
	buf := make([]byte, maxDatagram)
	for {
		_, cm, from, err := h.device4.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = h.sender4.WriteTo([]byte(responseText(fmt.Sprintf("%v ttl %d", cm.Dst, cm.TTL))), from)
	}
}

// respond6 is respond4 for IPv6.
func (h otherHost) respond6() {
	buf := make([]byte, maxDatagram)
	for {
		_, cm, from, err := h.device6.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = h.sender6.WriteTo([]byte(responseText(fmt.Sprintf("%v ttl %d", cm.Dst, cm.HopLimit))), from)
	}
}

// announce sends a notification to each group: alive over IPv4, byebye over IPv6.
func (h otherHost) announce(t *testing.T) {
	t.Helper()
	_, err4 := h.sender4.WriteToUDPAddrPort([]byte(crlf(alive)), Multicast)
	_, err6 := h.sender6.WriteToUDPAddrPort([]byte(crlf(byebye)), Multicast6)
	if err := errors.Join(err4, err6); err != nil {
		t.Fatal(err)
	}
}

// TestNamespaceSearch checks that multicast leaves through the interface that is named or
// that has the source address, and not through the one that the routes prefer.
func TestNamespaceSearch(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newTwoHosts(t)
	go h.respond4()
	go h.respond6()
	group6 := netip.AddrPortFrom(Multicast6.Addr().WithZone("lan"), Port)
	for _, tt := range []struct {
		name   string
		search Search
		want   string
	}{
		{"interface", Search{Interface: "lan"}, "239.255.255.250 ttl 2 10.1.0.1:40000"},
		{"source", Search{Source: netip.MustParseAddr("10.1.0.5")}, "239.255.255.250 ttl 2 10.1.0.1:40000"},
		{
			"IPv6",
			Search{Interface: "lan", To: []netip.AddrPort{Multicast6}},
			"ff02::c ttl 2 [fe80::1%lan]:40000",
		},
		{"IPv6 zone", Search{To: []netip.AddrPort{group6}}, "ff02::c ttl 2 [fe80::1%lan]:40000"},
		{
			"IPv6 source",
			Search{Source: netip.MustParseAddr("fe80::5%lan"), To: []netip.AddrPort{Multicast6}},
			"ff02::c ttl 2 [fe80::1%lan]:40000",
		},
		{
			"unicast through a route",
			Search{To: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.1:1900")}},
			"10.1.0.1 ttl 64 10.1.0.1:40000",
		},
		{
			"unicast on the link",
			Search{Interface: "lan", To: []netip.AddrPort{netip.MustParseAddrPort("[fe80::1]:1900")}},
			"fe80::1 ttl 64 [fe80::1%lan]:40000",
		},
	} {
		got := "nothing"
		for r, err := range tt.search.Responses(testContext(t)) {
			got = fmt.Sprint(r.Location, " ", r.From)
			if err != nil {
				got = err.Error()
			}
			break
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestNamespaceListen checks that notifications are received on the named interface or on
// all interfaces, in both address families, while another Listener is active.
func TestNamespaceListen(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newTwoHosts(t)
	for _, l := range []Listener{
		{},
		{Interface: "lan"},
		{Addr: Multicast},
		{Addr: Multicast6, Interface: "lan"},
		{Addr: netip.MustParseAddrPort("[ff02::c%lan]:1900")},
	} {
		others, err := (Listener{}).open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns, err := l.open(t.Context())
		if err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		h.sendToDevice(t)
		h.announce(t)
		want := map[string]bool{"alive from 10.1.0.1:40000": true, "byebye from [fe80::1%lan]:40000": true}
		if l.Addr.IsValid() {
			delete(want, map[bool]string{
				true: "byebye from [fe80::1%lan]:40000", false: "alive from 10.1.0.1:40000",
			}[l.Addr.Addr().Is4()])
		}
		ctx, cancel := context.WithCancelCause(testContext(t))
		errDone := errors.New("received all notifications")
		err = l.serve(ctx, conns, func(n Notification) {
			got := fmt.Sprint(n.Kind, " from ", n.From)
			if !want[got] {
				t.Errorf("%+v: %s", l, got)
			}
			if delete(want, got); len(want) == 0 {
				cancel(errDone)
			}
		})
		if !errors.Is(err, errDone) {
			t.Errorf("%+v: %v, not received: %v", l, err, want)
		}
		cancel(nil)
		for _, conn := range others {
			_ = conn.Close()
		}
	}
}

// TestNamespaceListenUpdate checks that update joins the groups on an interface that
// appears later, and on an interface whose memberships the system has dropped. It keeps
// the sockets of the other interfaces.
func TestNamespaceListenUpdate(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newTwoHosts(t)
	l := Listener{}
	ip(t, "link set lan multicast off")
	conns, err := l.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	before := maps.Clone(conns)
	ip(t, "link set lan multicast on")
	// IPv4 has one socket for all interfaces, and IPv6 one for each.
	if added, err := l.update(t.Context(), conns); err != nil || len(added) != 2 || len(conns) != 4 {
		t.Errorf("%d sockets were added and %d exist, %v; want 2 of 4", len(added), len(conns), err)
	}
	kept := 0
	for key, conn := range before {
		switch {
		case conns[key] == conn:
			kept++
		case conn.SetDeadline(time.Time{}) == nil:
			t.Errorf("the replaced socket of %s is still open", key)
		}
	}
	if kept != 2 {
		t.Errorf("%d sockets were kept, want the IPv6 sockets of the two other interfaces", kept)
	}
	lan, err := net.InterfaceByName("lan")
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns { // one of the two calls fails, because the family differs
		_ = ipv4.NewPacketConn(conn).LeaveGroup(lan, net.UDPAddrFromAddrPort(Multicast))
		_ = ipv6.NewPacketConn(conn).LeaveGroup(lan, net.UDPAddrFromAddrPort(Multicast6))
	}
	if added, err := l.update(t.Context(), conns); err != nil || len(added) != 0 || len(conns) != 4 {
		t.Errorf("%d sockets were added and %d exist, %v; want 0 of 4", len(added), len(conns), err)
	}
	h.announce(t)
	received := map[NotificationKind]bool{}
	ctx, cancel := context.WithCancel(testContext(t))
	_ = l.serve(ctx, conns, func(n Notification) {
		if received[n.Kind] = true; len(received) == 2 {
			cancel()
		}
	})
	if len(received) != 2 {
		t.Errorf("received %v, want a notification of each address family", received)
	}
}

// sendToDevice sends unicast datagrams to a UPnP device on this host, and checks that they
// reach the device and no Listener.
func (h otherHost) sendToDevice(t *testing.T) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
				if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}}
	send := func(network, device, addr string, from *net.UDPConn) {
		conn, err := bind(t.Context(), lc, network, netip.MustParseAddrPort(device))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := from.WriteToUDPAddrPort([]byte(crlf(update)), netip.MustParseAddrPort(addr)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := conn.ReadFrom(make([]byte, maxDatagram)); err != nil {
			t.Errorf("the device at %s received nothing: %v", device, err)
		}
	}
	send("udp4", "0.0.0.0:1900", "10.1.0.5:1900", h.sender4)
	send("udp6", "[::]:1900", "[fe80::5%far]:1900", h.sender6)
}

// TestNamespaceListenOtherInterface checks that a Listener on one interface does not
// receive notifications that arrive on another interface.
func TestNamespaceListenOtherInterface(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newTwoHosts(t)
	tested, err := (Listener{Interface: "empty"}).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A second Listener on all interfaces makes the host a member of the groups on lan, so
	// that the datagrams reach the sockets. It also shows when they have arrived.
	conns, err := (Listener{}).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.announce(t)
	received := 0
	ctx, cancel := context.WithCancel(testContext(t))
	_ = Listener{}.serve(ctx, conns, func(Notification) {
		if received++; received == 2 {
			cancel()
		}
	})
	if received != 2 {
		t.Fatalf("received %d of 2 notifications", received)
	}
	for _, conn := range tested {
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Read(func(fd uintptr) bool {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("%v received a datagram: %v", conn.LocalAddr(), err)
			}
			return true
		})
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestNamespaceSourcePort checks that a search never uses port 1900 as its source port, even
// if that is one of only two ports from which the kernel can choose.
func TestNamespaceSourcePort(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ip(t, "link set lo up")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1900 1901"), 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		conn, err := openSearchSocket(t.Context(), socketConfig{network: "udp4", local: loopback4})
		if err != nil {
			t.Fatal(err)
		}
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			t.Fatalf("the socket is a %T", conn)
		}
		if at := addrOf(t, udp); at.Port() != 1901 {
			t.Errorf("searching from %v", at)
		}
		_ = conn.Close()
	}
}

// TestNamespaceListenRecreated checks that a Listener receives notifications again after its
// interface was deleted and created again under the same name.
func TestNamespaceListenRecreated(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newTwoHosts(t)
	// The veth device that is connected to the other host becomes a port of a bridge. The
	// interface lan can then be deleted without deleting that device.
	ip(t, `
		link set lan down
		link set lan name cable
		addr flush dev cable
		link add switch type bridge stp_state 0 mcast_snooping 0
		link set cable master switch
		link set cable up
		link set switch up`)
	create := func() {
		ip(t, `
			link add lan type veth peer name port
			link set port master switch
			link set port up
			link set lan up
			addr add 10.1.0.5/24 dev lan`)
	}
	create()
	ctx, cancel := context.WithCancel(t.Context())
	received, ended := make(chan NotificationKind, 1024), make(chan error, 1)
	go func() {
		ended <- Listener{Addr: Multicast, Interface: "lan"}.Listen(ctx, func(n Notification) { received <- n.Kind })
	}()
	checkReceived := func(kind NotificationKind, notification, when string) {
		t.Helper()
		const limit = 10 * time.Second
		timeout := time.After(limit)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case got := <-received:
				if got == kind {
					return
				}
			case <-tick.C:
				if _, err := h.sender4.WriteToUDPAddrPort([]byte(crlf(notification)), Multicast); err != nil {
					t.Fatal(err)
				}
			case err := <-ended:
				t.Fatalf("%s: Listen returned: %v", when, err)
			case <-timeout:
				t.Fatalf("%s: no notification was received in %v, although one was sent every 100 ms", when, limit)
			}
		}
	}
	checkReceived(Alive, alive, "at the start")
	ip(t, "link del lan")
	create()
	checkReceived(ByeBye, byebye, "after the interface was created again")
	cancel()
	<-ended
}
