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
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "goforward-attack-*")
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", dir) // do not touch the user's state directory
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// The LAN of the tests is loopback: 127.0.0.1 is this host.
var (
	gatewayAddr  = netip.MustParseAddr("127.0.0.2")  // the gateway
	attacker     = netip.MustParseAddr("127.0.0.66") // another host of the LAN
	bystander    = netip.MustParseAddr("127.0.0.77") // a third host, which must receive nothing
	anyLocalPort = netip.MustParseAddrPort("127.0.0.1:0")
)

// testTimeout limits operations that take milliseconds. A test that reaches it has
// failed.
const testTimeout = 20 * time.Second

var webRequest = backends.Request{
	Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080),
	External: netip.AddrPortFrom(netip.Addr{}, 8080), Lifetime: time.Hour, Description: "web",
}

// startGateway starts the gateway of the LAN.
func startGateway(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("this system has one loopback address only")
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

// listenUDP opens a socket of a host on the LAN.
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

// device is a TCP server that responds as a test requires and counts connections
// and bytes.
type device struct {
	addr      netip.AddrPort
	served    atomic.Int32 // connections
	open      atomic.Int32 // connections that are open now
	peak      atomic.Int32 // the maximum of open
	written   atomic.Int64 // bytes
	slowBytes atomic.Int64 // bytes sent one at a time
}

// startDevice starts a device. It calls respond with each connection and the
// request read from it, and closes the connection afterwards.
func startDevice(t *testing.T, at netip.Addr, respond func(d *device, conn net.Conn, request string)) *device {
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
			d.peak.Store(max(d.peak.Load(), d.open.Add(1))) // safe: only this goroutine accepts
			serving.Go(func() {
				defer d.open.Add(-1)
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(testTimeout))
				respond(d, conn, readOnce(conn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return d
}

// readOnce reads a request with one Read. On loopback, one Read returns all of it.
func readOnce(conn net.Conn) string {
	b := make([]byte, 64<<10)
	n, _ := conn.Read(b)
	return string(b[:n])
}

// write writes b and counts the bytes.
func (d *device) write(conn net.Conn, b []byte) error {
	n, err := conn.Write(b)
	d.written.Add(int64(n))
	return err
}

// canary starts a host that no client has a reason to contact. The test fails if it
// receives a connection.
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

// startUDPServer starts a host that calls respond for each datagram.
func startUDPServer(t *testing.T, at netip.AddrPort, respond func(conn *net.UDPConn, datagram []byte, from netip.AddrPort)) netip.AddrPort {
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
				respond(conn, b[:n], from)
			}
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return localAddr(conn)
}

// checkNoLeaks runs an attack and checks that it leaves no goroutine and no open
// file behind. Servers of the attack must be started before.
func checkNoLeaks(t *testing.T, attack func()) {
	t.Helper()
	before, files := goleak.IgnoreCurrent(), openFiles()
	attack()
	deadline := time.After(testTimeout)
	for err := goleak.Find(before); err != nil; err = goleak.Find(before) { // Find retries for half a second
		select {
		case <-deadline:
			t.Fatalf("leaked goroutines: %v", err)
		default:
		}
	}
	for openFiles() > files {
		select {
		case <-deadline:
			t.Fatalf("%d files are open, want %d", openFiles(), files)
		case <-time.After(time.Millisecond): // the peer closes its end
		}
	}
}

// openFiles returns how many files this process has open. It returns 0 if the
// system does not report them.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
