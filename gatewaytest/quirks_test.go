package gatewaytest_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// echoOutside dials an external endpoint, and returns the byte that the internal endpoint
// sends.
func echoOutside(t *testing.T, gw *gatewaytest.Gateway, address string) string {
	t.Helper()
	conn, err := gw.Dial(testContext(t), "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	b, _ := io.ReadAll(conn)
	return string(b)
}

// serveByte listens on a loopback port, and sends the text on each connection.
func serveByte(t *testing.T, text string) (port string) {
	t.Helper()
	ln, _ := listenTCP(t)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, text)
			_ = conn.Close()
		}
	}()
	_, port, _ = strings.Cut(ln.Addr().String(), ":")
	return port
}

func TestTwoSessions(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]quirks.Description{
		"IP":            {},
		"PPP":           {Connections: quirks.ConnectionPPP, DSLForum: true},
		"both":          {Connections: quirks.ConnectionBoth},
		"second device": {WANDevices: 2, Connected: 1, SharedUDN: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d.TwoSessions = true
			one := startIGD(t, igdQuirks{Description: d})
			gw := one.gw
			kind := "WANIPConnection"
			if d.Connections == quirks.ConnectionPPP {
				kind, one.service = "WANPPPConnection", "urn:dslforum-org:service:WANPPPConnection:1"
			}
			one.path = fmt.Sprintf("/ctl/%d/%s", d.Connected, kind)
			two := one
			two.path += "2"
			body, _ := getDescription(t, one, "/rootDesc.xml")
			if n := strings.Count(body, two.path+"<"); n != 1 || d.SharedUDN && strings.Count(body, gw.UPnP().UDN()+"<") != 5 {
				t.Errorf("%d services at %s in %s", n, two.path, body)
			}

			// Both sessions map the same port, to different internal ports.
			checkCodes(t, []int{one.add("InternalPort", serveByte(t, "1")), two.add("InternalPort", serveByte(t, "2"))}, 0, 0)
			if got := echoOutside(t, gw, "45.45.45.1:8080") + echoOutside(t, gw, "45.45.45.2:8080"); got != "12" {
				t.Errorf("received %q", got)
			}
			table := gw.Table()
			if len(table) != 2 || table[0].External.String() != "45.45.45.1:8080" || table[1].External.String() != "45.45.45.2:8080" {
				t.Errorf("table %v", table)
			}
			for i, c := range []igdClient{one, two} {
				args, _ := c.call("GetExternalIPAddress")
				status, _ := c.call("GetStatusInfo")
				if want := fmt.Sprintf("45.45.45.%d", i+1); args["NewExternalIPAddress"] != want || status["NewConnectionStatus"] != "Connected" || status["NewUptime"] != "86400" {
					t.Errorf("address %v, status %v", args, status)
				}
				row, code := c.byIndex(0)
				_, end := c.byIndex(1)
				checkCodes(t, []int{code, end, second(c.lookup("TCP", "8080"))}, 0, 713, 0)
				if port := itoa(int(table[i].Internal.Port())); row["NewInternalPort"] != port {
					t.Errorf("row %v, want internal port %s", row, port)
				}
			}
			gw.SetExternal(netip.MustParseAddr("9.9.9.9"))
			if got := echoOutside(t, gw, "9.9.9.10:8080"); got != "2" {
				t.Errorf("received %q", got)
			}
			checkCodes(t, []int{two.remove("TCP", "8080"), two.remove("TCP", "8080"), second(one.lookup("TCP", "8080"))}, 0, 714, 0)
			if !gw.RemoveMapping(6, 8080) || len(gw.Table()) != 0 {
				t.Errorf("table %v", gw.Table())
			}
			gw.SetExternal(netip.Addr{})
			if args, _ := two.call("GetExternalIPAddress"); args["NewExternalIPAddress"] != "" {
				t.Errorf("address %v", args)
			}
		})
	}
}

func TestFirstRefuses(t *testing.T) {
	t.Parallel()
	one := startIGD(t, igdQuirks{Description: quirks.Description{TwoSessions: true, FirstRefuses: 401}})
	two := one
	two.path += "2"
	checkCodes(t, []int{one.add(), two.add(), second(two.lookup("TCP", "8080"))}, 401, 0, 0)
	_, code := one.addAny()
	checkCodes(t, []int{code, second(one.lookup("TCP", "8080"))}, 401, 714)
}

