package netbind_test

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/netbind"
)

// TestControlTTL checks that the sockets of a net.Dialer have the number of hops.
func TestControlTTL(t *testing.T) {
	control, err := netbind.ControlTTL(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		network, to   string
		level, option int
	}{
		{"udp4", "127.0.0.1:9", unix.IPPROTO_IP, unix.IP_TTL},
		{"udp6", "[::1]:9", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS},
	} {
		d := net.Dialer{Control: control}
		conn, err := d.DialContext(t.Context(), tt.network, tt.to)
		if err != nil {
			t.Errorf("%s: %v", tt.network, err)
			continue
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var hops int
		if controlErr := raw.Control(func(fd uintptr) { hops, err = unix.GetsockoptInt(int(fd), tt.level, tt.option) }); controlErr != nil || err != nil || hops != 2 {
			t.Errorf("%s: %d hops, %v, %v, want 2", tt.network, hops, controlErr, err)
		}
	}
}
