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

// inNamespace and ip are short for the tests of this package.
var inNamespace, ip = lab.Inside, lab.IP

// otherHost is a host at the far end of the interface lan, with sockets in SSDP's
// groups.
type otherHost struct {
	device4 *ipv4.PacketConn
	device6 *ipv6.PacketConn
	// From other ports; multicast leaves by lan.
	sender4, sender6 *net.UDPConn
}

// twoHosts makes this namespace a host with two interfaces, one without any
// device, where the routes of all multicast lead, and lan. All is quiet but for
// what the test sends.
func twoHosts(t *testing.T) otherHost {
	t.Helper()
	for _, name := range []string{"default", "all"} {
		path := "/proc/sys/net/ipv6/conf/" + name + "/addr_gen_mode"
		if err := os.WriteFile(path, []byte("1"), 0); err != nil { // none
			t.Logf("%s: %v", path, err)
		}
	}
	ip(t, `
		link set lo up
		link add empty type veth peer name nobody
		link set nobody up
		link add lan type veth peer name far
		link set empty up
		link set lan up
		addr add 10.2.0.5/24 dev empty
		addr add 10.1.0.5/24 dev lan
		-6 addr add fe80::5/64 dev lan nodad
		-6 addr add fe80::5/64 dev empty nodad
		route add default via 10.2.0.1 dev empty
		-6 route add multicast ff00::/8 dev empty table local metric 1`)
	tid, moved, made := make(chan int), make(chan bool), make(chan otherHost)
	go func() {
		defer close(made)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a second namespace: %v", err)
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
		made <- newOtherHost(t)
	}()
	id, ok := <-tid
	if !ok {
		t.FailNow()
	}
	ip(t, fmt.Sprintf("link set far netns %d", id))
	moved <- true
	host, ok := <-made
	if !ok || t.Failed() {
		t.FailNow()
	}
	return host
}

// newOtherHost makes the sockets in the thread's network namespace.
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

// answer4 answers searches, by the search's own words: where it went and how far
// it may go.
func (h otherHost) answer4() {
	buf := make([]byte, maxDatagram)
	for {
		_, cm, from, err := h.device4.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = h.sender4.WriteTo([]byte(answer(fmt.Sprintf("%v ttl %d", cm.Dst, cm.TTL))), from)
	}
}

func (h otherHost) answer6() {
	buf := make([]byte, maxDatagram)
	for {
		_, cm, from, err := h.device6.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = h.sender6.WriteTo([]byte(answer(fmt.Sprintf("%v ttl %d", cm.Dst, cm.HopLimit))), from)
	}
}

// announce sends a notice to each group: alive by IPv4, byebye by IPv6.
func (h otherHost) announce(t *testing.T) {
	t.Helper()
	_, err4 := h.sender4.WriteToUDPAddrPort([]byte(crlf(alive)), Multicast)
	_, err6 := h.sender6.WriteToUDPAddrPort([]byte(crlf(byebye)), Multicast6)
	if err := errors.Join(err4, err6); err != nil {
		t.Fatal(err)
	}
}

