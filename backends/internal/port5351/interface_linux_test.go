package port5351

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/lab"
)

// vethPair is the interface lan of this host and, at the other end, a router in its
// own network namespace.
type vethPair struct {
	tid int
	run chan func() // on the router
}

// newVethPair creates the router's namespace, without an interface.
func newVethPair(t *testing.T) *vethPair {
	t.Helper()
	pair := &vethPair{run: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		pair.tid = unix.Gettid()
		ready <- err
		for f := range pair.run {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(pair.run) })
	return pair
}

// onRouter runs f in the router's namespace.
func (c *vethPair) onRouter(f func()) {
	done := make(chan struct{})
	c.run <- func() {
		defer close(done)
		f()
	}
	<-done
}

// create creates the interface. Its addresses are always the same.
func (c *vethPair) create(t *testing.T) {
	t.Helper()
	lab.IP(t, fmt.Sprintf(`
		link add lan type veth peer name router netns %d
		link set lan up
		addr add 10.1.0.5/24 dev lan
		-6 addr add fe80::5/64 dev lan nodad`, c.tid))
	c.onRouter(func() {
		lab.IP(t, `
			link set router up
			addr add 10.1.0.1/24 dev router
			-6 addr add fe80::1/64 dev router nodad`)
	})
	if t.Failed() {
		t.FailNow()
	}
}

// announce sends a datagram from the router to the group.
func (c *vethPair) announce(t *testing.T, group netip.AddrPort, datagram string) {
	t.Helper()
	c.onRouter(func() {
		ifi, err := net.InterfaceByName("router")
		if err != nil {
			t.Error(err)
			return
		}
		local := "10.1.0.1:0"
		if group.Addr().Is6() {
			local = fmt.Sprintf("[fe80::1%%%d]:0", ifi.Index) // the index, because package net caches the index of a name
		}
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local)))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		setInterface := ipv4.NewPacketConn(conn).SetMulticastInterface
		if group.Addr().Is6() {
			setInterface = ipv6.NewPacketConn(conn).SetMulticastInterface
		}
		if err := setInterface(ifi); err != nil {
			t.Error(err)
		}
		if _, err := conn.WriteToUDPAddrPort(unhex(t, datagram), group); err != nil {
			t.Error(err)
		}
	})
}

// awaitHint sends announcements until one causes a hint.
func (c *vethPair) awaitHint(t *testing.T, w *Watch, group netip.AddrPort, datagram string) {
	t.Helper()
	const limit = 10 * time.Second
	timeout := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !t.Failed() {
		select {
		case s := <-w.Hints:
			if s.Reason == announcementReason(unhex(t, datagram)) {
				return
			}
		case <-tick.C:
			c.announce(t, group, datagram)
		case <-timeout:
			t.Fatalf("no announcement was received in %v", limit)
		}
	}
}

// TestNamespaceAnnounceAfterRecreate checks that announcements are received after
// the interface was deleted and created again. It tests the groups of all hosts,
// and groups that only the listener has joined.
func TestNamespaceAnnounceAfterRecreate(t *testing.T) {
	if !lab.Inside(t) {
		return
	}
	joinInterval = 10 * time.Millisecond
	pair := newVethPair(t)
	pair.create(t)
	for _, group := range []netip.AddrPort{
		announce4, announce6, netip.MustParseAddrPort("239.0.0.77:5350"), netip.MustParseAddrPort("[ff02::77]:5350"),
	} {
		t.Run(group.String(), func(t *testing.T) {
			config := Config{Gateway: netip.MustParseAddrPort("10.1.0.1:5351")}
			if group.Addr().Is6() {
				config.Gateway = netip.MustParseAddrPort("[fe80::1]:5351")
			}
			conn, err := Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			w, err := conn.Watch(WatchConfig{Announce: group})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			pair.awaitHint(t, w, group, pcpAnnounce)
			lab.IP(t, "link del lan")
			pair.create(t)
			pair.awaitHint(t, w, group, "00800000 00000000 cb007107")
		})
	}
}

// TestNamespaceRequestAfterRecreate checks that requests are answered after the
// interface was deleted and created again.
func TestNamespaceRequestAfterRecreate(t *testing.T) {
	if !lab.Inside(t) {
		return
	}
	pair := newVethPair(t)
	pair.create(t)
	var router *net.UDPConn
	pair.onRouter(func() {
		var err error
		if router, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("0.0.0.0:5351"))); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		return
	}
	defer router.Close()
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := router.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = router.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	// Datagrams that are sent before the link is up are lost.
	waits := slices.Repeat([]time.Duration{50 * time.Millisecond}, 200)
	for _, config := range []Config{
		{Interface: "lan"}, {}, {Source: netip.MustParseAddr("10.1.0.5")},
	} {
		config.Gateway = netip.MustParseAddrPort("10.1.0.1:5351")
		conn, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Do(t.Context(), echo("before", waits...)); err != nil {
			t.Fatalf("%+v: before: %v", config, err)
		}
		lab.IP(t, "link del lan")
		pair.create(t)
		if _, err := conn.Do(t.Context(), echo("after", waits...)); err != nil {
			t.Errorf("%+v: after the interface was created again: %v", config, err)
		}
	}
}
