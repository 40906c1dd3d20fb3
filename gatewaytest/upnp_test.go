package gatewaytest_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestUPnPMovePort(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{MovePort: true})
	static := otherHostEntry(backends.TCP, 80)
	static.Static = true
	if err := c.gw.AddMapping(static); err != nil {
		t.Fatal(err)
	}
	checkCodes(t, []int{c.add()}, 0)
	idleConn, err := net.Dial("tcp4", c.to)
	if err != nil {
		t.Fatal(err)
	}
	defer idleConn.Close()
	ssdp := c.gw.SSDP()
	c.gw.Restart(gatewaytest.RestartOptions{})
	if _, err := c.request("GetStatusInfo"); !isConnRefused(err) {
		t.Errorf("request to the old port: %v", err)
	}
	_ = idleConn.SetDeadline(time.Now().Add(testTimeout))
	if b, err := io.ReadAll(idleConn); len(b) != 0 || isTimeout(err) {
		t.Errorf("connection from before the restart: %q, %v", b, err)
	}
	c.to = hostPort(t, c.gw.UPnP().DescriptionURL())
	_, code := c.lookup("TCP", "8080")
	checkCodes(t, []int{code, second(c.lookup("TCP", "80")), c.add()}, 714, 0, 0)
	if c.gw.SSDP() != ssdp {
		t.Error("the SSDP port changed too")
	}
}

func TestUPnPDown(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{MovePort: true}}})
	c, h := newIGDClient(t, gw), newHost(t, gw)
	checkCodes(t, []int{c.add()}, 0)
	for range 3 {
		gw.Down("upnp")
		gw.Down("upnp")
		if _, err := c.request("GetStatusInfo"); !isConnRefused(err) {
			t.Errorf("while down: %v", err)
		}
		h.expect("0000", addrReply)
		gw.Down("natpmp", "pcp")
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		_, code := c.lookup("TCP", "8080")
		checkCodes(t, []int{code}, 0)
	}
	gw.Down()
	if _, err := c.request("GetStatusInfo"); !isConnRefused(err) {
		t.Errorf("after Down of all protocols: %v", err)
	}
	gw.Restart(gatewaytest.RestartOptions{}) // does not reopen the ports that Down closed
	c.to = hostPort(t, gw.UPnP().DescriptionURL())
	if _, err := c.request("GetStatusInfo"); !isConnRefused(err) {
		t.Errorf("restarted while down: %v", err)
	}
}

func TestUPnPNotConfigured(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{Notify: netip.MustParseAddrPort("127.0.0.1:9"), Protocols: []string{"natpmp", "pcp"}})
	gw.Announce()
	gw.UPnP().Byebye()
	gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	gw.Restart(gatewaytest.RestartOptions{})
	gw.Down("upnp")
	if gw.UPnP().DescriptionURL() != "" || gw.UPnP().DescriptionURL6() != "" || gw.SSDP().IsValid() || gw.UPnP().SSDP6().IsValid() || gw.Stats().Notifications != 0 {
		t.Error("UPnP is not disabled")
	}
	newHost(t, gw).request("0000")
}

func TestUPnPAddresses(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{ListenSSDP: netip.MustParseAddrPort("127.0.0.2:0"), ListenHTTP: netip.MustParseAddrPort("127.0.0.3:0")})
	if gw.SSDP().Addr().String() != "127.0.0.2" || !strings.HasPrefix(gw.UPnP().DescriptionURL(), "http://127.0.0.3:") {
		t.Errorf("addresses %v and %s", gw.SSDP(), gw.UPnP().DescriptionURL())
	}
	c := newIGDClient(t, gw)
	checkCodes(t, []int{c.add()}, 0)
	other := startGateway(t, gatewaytest.Config{})
	if other.UPnP().UDN() == gw.UPnP().UDN() || len(gw.UPnP().UDN()) != len("uuid:00000000-0000-0000-0000-000000000000") {
		t.Errorf("UDNs %s and %s", gw.UPnP().UDN(), other.UPnP().UDN())
	}
	at := netip.MustParseAddrPort(c.to)
	if _, err := gatewaytest.Start(gatewaytest.Config{ListenHTTP: at}); err == nil {
		t.Error("started two servers on one port")
	}
}

