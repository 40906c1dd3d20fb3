package gatewaytest_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	jackpal "github.com/jackpal/go-nat-pmp"

	"github.com/natforward/goforward/gatewaytest"
)

// standardPort is a gateway on port 5351, which other clients insist on, of
// some loopback address.
func standardPort(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	var err error
	for range 10 {
		addr := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250)), byte(1 + rand.IntN(250))})
		config.Listen = netip.AddrPortFrom(addr, 5351)
		var gw *gatewaytest.Gateway
		if gw, err = gatewaytest.Start(config); err == nil {
			t.Cleanup(func() { _ = gw.Close() })
			return gw
		}
	}
	t.Skipf("INTEROPERABILITY NOT TESTED: no loopback address with port 5351 (%v)", err)
	return nil
}

func TestInteropGoNATPMP(t *testing.T) {
	t.Parallel()
	gw := standardPort(t, gatewaytest.Config{ManualClock: true, Uptime: 1234 * time.Second})
	ln, port := listenTCP(t)
	c := jackpal.NewClientWithTimeout(net.IP(gw.Addr().Addr().AsSlice()), patience)

	addr, err := c.GetExternalAddress()
	if err != nil {
		t.Fatal(err)
	}
	if got := netip.AddrFrom4(addr.ExternalIPAddress); got != gw.External() || addr.SecondsSinceStartOfEpoc != 1234 {
		t.Errorf("external address %v, epoch %d", got, addr.SecondsSinceStartOfEpoc)
	}
	m, err := c.AddPortMapping("tcp", int(port), 8080, 7200)
	if err != nil {
		t.Fatal(err)
	}
	if m.InternalPort != port || m.MappedExternalPort != 8080 || m.PortMappingLifetimeInSeconds != 7200 {
		t.Errorf("mapping %+v", m)
	}
	conn := dial(t, gw, "tcp")
	inner, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if _, err := inner.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := conn.Read(b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := c.AddPortMapping("tcp", int(port), 0, 0); err != nil {
		t.Errorf("deleting: %v", err)
	}
	refusedTCP(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 2})
	if _, err := c.AddPortMapping("udp", 1, 1, 1); err == nil || !strings.Contains(err.Error(), "Not Authorized") {
		t.Errorf("refused: %v", err)
	}
}

// A process that is being started holds copies of all sockets until it runs, and
// what other tests have closed would live on for that long: not in parallel.
func TestInteropNatpmpc(t *testing.T) {
	natpmpc, err := exec.LookPath("natpmpc")
	if err != nil {
		t.Skipf("INTEROPERABILITY WITH natpmpc NOT TESTED: %v", err)
	}
	gw := standardPort(t, gatewaytest.Config{})
	run := func(want string, args ...string) {
		t.Helper()
		args = append([]string{"-g", gw.Addr().Addr().String()}, args...)
		out, err := exec.CommandContext(waiting(t), natpmpc, args...).CombinedOutput()
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("natpmpc %v: %v, want %q in\n%s", args, err, want, out)
		}
	}
	_, port := listenTCP(t)
	run(`Public IP address : 45\.45\.45\.1`)
	run(fmt.Sprintf(`Mapped public port 8080 protocol TCP to local port %d liftime 3600`, port), "-a", "8080", fmt.Sprint(port), "tcp", "3600")
	dial(t, gw, "tcp")
	run(`Mapped public port 0 protocol TCP .*liftime 0`, "-a", "0", fmt.Sprint(port), "tcp", "0")
	refusedTCP(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 4})
	run(`(?i)failed`, "-a", "1", "2", "udp", "60")
}
