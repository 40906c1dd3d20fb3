package attack_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "goforward-hostile-*")
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", dir) // the user's own is none of our business
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// The LAN is loopback: 127.0.0.1 is this host.
var (
	gatewayAddr = netip.MustParseAddr("127.0.0.2")  // the gateway
	attacker   = netip.MustParseAddr("127.0.0.66") // another host of the LAN
	bystander  = netip.MustParseAddr("127.0.0.77") // one more, whom nobody is to bother
	anyLocalPort    = netip.MustParseAddrPort("127.0.0.1:0")
)

// testTimeout bounds what takes milliseconds; a test that needs it has failed.
const testTimeout = 20 * time.Second

var webRequest = backends.Request{
	Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080),
	External: netip.AddrPortFrom(netip.Addr{}, 8080), Lifetime: time.Hour, Description: "web",
}

// startGateway starts the gateway of the LAN.
func startGateway(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("one loopback address only: there is no other host")
	}
	if !config.Listen.IsValid() {
		config.Listen = netip.AddrPortFrom(gatewayAddr, 0)
	}
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// listenUDP is a socket of a host of the LAN.
func listenUDP(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func localAddr(conn net.PacketConn) netip.AddrPort {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// device is an HTTP server that says what it is told to, and counts.
type device struct {
	addr    netip.AddrPort
	served  atomic.Int32 // connections
	open    atomic.Int32 // of those, now
	peak    atomic.Int32 // of open
	written atomic.Int64 // bytes
	dripped atomic.Int64 // of those, one by one
}

// startDevice starts a device. say has the request line, and the connection, which is
// closed after it.
func startDevice(t *testing.T, at netip.Addr, say func(d *device, conn net.Conn, request string)) *device {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	d := &device{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.served.Add(1)
			d.peak.Store(max(d.peak.Load(), d.open.Add(1))) // one goroutine accepts
			serving.Go(func() {
				defer d.open.Add(-1)
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(testTimeout))
				say(d, conn, readOnce(conn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return d
}

// readOnce reads what a client sends at once, which is all of it on loopback.
func readOnce(conn net.Conn) string {
	b := make([]byte, 64<<10)
	n, _ := conn.Read(b)
	return string(b[:n])
}

// write counts.
func (d *device) write(conn net.Conn, b []byte) error {
	n, err := conn.Write(b)
	d.written.Add(int64(n))
	return err
}

// canary is a host that nobody has a reason to talk to: it counts who does.
func canary(t *testing.T, at netip.Addr) *device {
	t.Helper()
	d := startDevice(t, at, func(d *device, conn net.Conn, _ string) {
		_ = d.write(conn, []byte("HTTP/1.0 200 OK\r\n\r\nthe secrets of a service that trusts its neighbours"))
	})
	t.Cleanup(func() {
		if n := d.served.Load(); n != 0 {
			t.Errorf("%v had %d connections", d.addr, n)
		}
	})
	return d
}

// startUDPServer is a host that sends what it is told in answer to a datagram.
func startUDPServer(t *testing.T, at netip.AddrPort, answer func(conn *net.UDPConn, datagram []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn := listenUDP(t, at)
	var serving sync.WaitGroup
	serving.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				answer(conn, b[:n], from)
			}
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return localAddr(conn)
}

// checkNoLeaks runs an attack and checks that nothing is left of it: no goroutine and
// no open file that was not there before. What serves the attack is to be
// started before.
func checkNoLeaks(t *testing.T, attack func()) {
	t.Helper()
	before, files := goleak.IgnoreCurrent(), openFiles()
	attack()
	deadline := time.After(testTimeout)
	for err := goleak.Find(before); err != nil; err = goleak.Find(before) { // which tries for half a second
		select {
		case <-deadline:
			t.Fatalf("goroutines are left: %v", err)
		default:
		}
	}
	for openFiles() > files {
		select {
		case <-deadline:
			t.Fatalf("%d files are open, were %d", openFiles(), files)
		case <-time.After(time.Millisecond): // the other side closes its part
		}
	}
}

// openFiles is how many files this process has open, 0 where the system does
// not tell.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
