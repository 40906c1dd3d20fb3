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

// cable is the interface lan of this host, and the router at its other end, in a
// namespace of its own.
type cable struct {
	tid int
	run chan func() // on the router
}

// newCable makes the router's namespace. There is no interface yet.
func newCable(t *testing.T) *cable {
	t.Helper()
	c := &cable{run: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		c.tid = unix.Gettid()
		ready <- err
		for f := range c.run {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(c.run) })
	return c
}

// onRouter runs f in the router's namespace.
func (c *cable) onRouter(f func()) {
	done := make(chan struct{})
	c.run <- func() {
		defer close(done)
		f()
	}
	<-done
}

// create creates the interface, with the addresses that it always has.
func (c *cable) create(t *testing.T) {
	t.Helper()
	lab.IP(t, fmt.Sprintf(`
		link add lan type veth peer name far netns %d
		link set lan up
		addr add 10.1.0.5/24 dev lan
		-6 addr add fe80::5/64 dev lan nodad`, c.tid))
	c.onRouter(func() {
		lab.IP(t, `
			link set far up
			addr add 10.1.0.1/24 dev far
			-6 addr add fe80::1/64 dev far nodad`)
	})
	if t.Failed() {
		t.FailNow()
	}
}

// announce sends a datagram of the router to the group.
func (c *cable) announce(t *testing.T, group netip.AddrPort, datagram string) {
	t.Helper()
	c.onRouter(func() {
		far, err := net.InterfaceByName("far")
		if err != nil {
			t.Error(err)
			return
		}
		local := "10.1.0.1:0"
		if group.Addr().Is6() {
			local = fmt.Sprintf("[fe80::1%%%d]:0", far.Index) // package net remembers the index of a name
		}
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(local)))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		leave := ipv4.NewPacketConn(conn).SetMulticastInterface
		if group.Addr().Is6() {
			leave = ipv6.NewPacketConn(conn).SetMulticastInterface
		}
		if err := leave(far); err != nil {
			t.Error(err)
		}
		if _, err := conn.WriteToUDPAddrPort(unhex(t, datagram), group); err != nil {
			t.Error(err)
		}
	})
}

// hears announces until that leads to a signal.
func (c *cable) hears(t *testing.T, w *Watch, group netip.AddrPort, datagram string) {
	t.Helper()
	const longest = 10 * time.Second
	over := time.After(longest)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !t.Failed() {
		select {
		case s := <-w.Signals:
			if s.Reason == announcement(unhex(t, datagram)) {
				return
			}
		case <-tick.C:
			c.announce(t, group, datagram)
		case <-over:
			t.Fatalf("no announcement was heard in %v", longest)
		}
	}
}

// Announcements are heard again after the interface was deleted and created again: those
// to all hosts, and those to a group that only the listener has joined.
func TestNamespaceAnnounceRecreated(t *testing.T) {
	if !lab.Inside(t) {
		return
	}
	joinEvery = 10 * time.Millisecond
	c := newCable(t)
	c.create(t)
	for _, group := range []netip.AddrPort{
		announce4, announce6, netip.MustParseAddrPort("239.0.0.77:5350"), netip.MustParseAddrPort("[ff02::77]:5350"),
	} {
		t.Run(group.String(), func(t *testing.T) {
			config := Config{Gateway: netip.MustParseAddrPort("10.1.0.1:5351")}
			if group.Addr().Is6() {
				config.Gateway = netip.MustParseAddrPort("[fe80::1]:5351")
			}
			l, err := Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			w, err := l.Watch(WatchConfig{Announce: group})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			c.hears(t, w, group, pcpAnnounce)
			lab.IP(t, "link del lan")
			c.create(t)
			c.hears(t, w, group, "00800000 00000000 cb007107")
		})
	}
}

// Requests are answered again after the interface was deleted and created again.
func TestNamespaceLinkRecreated(t *testing.T) {
	if !lab.Inside(t) {
		return
	}
	c := newCable(t)
	c.create(t)
	var router *net.UDPConn
	c.onRouter(func() {
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
	// What is sent before the cable carries anything is lost.
	waits := slices.Repeat([]time.Duration{50 * time.Millisecond}, 200)
	for _, config := range []Config{
		{Interface: "lan"}, {}, {Source: netip.MustParseAddr("10.1.0.5")},
	} {
		config.Gateway = netip.MustParseAddrPort("10.1.0.1:5351")
		l, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := l.Do(t.Context(), echoes("before", waits...)); err != nil {
			t.Fatalf("%+v: at the beginning: %v", config, err)
		}
		lab.IP(t, "link del lan")
		c.create(t)
		if _, err := l.Do(t.Context(), echoes("after", waits...)); err != nil {
			t.Errorf("%+v: after the interface was created again: %v", config, err)
		}
	}
}
