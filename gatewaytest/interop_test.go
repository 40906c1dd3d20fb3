package gatewaytest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
	jackpal "github.com/jackpal/go-nat-pmp"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// startOnStandardPort starts a gateway on port 5351 of some loopback address. Other
// clients support only that port.
func startOnStandardPort(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
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
	gw := startOnStandardPort(t, gatewaytest.Config{ManualClock: true, Uptime: 1234 * time.Second})
	ln, port := listenTCP(t)
	c := jackpal.NewClientWithTimeout(net.IP(gw.Addr().Addr().AsSlice()), testTimeout)

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
		t.Errorf("read %q, error %v", b, err)
	}
	if _, err := c.AddPortMapping("tcp", int(port), 0, 0); err != nil {
		t.Errorf("deleting: %v", err)
	}
	checkRefused(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 2})
	if _, err := c.AddPortMapping("udp", 1, 1, 1); err == nil || !strings.Contains(err.Error(), "Not Authorized") {
		t.Errorf("refused: %v", err)
	}
}

// TestInteropNatpmpc must not run in parallel. A process that is being started holds
// copies of all sockets until it executes its program. Sockets that other tests close
// would stay open during that time.
func TestInteropNatpmpc(t *testing.T) {
	natpmpc, err := exec.LookPath("natpmpc")
	if err != nil {
		t.Skipf("INTEROPERABILITY WITH natpmpc NOT TESTED: %v", err)
	}
	gw := startOnStandardPort(t, gatewaytest.Config{})
	run := func(want string, args ...string) {
		t.Helper()
		args = append([]string{"-g", gw.Addr().Addr().String()}, args...)
		out, err := exec.CommandContext(testContext(t), natpmpc, args...).CombinedOutput()
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("natpmpc %v: %v, want %q in\n%s", args, err, want, out)
		}
	}
	_, port := listenTCP(t)
	run(`Public IP address : 45\.45\.45\.1`)
	run(fmt.Sprintf(`Mapped public port 8080 protocol TCP to local port %d liftime 3600`, port), "-a", "8080", fmt.Sprint(port), "tcp", "3600")
	dial(t, gw, "tcp")
	run(`Mapped public port 0 protocol TCP .*liftime 0`, "-a", "0", fmt.Sprint(port), "tcp", "0")
	checkRefused(t, gw)
	gw.Inject(gatewaytest.Fault{Result: 4})
	run(`(?i)failed`, "-a", "1", "2", "udp", "60")
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// checkFault fails unless the error is a goupnp fault with this code.
func checkFault(t *testing.T, err error, code int) {
	t.Helper()
	var fault *soap.SOAPFaultError
	if !errors.As(err, &fault) || fault.Detail.UPnPError.Errorcode != code {
		t.Errorf("got %v, want fault %d", err, code)
	}
}

func TestInteropGoupnp(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	gw := startGateway(t, gatewaytest.Config{ManualClock: true})
	all, err := internetgateway2.NewWANIPConnection2ClientsByURLCtx(ctx, parseURL(t, gw.UPnP().DescriptionURL()))
	if err != nil || len(all) != 1 {
		t.Fatalf("%d clients, %v", len(all), err)
	}
	c := all[0]
	if addr, err := c.GetExternalIPAddressCtx(ctx); err != nil || addr != "45.45.45.1" {
		t.Errorf("external address %q, %v", addr, err)
	}
	state, lastError, uptime, err := c.GetStatusInfoCtx(ctx)
	if err != nil || state != "Connected" || lastError != "ERROR_NONE" || uptime != 86400 {
		t.Errorf("status %q %q %d, %v", state, lastError, uptime, err)
	}
	_, port := listenTCP(t)
	if err := c.AddPortMappingCtx(ctx, "", 8080, "TCP", port, "127.0.0.1", true, `a "b" <c> & d`, 3600); err != nil {
		t.Fatal(err)
	}
	dial(t, gw, "tcp")
	if in, client, enabled, text, lease, err := c.GetSpecificPortMappingEntryCtx(ctx, "", 8080, "TCP"); err != nil ||
		in != port || client != "127.0.0.1" || !enabled || text != `a "b" <c> & d` || lease != 3600 {
		t.Errorf("entry %d %s %v %q %d, %v", in, client, enabled, text, lease, err)
	}
	other, err := c.AddAnyPortMappingCtx(ctx, "", 8080, "TCP", port+1, "127.0.0.1", true, "another", 60)
	if err != nil || other != 8081 {
		t.Errorf("any: %d, %v", other, err)
	}
	_, ext, proto, in, _, _, text, _, err := c.GetGenericPortMappingEntryCtx(ctx, 1)
	if err != nil || ext != 8081 || proto != "TCP" || in != port+1 || text != "another" {
		t.Errorf("index 1: %d %s %d %q, %v", ext, proto, in, text, err)
	}
	_, _, _, _, _, _, _, _, err = c.GetGenericPortMappingEntryCtx(ctx, 2)
	checkFault(t, err, 713)
	listing, err := c.GetListOfPortMappingsCtx(ctx, 1, 65535, "TCP", true, 0)
	if n := len(regexp.MustCompile(`<p:PortMappingEntry>`).FindAllString(listing, -1)); err != nil || n != 2 {
		t.Errorf("listing of %d entries, %v: %s", n, err, listing)
	}
	if err := c.DeletePortMappingRangeCtx(ctx, 8081, 8090, "TCP", false); err != nil {
		t.Error(err)
	}
	if err := c.DeletePortMappingCtx(ctx, "", 8080, "TCP"); err != nil {
		t.Error(err)
	}
	checkRefused(t, gw)
	checkFault(t, c.DeletePortMappingCtx(ctx, "", 8080, "TCP"), 714)
	checkFault(t, c.AddPortMappingCtx(ctx, "", 1, "TCP", 1, "127.0.0.9", true, "", 1), 606)
}

