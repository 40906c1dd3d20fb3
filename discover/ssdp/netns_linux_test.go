package ssdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/lab"
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
