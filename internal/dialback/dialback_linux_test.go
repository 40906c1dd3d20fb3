package dialback

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/backends"
)

// TestTCPTimeout checks the outcome if no packet comes back: the queue of a socket that accepts
// nothing is full, so the kernel drops SYNs as a firewall does.
func TestTCPTimeout(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	call := Call{Protocol: backends.TCP, To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port)), Nonce: nonce, Want: want} //nolint:gosec // a port
	for range 2 {                                                                                                                                                   // a queue of length 0 has room for one connection
		outcome, _, err := call.Do(within(t, 400*time.Millisecond), nil)
		if err != nil {
			t.Fatal(err)
		}
		if outcome == TimedOut {
			return
		}
	}
	t.Error("connected twice to a socket that accepts nothing")
}