// Multicast leaves by the interface that is named, or that has the source, not by
// the one that the routes prefer.
func TestNamespaceSearch(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
	go h.answer4()
	go h.answer6()
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
			"unicast by route",
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
		for a, err := range tt.search.Responses(soon(t)) {
			got = fmt.Sprint(a.Location, " ", a.From)
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

// Notices are heard on the interface that is named, or on all, in both families,
// beside others who listen.
func TestNamespaceListen(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
	for _, l := range []Listener{
		{},
		{Interface: "lan"},
		{Addr: Multicast},
		{Addr: Multicast6, Interface: "lan"},
		{Addr: netip.MustParseAddrPort("[ff02::c%lan]:1900")},
	} {
		beside, err := (Listener{}).open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns, err := l.open(t.Context())
		if err != nil {
			t.Fatalf("%+v: %v", l, err)
		}
		h.tellDevice(t)
		h.announce(t)
		want := map[string]bool{"alive from 10.1.0.1:40000": true, "byebye from [fe80::1%lan]:40000": true}
		if l.Addr.IsValid() {
			delete(want, map[bool]string{
				true: "byebye from [fe80::1%lan]:40000", false: "alive from 10.1.0.1:40000",
			}[l.Addr.Addr().Is4()])
		}
		ctx, cancel := context.WithCancelCause(soon(t))
		enough := errors.New("enough")
		err = l.serve(ctx, conns, func(n Notification) {
			told := fmt.Sprint(n.Kind, " from ", n.From)
			if !want[told] {
				t.Errorf("%+v: %s", l, told)
			}
			if delete(want, told); len(want) == 0 {
				cancel(enough)
			}
		})
		if !errors.Is(err, enough) {
			t.Errorf("%+v: %v, not heard: %v", l, err, want)
		}
		cancel(nil)
		for _, conn := range beside {
			_ = conn.Close()
		}
	}
}

// An interface that comes after the start is joined, and so is one whose memberships the
// system has dropped. Sockets that are not concerned stay.
func TestNamespaceListenUpdate(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
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
		t.Errorf("%d sockets were added and %d are there, %v; want 2 of 4", len(added), len(conns), err)
	}
	kept := 0
	for key, conn := range before {
		switch {
		case conns[key] == conn:
			kept++
		case conn.SetDeadline(time.Time{}) == nil:
			t.Errorf("the socket of %s is open, which was replaced", key)
		}
	}
	if kept != 2 {
		t.Errorf("%d sockets were kept, want those of IPv6 on the two other interfaces", kept)
	}
	lan, err := net.InterfaceByName("lan")
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns { // of the other family, this fails
		_ = ipv4.NewPacketConn(conn).LeaveGroup(lan, net.UDPAddrFromAddrPort(Multicast))
		_ = ipv6.NewPacketConn(conn).LeaveGroup(lan, net.UDPAddrFromAddrPort(Multicast6))
	}
	if added, err := l.update(t.Context(), conns); err != nil || len(added) != 0 || len(conns) != 4 {
		t.Errorf("%d sockets were added and %d are there, %v; want 0 of 4", len(added), len(conns), err)
	}
	h.announce(t)
	heard := map[NotificationKind]bool{}
	ctx, cancel := context.WithCancel(soon(t))
	_ = l.serve(ctx, conns, func(n Notification) {
		if heard[n.Kind] = true; len(heard) == 2 {
			cancel()
		}
	})
	if len(heard) != 2 {
		t.Errorf("heard %v, want a notice of each family", heard)
	}
}

// tellDevice sends datagrams to this host itself, where a UPnP device, and nobody
// else, is to get them.
func (h otherHost) tellDevice(t *testing.T) {
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
	tell := func(network, device, addr string, from *net.UDPConn) {
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
			t.Errorf("the device at %s got nothing: %v", device, err)
		}
	}
	tell("udp4", "0.0.0.0:1900", "10.1.0.5:1900", h.sender4)
	tell("udp6", "[::]:1900", "[fe80::5%far]:1900", h.sender6)
}

// What comes in by another interface than the one that is named is not heard.
func TestNamespaceListenElsewhere(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
	deaf, err := (Listener{Interface: "empty"}).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// One more who listens everywhere makes the host a member, so that the
	// datagrams get as far as the sockets, and tells when they have.
	conns, err := (Listener{}).open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.announce(t)
	heard := 0
	ctx, cancel := context.WithCancel(soon(t))
	_ = Listener{}.serve(ctx, conns, func(Notification) {
		if heard++; heard == 2 {
			cancel()
		}
	})
	if heard != 2 {
		t.Fatalf("%d of 2 notices heard", heard)
	}
	for _, conn := range deaf {
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Read(func(fd uintptr) bool {
			if _, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("%v heard it: %v", conn.LocalAddr(), err)
			}
			return true
		})
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Error(err)
		}
	}
}

// Where the kernel has two ports to choose from, SSDP's own is never the one.
func TestNamespaceSourcePort(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ip(t, "link set lo up")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("1900 1901"), 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		conn, err := openSearch(t.Context(), seat{network: "udp4", local: loopback4})
		if err != nil {
			t.Fatal(err)
		}
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			t.Fatalf("a %T", conn)
		}
		if at := addrOf(t, udp); at.Port() != 1901 {
			t.Errorf("searching from %v", at)
		}
		_ = conn.Close()
	}
}

// A Listener on an interface hears notices again after that interface was deleted
// and created again under the same name.
func TestNamespaceListenRecreated(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := twoHosts(t)
	// The cable to the other host becomes a port of a switch, so that the interface
	// can go without it.
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
	heard, ended := make(chan NotificationKind, 1024), make(chan error, 1)
	go func() {
		ended <- Listener{Addr: Multicast, Interface: "lan"}.Listen(ctx, func(n Notification) { heard <- n.Kind })
	}()
	hears := func(kind NotificationKind, notice, when string) {
		t.Helper()
		const longest = 10 * time.Second
		over := time.After(longest)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case got := <-heard:
				if got == kind {
					return
				}
			case <-tick.C:
				if _, err := h.sender4.WriteToUDPAddrPort([]byte(crlf(notice)), Multicast); err != nil {
					t.Fatal(err)
				}
			case err := <-ended:
				t.Fatalf("%s: Listen returned: %v", when, err)
			case <-over:
				t.Fatalf("%s: no notice was heard in %v, and one was sent every 100 ms", when, longest)
			}
		}
	}
	hears(Alive, alive, "at the beginning")
	ip(t, "link del lan")
	create()
	hears(ByeBye, byebye, "after the interface was created again")
	cancel()
	<-ended
}