func TestInteropGoupnpVersion1(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		Version: 1, Description: quirks.Description{Connections: quirks.ConnectionPPP},
	}}})
	at := parseURL(t, gw.UPnP().DescriptionURL())
	if all, err := internetgateway2.NewWANIPConnection1ClientsByURLCtx(ctx, at); err == nil {
		t.Errorf("%d clients for WANIPConnection, want none: the service is WANPPPConnection", len(all))
	}
	all, err := internetgateway2.NewWANPPPConnection1ClientsByURLCtx(ctx, at)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d clients, %v", len(all), err)
	}
	if err := all[0].AddPortMappingCtx(ctx, "", 8080, "UDP", 80, "127.0.0.1", true, "ever", 0); err != nil {
		t.Fatal(err)
	}
	if _, _, _, _, lease, err := all[0].GetSpecificPortMappingEntryCtx(ctx, "", 8080, "UDP"); err != nil || lease != 0 {
		t.Errorf("lease %d, %v", lease, err)
	}
	checkFault(t, all[0].AddPortMappingCtx(ctx, "", 1, "TCP", 1, "127.0.0.9", true, "", 1), 718)
}

func TestInteropGoupnpPinhole(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	gw, _ := startIPv6(t, gatewaytest.Config{})
	all, err := internetgateway2.NewWANIPv6FirewallControl1ClientsByURLCtx(ctx, parseURL(t, gw.UPnP().DescriptionURL6()))
	if err != nil || len(all) != 1 {
		t.Fatalf("%d clients, %v", len(all), err)
	}
	c := all[0]
	port := serveEcho(t, "tcp6", "[::1]:0")
	to := fmt.Sprintf("[::1]:%d", port)
	if enabled, allowed, err := c.GetFirewallStatusCtx(ctx); err != nil || !enabled || !allowed {
		t.Errorf("status %v %v, %v", enabled, allowed, err)
	}
	checkReach(t, gw, "[2001:db8::9]:7000", to, false)
	id, err := c.AddPinholeCtx(ctx, "", 0, "::1", port, 6, 3600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.CheckPinholeWorkingCtx(ctx, id)
	checkFault(t, err, 709)
	checkReach(t, gw, "[2001:db8::9]:7000", to, true)
	if ok, err := c.CheckPinholeWorkingCtx(ctx, id); err != nil || !ok {
		t.Errorf("working %v, %v", ok, err)
	}
	if n, err := c.GetPinholePacketsCtx(ctx, id); err != nil || n != 1 {
		t.Errorf("%d packets, %v", n, err)
	}
	if err := c.UpdatePinholeCtx(ctx, id, 60); err != nil {
		t.Error(err)
	}
	if err := c.DeletePinholeCtx(ctx, id); err != nil {
		t.Error(err)
	}
	checkReach(t, gw, "[2001:db8::9]:7000", to, false)
	checkFault(t, c.DeletePinholeCtx(ctx, id), 704)
	_, err = c.GetOutboundPinholeTimeoutCtx(ctx, "", 0, "::1", port, 6)
	checkFault(t, err, 501)
}

// TestInteropUpnpc tests with upnpc, the program of miniupnpc. With -u, it does not
// search. -m lo selects the interface for searches. It must not run in parallel, for the
// same reason as TestInteropNatpmpc.
func TestInteropUpnpc(t *testing.T) {
	upnpc, err := exec.LookPath("upnpc")
	if err != nil {
		t.Skipf("INTEROPERABILITY WITH upnpc NOT TESTED: %v", err)
	}
	gw := startGateway(t, gatewaytest.Config{})
	run := func(want string, args ...string) {
		t.Helper()
		args = append([]string{"-m", "lo", "-u", gw.UPnP().DescriptionURL()}, args...)
		out, err := exec.CommandContext(testContext(t), upnpc, args...).CombinedOutput()
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("upnpc %v: %v, want %q in\n%s", args, err, want, out)
		}
	}
	_, port := listenTCP(t)
	run(`(?s)Status : Connected.*ExternalIPAddress = 45\.45\.45\.1`, "-s")
	run(fmt.Sprintf(`external 45\.45\.45\.1:8080 TCP is redirected to internal 127\.0\.0\.1:%d \(duration=3600\)`, port),
		"-e", "a test", "-a", "127.0.0.1", fmt.Sprint(port), "8080", "tcp", "3600")
	dial(t, gw, "tcp")
	run(fmt.Sprintf(`0 TCP  8080->127\.0\.0\.1:%d +'a test' '' 3[56]\d\d`, port), "-l")
	run(fmt.Sprintf(`TCP  8080->127\.0\.0\.1:%d +'a test' '' 3[56]\d\d`, port), "-L")
	run(`UPNP_DeletePortMapping\(\) returned : 0`, "-d", "8080", "tcp")
	checkRefused(t, gw)
	run(`UPNP_DeletePortMapping\(\) failed with code : 714`, "-d", "8080", "tcp")
}
