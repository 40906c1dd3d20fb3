package netbind_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/netbind"
)

// TestGroup checks that a socket at a group shares the address, and does not receive
// datagrams that are sent to another address with the same port.
func TestGroup(t *testing.T) {
	if !netbind.BindsGroup {
		t.Skip("this system cannot bind a socket to a group")
	}
	first, err := netbind.Group(t.Context(), "udp4", netip.MustParseAddrPort("224.0.0.1:0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	at := first.LocalAddr().(*net.UDPAddr).AddrPort()
	if at.Addr() != netip.MustParseAddr("224.0.0.1") {
		t.Fatalf("bound %v, want the group", at)
	}
	second, err := netbind.Group(t.Context(), "udp4", at, nil)
	if err != nil {
		t.Fatalf("a second listener: %v", err)
	}
	defer second.Close()

	// A socket on the same port of this host receives the datagrams to the host.
	var lc net.ListenConfig
	device, err := lc.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if _, err := device.WriteTo([]byte("for the host"), device.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = device.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := device.ReadFrom(make([]byte, 64)); err != nil {
		t.Errorf("the socket of the group received a datagram to the host: %v", err)
	}
}

// TestControl checks that a socket can be bound to loopback, and not to an interface that
// does not exist.
func TestControl(t *testing.T) {
	lo, err := net.InterfaceByIndex(1)
	if err != nil || lo.Flags&net.FlagLoopback == 0 {
		t.Skip("the first interface is not loopback")
	}
	var d net.Dialer
	if d.Control, err = netbind.Control(lo); errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	conn, err := d.DialContext(t.Context(), "udp4", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if d.Control, err = netbind.Control(&net.Interface{Index: 1 << 20, Name: "no-such-one"}); err != nil {
		t.Fatal(err)
	}
	if conn, err := d.DialContext(t.Context(), "udp4", "127.0.0.1:9"); err == nil {
		_ = conn.Close()
		t.Error("bound to an interface that does not exist")
	}
}