func TestUPnPFaults(t *testing.T) {
	t.Parallel()
	isAdd := func(r gatewaytest.Request) bool { return r.Action == "AddPortMapping" }
	c := startIGD(t, igdQuirks{})
	inject := func(f gatewaytest.Fault) {
		f.Match, f.Times = isAdd, 1
		c.gw.Inject(f)
	}
	inject(gatewaytest.Fault{Drop: true})
	checkCodes(t, []int{c.add()}, connClosed)
	if n := len(c.gw.Table()); n != 0 {
		t.Errorf("a dropped request created %d entries", n)
	}
	inject(gatewaytest.Fault{Result: 725})
	inject(gatewaytest.Fault{Result: -911})
	checkCodes(t, []int{c.add(), c.add()}, 725, -911)
	if n := len(c.gw.Table()); n != 0 {
		t.Errorf("a refused request created %d entries", n)
	}
	inject(gatewaytest.Fault{Reply: func(b []byte) [][]byte { return [][]byte{b[:4], []byte(" me")} }, Duplicate: 3})
	if got, err := c.request("AddPortMapping", addArguments()...); got != "POST me" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	inject(gatewaytest.Fault{DropReply: true})
	checkCodes(t, []int{c.add()}, connClosed)
	onlyEntry(t, c.gw)
	inject(gatewaytest.Fault{Corrupt: func(b []byte) []byte { return b[:17] }})
	if got, err := c.request("AddPortMapping", addArguments()...); got != "HTTP/1.1 200 OK\r\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	hold := make(chan struct{})
	inject(gatewaytest.Fault{Hold: hold, Delay: time.Millisecond})
	heldCode := make(chan int)
	go func() { heldCode <- c.add("ExternalPort", "1") }()
	if _, err := c.gw.AwaitRequests(testContext(t), 7, isAdd); err != nil {
		t.Fatal(err)
	}
	_, code := c.lookup("TCP", "1") // the mapping exists, although the response is still held
	close(hold)
	checkCodes(t, []int{code, <-heldCode}, 0, 0)

	c.gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "describe" }, Result: 503})
	if got := c.get("/rootDesc.xml"); statusLine(got) != "503 Service Unavailable" {
		t.Errorf("got %q", got)
	}
}

// TestUPnPCloseWhileHeld checks that Close and Down do not wait for held responses.
func TestUPnPCloseWhileHeld(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	c.gw.Inject(gatewaytest.Fault{Hold: make(chan struct{})})
	heldResponse := make(chan string)
	go func() {
		got, _ := c.request("GetStatusInfo")
		heldResponse <- got
	}()
	if _, err := c.gw.AwaitRequests(testContext(t), 1, nil); err != nil {
		t.Fatal(err)
	}
	c.gw.Down("upnp")
	if got := <-heldResponse; got != "" {
		t.Errorf("got %q", got)
	}
	if err := c.gw.Close(); err != nil {
		t.Error(err)
	}
}

func TestUPnPStatus(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	query := func(action string) map[string]string {
		t.Helper()
		args, code := c.call(action)
		checkCodes(t, []int{code}, 0)
		return args
	}
	c.gw.Advance(time.Hour)
	if s := query("GetStatusInfo"); s["NewConnectionStatus"] != "Connected" || s["NewUptime"] != "90000" || s["NewLastConnectionError"] != "ERROR_NONE" {
		t.Errorf("status %v", s)
	}
	if s := query("GetConnectionTypeInfo"); s["NewConnectionType"] != "IP_Routed" || s["NewPossibleConnectionTypes"] != "IP_Routed" {
		t.Errorf("type %v", s)
	}
	if s := query("GetNATRSIPStatus"); s["NewNATEnabled"] != "1" || s["NewRSIPAvailable"] != "0" {
		t.Errorf("NAT %v", s)
	}
	c.gw.Restart(gatewaytest.RestartOptions{})
	if s := query("GetStatusInfo"); s["NewUptime"] != "0" {
		t.Errorf("after a restart: %v", s)
	}
	for addr, want := range map[string]string{"45.45.45.7": "45.45.45.7", "10.0.0.2": "10.0.0.2", "0.0.0.0": ""} {
		c.gw.SetExternal(netip.MustParseAddr(addr))
		if s := query("GetExternalIPAddress"); s["NewExternalIPAddress"] != want {
			t.Errorf("external address %s: reported %v", addr, s)
		}
	}
	c.gw.SetExternal(netip.Addr{})
	if s := query("GetStatusInfo"); s["NewConnectionStatus"] != "Disconnected" {
		t.Errorf("without an address: %v", s)
	}
	checkCodes(t, []int{c.add()}, 501)

	c.path, c.service = "/ctl/0/WANCommonInterfaceConfig", "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"
	if s := query("GetCommonLinkProperties"); s["NewPhysicalLinkStatus"] != "Up" {
		t.Errorf("link %v", s)
	}
	c.path, c.service = "/ctl/0/Layer3Forwarding", "urn:schemas-upnp-org:service:Layer3Forwarding:1"
	want := c.gw.UPnP().UDN() + "-conn0:schemas-upnp-org:device:WANConnectionDevice:2,urn:upnp-org:serviceId:WANIPConn1"
	if s := query("GetDefaultConnectionService"); s["NewDefaultConnectionService"] != want {
		t.Errorf("default %v, want %s", s, want)
	}
}