func TestActions(t *testing.T) {
	t.Parallel()
	const status, add, lookup = "GetStatusInfo", "AddPortMapping", "GetSpecificPortMappingEntry"
	all := map[string]bool{"": true, lookup: false}
	only := map[string]bool{add: true}
	for name, tt := range map[string]struct {
		actions             quirks.Actions
		status, add, lookup int
	}{
		"none":           {quirks.Actions{}, 0, 0, 0},
		"fault":          {quirks.Actions{Fault: map[string]int{add: 899}}, 0, 899, 714},
		"every fault":    {quirks.Actions{Fault: map[string]int{"": -1, lookup: 0}}, -1, -1, 714},
		"reset":          {quirks.Actions{Reset: only}, 0, connReset, 714},
		"every reset":    {quirks.Actions{Reset: all}, connReset, connReset, 714},
		"no reply":       {quirks.Actions{NoReply: only}, 0, connClosed, 0},
		"every no reply": {quirks.Actions{NoReply: all}, connClosed, connClosed, 0},
		"reset wins":     {quirks.Actions{Reset: only, Fault: map[string]int{"": 501, lookup: 0}, NoReply: all}, connClosed, connReset, 714},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Actions: tt.actions})
			_, code := c.call(status)
			checkCodes(t, []int{code, c.add(), second(c.lookup("TCP", "8080"))}, tt.status, tt.add, tt.lookup)
			if got := statusLine(c.get("/rootDesc.xml")); got != "200 OK" {
				t.Error(got)
			}
		})
	}
}

// TestActionsWait checks that actions without a response do not hold up others, and that
// Close ends them.
func TestActionsWait(t *testing.T) {
	t.Parallel()
	gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Actions: quirks.Actions{
		Hang:  map[string]bool{"GetStatusInfo": true},
		Delay: map[string]time.Duration{"AddPortMapping": time.Hour, "GetExternalIPAddress": time.Millisecond},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	c := newIGDClient(t, gw)
	ended := make(chan error, 2)
	for action, args := range map[string][]string{"GetStatusInfo": nil, "AddPortMapping": addArguments()} {
		go func() {
			_, err := c.request(action, args...)
			ended <- err
		}()
	}
	if _, err := gw.AwaitRequests(testContext(t), 2, nil); err != nil {
		t.Error(err)
	}
	args, code := c.call("GetExternalIPAddress")
	if got := onlyEntry(t, gw).External.Port(); code != 0 || args["NewExternalIPAddress"] != "45.45.45.1" || got != 8080 {
		t.Errorf("code %d, %v, port %d", code, args, got)
	}
	select {
	case err := <-ended:
		t.Errorf("a connection ended before Close: %v", err)
	default:
	}
	_ = gw.Close()
	<-ended
	<-ended
}

func TestDescriptionFailures(t *testing.T) {
	t.Parallel()
	type description = quirks.Description
	for name, tt := range map[string]struct {
		description description
		want        []string // status lines of the first responses
		text        string   // text in the last response
	}{
		"status":   {description{Status: 404}, []string{"404 Not Found"}, "CONTENT-TYPE: text/html"},
		"moved":    {description{Status: 301}, []string{"301 Moved Permanently"}, "LOCATION: /login.html\r\n"},
		"HTML":     {description{HTML: true}, []string{"200 OK"}, "<html>"},
		"media":    {description{MediaServer: true}, []string{"200 OK"}, "<deviceType>urn:schemas-upnp-org:device:MediaServer:1<"},
		"first":    {description{FirstReset: 1, FirstStatus: 2}, []string{"", "503 Service Unavailable", "503 Service Unavailable", "200 OK"}, "<device>"},
		"combined": {description{FirstStatus: 1, HTML: true}, []string{"503 Service Unavailable", "200 OK"}, "<html>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Description: tt.description})
			got := ""
			for i, want := range tt.want {
				got, _ = c.roundTrip("GET /rootDesc.xml HTTP/1.1\r\nHost: " + c.to + "\r\n\r\n")
				if statusLine(got) != want {
					t.Errorf("response %d: %s, want %s", i, got, want)
				}
			}
			if !strings.Contains(got, tt.text) || tt.description.MediaServer && strings.Contains(got, "Connection:") {
				t.Errorf("got %s, want %s", got, tt.text)
			}
		})
	}
}

