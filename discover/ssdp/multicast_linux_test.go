package ssdp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

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