func TestUPnPStatusQuirks(t *testing.T) {
	t.Parallel()
	type status = quirks.Status
	for _, address := range []string{"", "0.0.0.0", " 203.0.113.7 ", "unknown", "10.0.0.2"} {
		c := startIGD(t, igdQuirks{Status: status{External: func(netip.Addr) string { return address }}})
		if args, code := c.call("GetExternalIPAddress"); code != 0 || args["NewExternalIPAddress"] != address {
			t.Errorf("reported %v, fault %d, want %q", args, code, address)
		}
		checkCodes(t, []int{c.add()}, 0)
	}
	for _, state := range []string{"Up", "Disconnected"} {
		c := startIGD(t, igdQuirks{Status: status{Connection: state}})
		if args, code := c.call("GetStatusInfo"); code != 0 || args["NewConnectionStatus"] != state {
			t.Errorf("reported %v, fault %d, want %q", args, code, state)
		}
	}
	_, code := startIGD(t, igdQuirks{Status: status{Unsupported: true}}).call("GetStatusInfo")
	checkCodes(t, []int{code}, 401)
}

// TestUPnPConnections checks that only one of several WAN devices and connections is
// connected and grants mappings.
func TestUPnPConnections(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Description: quirks.Description{WANDevices: 3, Connected: 1, Connections: quirks.ConnectionBoth}})
	for i := range 3 {
		for _, kind := range []string{"IP", "PPP"} {
			c.path = fmt.Sprintf("/ctl/%d/WAN%sConnection", i, kind)
			c.service = "urn:schemas-upnp-org:service:WAN" + kind + "Connection:1"
			state, _ := c.call("GetStatusInfo")
			addr, _ := c.call("GetExternalIPAddress")
			got := fmt.Sprint(state["NewConnectionStatus"], addr["NewExternalIPAddress"], c.add(), second(c.byIndex(0)), c.remove("TCP", "8080"))
			want := fmt.Sprint("Disconnected", "", 501, 713, 714)
			if i == 1 && kind == "IP" {
				want = fmt.Sprint("Connected", "45.45.45.1", 0, 0, 0)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", c.path, got, want)
			}
		}
	}
	// The control URL of one service does not accept the type of another.
	c.path, c.service = "/ctl/1/WANPPPConnection", ipConnection1
	checkCodes(t, []int{c.add()}, 401)
}

// TestUPnPInvalidActions checks that a wrong service, a wrong version and an unknown
// action get fault 401, and that invalid arguments get fault 402.
func TestUPnPInvalidActions(t *testing.T) {
	t.Parallel()
	c, version1 := startIGD(t, igdQuirks{}), startIGD(t, igdQuirks{Version: 1})
	withService := func(c igdClient, service string) igdClient { c.service = service; return c }
	_, unknown := c.call("RequestConnection")
	_, listing := version1.listRange("1", "2")
	_, anyPort := version1.addAny()
	checkCodes(t, []int{
		unknown, listing, anyPort,
		withService(c, ipConnection).add("ExternalPort", "1"), withService(version1, ipConnection).add(),
		withService(c, "urn:schemas-upnp-org:service:WANPPPConnection:1").add(), withService(c, "").add(), withService(c, "urn:").add(),
	}, 401, 401, 401, 0, 401, 401, 401, 401)
	for _, bad := range [][]string{
		{"ExternalPort", "65536"},
		{"ExternalPort", ""},
		{"InternalPort", "-1"},
		{"Protocol", "SCTP"},
		{"InternalClient", ""},
		{"InternalClient", "host"},
		{"InternalClient", "0.0.0.0"},
		{"InternalClient", "::1"},
		{"Enabled", "2"},
		{"RemoteHost", "example.net"},
		{"LeaseDuration", "-1"},
	} {
		if code := c.add(bad...); code != 402 {
			t.Errorf("%v: fault %d, want 402", bad, code)
		}
	}
	checkCodes(t, []int{c.add("ExternalPort", "0"), c.add("InternalPort", "0"), c.add("ExternalPort", "5351", "Protocol", "UDP")}, 716, 732, 718)
	_, code := c.call("GetGenericPortMappingEntry", "NewPortMappingIndex", "first")
	checkCodes(t, []int{code}, 402)
	if got, err := c.post("<s:Envelope>", `SOAPAction: "`+ipConnection1+`#AddPortMapping"`); err != nil || faultCode(t, got) != 402 {
		t.Errorf("truncated request: %s, %v", got, err)
	}
	if e := onlyEntry(t, c.gw); e.External.Port() != 1 {
		t.Errorf("entry %v", e)
	}
}