// TestURLBaseDeep checks that relative control URLs lead to the service if they are
// resolved with the URLBase.
func TestURLBaseDeep(t *testing.T) {
	t.Parallel()
	for form, want := range map[quirks.ControlURLForm][2]string{
		quirks.ControlRooted: {"ctl/0/WANIPConnection", "/upnp/control/ctl/0/WANIPConnection"},
		quirks.ControlParent: {"../ctl/0/WANIPConnection", "/upnp/ctl/0/WANIPConnection"},
		quirks.ControlQuery:  {"?control=0/WANIPConnection", "/upnp/control/?control=0/WANIPConnection"},
	} {
		c := startIGD(t, igdQuirks{Description: quirks.Description{URLBase: quirks.URLBaseDeep, ControlURL: form}})
		c.path = want[1]
		if body := c.get("/rootDesc.xml"); !strings.Contains(body, "<controlURL>"+want[0]+"<") {
			t.Errorf("want %s in %s", want[0], body)
		}
		checkCodes(t, []int{c.add()}, 0)
	}
	c := startIGD(t, igdQuirks{Description: quirks.Description{Path: "/a/b.xml?c=d", ControlURL: quirks.ControlQuery}})
	c.path = "/a/b.xml?control=0/WANIPConnection" // the query of the description is no part of the base
	checkCodes(t, []int{c.add()}, 0)
}

func TestDeletionRules(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		rules quirks.Rules
		codes [3]int // of deleting an absent entry, the entry, and the entry again
		left  int
	}{
		"none":    {quirks.Rules{}, [3]int{714, 0, 714}, 0},
		"ignored": {quirks.Rules{DeleteIgnored: true}, [3]int{714, 0, 0}, 1},
		"fault":   {quirks.Rules{DeleteFault: 714, DeleteIgnored: true}, [3]int{714, 714, 714}, 1},
		"absent":  {quirks.Rules{DeleteAbsent: 713}, [3]int{713, 0, 713}, 0},
		"first":   {quirks.Rules{DeleteFailures: 2, DeleteAbsent: 713}, [3]int{501, 501, 0}, 0},
	} {
		c := startIGD(t, igdQuirks{Rules: tt.rules})
		c.add()
		if got := [3]int{c.remove("TCP", "1"), c.remove("TCP", "8080"), c.remove("TCP", "8080")}; got != tt.codes || len(c.gw.Table()) != tt.left {
			t.Errorf("%s: codes %v, table %v", name, got, c.gw.Table())
		}
	}
}

func TestMapRules(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Rules: quirks.Rules{AddDisabled: true, PortFault: -1, Port: 443}})
	_, anyCode := c.addAny("ExternalPort", "443")
	checkCodes(t, []int{c.add("ExternalPort", "443"), anyCode, c.add()}, -1, -1, 0)
	if args, _ := c.lookup("TCP", "8080"); args["NewEnabled"] != "0" || !onlyEntry(t, c.gw).Disabled {
		t.Errorf("listed %v", args)
	}
}

func TestListedForms(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Listing: quirks.Listing{
		MalformedRow: true, Client: func(a netip.Addr) string { return "host-" + a.String() },
	}})
	checkCodes(t, []int{c.add(), c.add("ExternalPort", "8081")}, 0, 0)
	row0, _ := c.byIndex(0)
	row1, _ := c.byIndex(1)
	specific, _ := c.lookup("TCP", "8080")
	if got := row0["NewExternalPort"] + row1["NewExternalPort"]; got != "abc8081" || specific["NewInternalClient"] != "host-127.0.0.1" {
		t.Errorf("rows %v, %v, %v", row0, row1, specific)
	}
}

func TestSearchConnectionOnly(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{
		Description: quirks.Description{Connections: quirks.ConnectionBoth},
		Search:      quirks.Search{ConnectionOnly: true, Delay: time.Millisecond},
	})
	s.expectNoResponse(searchFor("ssdp:all"), searchFor("upnp:rootdevice"), searchFor("urn:schemas-upnp-org:device:InternetGatewayDevice:1"))
	for _, kind := range []string{"WANIPConnection:1", "WANPPPConnection:1"} {
		target := "urn:schemas-upnp-org:service:" + kind
		s.send(searchFor(target))
		if got, _ := s.receive(); header(got, "ST") != target {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

// TestSearchDelay checks that a response waits, and that the next search is handled
// meanwhile.
func TestSearchDelay(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{Search: quirks.Search{Delay: time.Hour}})
	s.send(searchFor("upnp:rootdevice"))
	s.send(searchFor("upnp:rootdevice"))
	got, err := s.gw.AwaitRequests(testContext(t), 2, func(q gatewaytest.Request) bool { return q.Answered })
	if stats := s.gw.Stats(); err != nil || stats.Replies != 0 {
		t.Errorf("%d requests, %v, %d replies", len(got), err, stats.Replies)
	}
}

func TestIPv4Only(t *testing.T) {
	t.Parallel()
	gw, _ := startIPv6(t, gatewaytest.Config{ManualClock: true, Quirks: quirks.Quirks{
		UPnP: igdQuirks{Version: 1, Search: quirks.Search{IPv4Only: true}},
	}})
	if at, ssdp := gw.UPnP().DescriptionURL6(), gw.UPnP().SSDP6(); at != "" || ssdp.IsValid() {
		t.Errorf("UPnP over IPv6 at %q, %v", at, ssdp)
	}
	c := newIGDClient(t, gw)
	if body := c.get("/rootDesc.xml"); !strings.Contains(body, firewallService) {
		t.Errorf("no firewall in %s", body)
	}
	c.path, c.service = "/ctl/0/WANIPv6FirewallControl", firewallService
	id, code := c.addPinhole()
	_, other := c.addPinhole("InternalClient", "2001:db8::5")
	_, v4 := c.addPinhole("InternalClient", "127.0.0.1")
	checkCodes(t, []int{code, other, v4, c.pinholeAction("UpdatePinhole", id, "NewLeaseTime", "60"), c.pinholeAction("DeletePinhole", id)}, 0, 0, 606, 0, 0)
	if got := onlyEntry(t, gw).Internal.String(); got != "[2001:db8::5]:8080" {
		t.Error(got)
	}
}

func TestBrokenXML(t *testing.T) {
	t.Parallel()
	for text, form := range map[string]quirks.XML{
		"><!-- a -- b --><": {CommentDashes: true},
		"><? echo ?><":      {EchoPI: true},
		">]]><":             {TextCDATAEnd: true},
		` a="<"><`:          {AttrLess: true},
		"><!-- a -- b --><? echo ?>]]><": {
			CommentDashes: true, EchoPI: true, TextCDATAEnd: true,
		},
		">< /": {SpacedTag: true},
	} {
		c := startIGD(t, igdQuirks{XML: form})
		response, err := c.request("GetStatusInfo")
		for _, got := range []string{c.get("/rootDesc.xml"), response} {
			if strings.Count(got, text) == 0 || err != nil {
				t.Errorf("want %s in %s, %v", text, got, err)
			}
		}
	}
	c := startIGD(t, igdQuirks{XML: quirks.XML{GluedNamespace: true}, FaultForm: quirks.FaultForm{CodePrefix: "u"}})
	if got, _ := c.request("No"); !strings.Contains(got, `<u:UPnPErrorxmlns:u="urn:schemas-upnp-org:control-1-0"><u:errorCode>`) {
		t.Error(got)
	}
}

func TestWireVersion(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Wire: quirks.Wire{Version: "HTTP1.1", HTTP10: true}})
	if got := c.get("/rootDesc.xml"); !strings.HasPrefix(got, "HTTP1.1 200 OK\r\n") {
		t.Error(got)
	}
}

func TestNATPMPOwnPortAndShortErrors(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{TableLimit: 1, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{OwnPort: true, ShortErrors: true}}})
	h := newHost(t, gw)
	h.expect(mapTCP2, "0082 0000 000004d2 0051 0051 00001c20")
	h.expect(mapUDP, "0081 0004 000004d2")
	h.expect("0002 0000 1f90 0000 00000000", "0082 0000 000004d2 1f90 0000 00000000")
}

func TestPCPDropOptions(t *testing.T) {
	t.Parallel()
	h := newHost(t, startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{DropOptions: true}}}))
	m := pcp.MapRequest{Client: h.client(), Protocol: 6, InternalPort: 80, Lifetime: time.Hour, External: netip.IPv4Unspecified()}
	m.Options.Description = "text"
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	h.expect(fmt.Sprintf("%x", b), "")
	if r := h.pcp(func(*pcp.MapRequest) {}); r.Result != pcp.Success {
		t.Errorf("result %v", r.Result)
	}
}

// TestInvalidQuirks checks that Start refuses invalid values.
func TestInvalidQuirks(t *testing.T) {
	t.Parallel()
	for i, u := range []igdQuirks{
		{Description: quirks.Description{Status: 7}},
		{Description: quirks.Description{FirstReset: -1}},
		{Description: quirks.Description{FirstStatus: -1}},
		{Rules: quirks.Rules{DeleteFailures: -1}},
		{Search: quirks.Search{Delay: -1}},
		{Wire: quirks.Wire{Version: "HTTP/1.1 200"}},
	} {
		if gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: u}}); err == nil {
			t.Errorf("config %d was accepted", i)
			_ = gw.Close()
		}
	}
}

// TestFirewallDisabled checks that a firewall that is switched off admits all connections.
func TestFirewallDisabled(t *testing.T) {
	t.Parallel()
	gw, _ := startIPv6(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Firewall: quirks.Firewall{Disabled: true}}}})
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := gw.Dial(testContext(t), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
