package gatewaytest_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	igd1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
	igd2 = "urn:schemas-upnp-org:device:InternetGatewayDevice:2"
)

// searcher is a LAN host that sends searches.
type searcher struct {
	t  *testing.T
	gw *gatewaytest.Gateway
	pc *net.UDPConn
	to netip.AddrPort
}

// startSearcher starts a gateway with these quirks, and returns a host that searches it.
func startSearcher(t *testing.T, u igdQuirks) searcher {
	t.Helper()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: u}, ManualClock: true})
	return searcher{t, gw, udpSocket(t, "127.0.0.1:0"), gw.SSDP()}
}

// udpSocket opens a UDP socket at an address.
func udpSocket(t *testing.T, at string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	_ = pc.SetDeadline(time.Now().Add(testTimeout))
	return pc
}

// send sends a datagram to the SSDP port.
func (s searcher) send(raw string) {
	s.t.Helper()
	if _, err := s.pc.WriteToUDPAddrPort([]byte(raw), s.to); err != nil {
		s.t.Fatal(err)
	}
}

// receive returns the next datagram and its source.
func (s searcher) receive() (string, netip.AddrPort) {
	s.t.Helper()
	b := make([]byte, 9000)
	n, from, err := s.pc.ReadFromUDPAddrPort(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// searchFor returns a multicast search for a target, as the standard defines it.
func searchFor(target string) string {
	return "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\nST: " + target + "\r\n\r\n"
}

// expectNoResponse sends the searches and fails if one of them gets a response. They
// must be the first searches of the gateway.
func (s searcher) expectNoResponse(raw ...string) {
	s.t.Helper()
	for i, raw := range raw {
		s.send(raw)
		got, err := s.gw.AwaitRequests(testContext(s.t), i+1, nil)
		if err != nil || got[i].Service != "ssdp" || string(got[i].Raw) != raw {
			s.t.Fatalf("%v, %v", got, err)
		}
		if n := s.gw.Stats().Ignored; n != i+1 {
			s.t.Errorf("%d searches ignored, want %d; the last is %q", n, i+1, raw)
		}
	}
}

func TestSSDPResponse(t *testing.T) {
	t.Parallel()
	const udn = "uuid:00000000-0000-0000-0000-000000000001"
	s := startSearcher(t, igdQuirks{UDN: udn})
	want := func(st string) string {
		return "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: " + s.gw.UPnP().DescriptionURL() +
			"\r\nSERVER: goforward/1 UPnP/1.1 gatewaytest/1\r\nST: " + st + "\r\nUSN: " + udn + "::" + st +
			"\r\nBOOTID.UPNP.ORG: 1\r\nCONFIGID.UPNP.ORG: 1\r\n\r\n"
	}
	for _, st := range []string{igd1, igd2, "upnp:rootdevice"} {
		s.send(searchFor(st))
		if got, from := s.receive(); got != want(st) || from != s.to {
			t.Errorf("from %v: %q\nwant %q", from, got, want(st))
		}
	}
	s.send(strings.ReplaceAll(strings.Replace(searchFor(igd1), "239.255.255.250:1900\r\n", "127.0.0.1:1900\r\n", 1), "MX: 2\r\n", ""))
	if got, _ := s.receive(); got != want(igd1) {
		t.Errorf("response to a unicast search: %q", got)
	}
	if n := s.gw.Stats().Requests["ssdp search"]; n != 4 {
		t.Errorf("%d searches counted", n)
	}
}

// header returns the value of a header in a message, or an empty string.
func header(message, name string) string {
	for _, line := range strings.Split(message, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// searchTargets returns the search targets of a gateway of a version. UDN is a
// placeholder for the unique device name.
func searchTargets(version string) []string {
	device, service := "urn:schemas-upnp-org:device:", "urn:schemas-upnp-org:service:"
	all := []string{
		"upnp:rootdevice", "UDN", device + "InternetGatewayDevice:" + version, service + "Layer3Forwarding:1",
		"UDN-wan0", device + "WANDevice:" + version, service + "WANCommonInterfaceConfig:1",
		"UDN-conn0", device + "WANConnectionDevice:" + version, service + "WANIPConnection:" + version,
	}
	if version == "2" {
		all = append(all, service+"WANIPv6FirewallControl:1")
	}
	return all
}

func TestSSDPAll(t *testing.T) {
	t.Parallel()
	for version, u := range map[string]igdQuirks{
		"1": {Version: 1}, "2": {}, "1 ": {Search: quirks.Search{Version: 1}, Description: quirks.Description{DSLForum: true}},
	} {
		version, hasFirewall := strings.TrimSpace(version), u.Version != 1
		s := startSearcher(t, u)
		s.send(searchFor("ssdp:all"))
		want := searchTargets(version)
		if version == "1" && hasFirewall {
			want = append(want, searchTargets("2")[10])
		}
		for _, want := range want {
			want = strings.Replace(want, "UDN", s.gw.UPnP().UDN(), 1)
			got, _ := s.receive()
			if header(got, "ST") != want || !strings.HasPrefix(header(got, "USN"), s.gw.UPnP().UDN()) {
				t.Errorf("version %s: got %q, want %s", version, got, want)
			}
		}
	}
}

// TestSSDPUnanswered checks that invalid searches, and searches for other targets, get
// no response.
func TestSSDPUnanswered(t *testing.T) {
	t.Parallel()
	type searchQuirks = quirks.Search
	unicast := strings.Replace(searchFor(igd1), "239.255.255.250:1900", "127.0.0.1:1900", 1)
	unicast6 := strings.Replace(searchFor(igd1), "239.255.255.250:1900", "[FF02::C]:1900", 1)
	for name, tt := range map[string]struct {
		quirks searchQuirks
		raw    []string
	}{
		"invalid or for another target": {searchQuirks{}, []string{
			"\x00\x00", "garbage", "NOTIFY * HTTP/1.1\r\n\r\n",
			strings.Replace(searchFor(igd1), "MAN: \"ssdp:discover\"\r\n", "", 1),
			strings.Replace(searchFor(igd1), `"ssdp:discover"`, `ssdp:discover`, 1),
			strings.Replace(searchFor(igd1), "MX: 2\r\n", "", 1),
			strings.Replace(searchFor(igd1), "\nST:", "\nXT:", 1),
			strings.Replace(searchFor(igd1), "* HTTP", "/ HTTP", 1),
			strings.TrimSuffix(searchFor(igd1), "\r\n"),
			searchFor(igd1)[:30],
			searchFor("urn:schemas-upnp-org:device:MediaServer:1"),
			searchFor("urn:schemas-upnp-org:device:InternetGatewayDevice:3"),
			searchFor("urn:schemas-upnp-org:service:WANPPPConnection:1"),
			searchFor("uuid:other"),
		}},
		"multicast only": {searchQuirks{MulticastOnly: true}, []string{unicast, strings.Replace(unicast, "127.0.0.1:1900", "", 1)}},
		"unicast only":   {searchQuirks{UnicastOnly: true}, []string{searchFor(igd1), unicast6}},
		"no version 2":   {searchQuirks{NoIGD2: true}, []string{searchFor(igd2)}},
		"version 1":      {searchQuirks{Version: 1}, []string{searchFor(igd2)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSearcher(t, igdQuirks{Search: tt.quirks})
			s.expectNoResponse(tt.raw...)
			for _, raw := range []string{searchFor(igd1), unicast} {
				if !slices.Contains(tt.raw, raw) {
					s.send(raw)
					if got, _ := s.receive(); header(got, "ST") != igd1 {
						t.Errorf("got %q", got)
					}
				}
			}
		})
	}
}

func TestSSDPPort1900(t *testing.T) {
	t.Parallel()
	for _, ignored := range []bool{false, true} {
		s := startSearcher(t, igdQuirks{Search: quirks.Search{NoPort1900: ignored}})
		var err error
		for i := range 20 { // find a loopback address on which port 1900 is free
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 19, byte(i), 1}), 1900)
			if s.pc, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err == nil {
				break
			}
		}
		if err != nil {
			t.Skipf("SEARCHES FROM PORT 1900 NOT TESTED: %v", err)
		}
		defer s.pc.Close()
		_ = s.pc.SetDeadline(time.Now().Add(testTimeout))
		if ignored {
			s.expectNoResponse(searchFor(igd1))
			continue
		}
		s.send(searchFor(igd1))
		if got, _ := s.receive(); header(got, "ST") != igd1 {
			t.Errorf("got %q", got)
		}
	}
}

func TestSSDPForms(t *testing.T) {
	t.Parallel()
	type form = quirks.Search
	garbage := [][]byte{[]byte("\x00\xff"), []byte("HTTP/1.1 200 OK\r\n")}
	for name, tt := range map[string]struct {
		quirks form
		edit   *strings.Replacer // changes the default response to the expected one
		copies int
	}{
		"lf":            {form{LFOnly: true}, strings.NewReplacer("\r\n", "\n"), 1},
		"no space":      {form{NoSpace: true}, strings.NewReplacer(": ", ":"), 1},
		"no reason":     {form{NoReason: true}, strings.NewReplacer("200 OK", "200"), 1},
		"no blank line": {form{NoBlankLine: true}, strings.NewReplacer("\r\n\r\n", "\r\n"), 1},
		"duplicates":    {form{Duplicates: 19}, strings.NewReplacer(), 20},
		"garbage":       {form{Garbage: garbage}, strings.NewReplacer(), 1},
		"combined":      {form{LFOnly: true, NoReason: true, Duplicates: 1, Garbage: garbage}, strings.NewReplacer("200 OK", "200", "\r\n", "\n"), 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSearcher(t, igdQuirks{Search: tt.quirks})
			s.send(searchFor(igd1))
			for _, want := range tt.quirks.Garbage {
				if got, _ := s.receive(); got != string(want) {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			defaultResponse := "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: " + s.gw.UPnP().DescriptionURL() +
				"\r\nSERVER: goforward/1 UPnP/1.1 gatewaytest/1\r\nST: " + igd1 + "\r\nUSN: " + s.gw.UPnP().UDN() + "::" + igd1 +
				"\r\nBOOTID.UPNP.ORG: 1\r\nCONFIGID.UPNP.ORG: 1\r\n\r\n"
			for range tt.copies {
				if got, _ := s.receive(); got != tt.edit.Replace(defaultResponse) {
					t.Errorf("got %q, want %q", got, tt.edit.Replace(defaultResponse))
				}
			}
		})
	}
}

func TestSSDPLocation(t *testing.T) {
	t.Parallel()
	for _, location := range []string{
		"http://127.0.0.9:5000/x", "http://192.0.2.1:5000/x", "http://[::1]:1900/x", "http://[fe80::1%3]:5000/x", "https://a/", "",
	} {
		var trueURL string
		s := startSearcher(t, igdQuirks{Search: quirks.Search{Location: func(at string) string { trueURL = at; return location }}})
		s.send(searchFor(igd1))
		got, _ := s.receive()
		if header(got, "LOCATION") != location || strings.Contains(got, "LOCATION") != (location != "") {
			t.Errorf("got %q, want %q", got, location)
		}
		_ = s.gw.Close()
		if trueURL != s.gw.UPnP().DescriptionURL() {
			t.Errorf("argument of Location: %q", trueURL)
		}
	}
}

func TestSSDPOtherPortAndFirstOnly(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{Search: quirks.Search{OtherPort: true, FirstOnly: true}})
	s.send(searchFor("ssdp:all"))
	s.send(searchFor(igd1))
	for _, want := range []string{"urn:schemas-wifialliance-org:device:WFADevice:1", igd1} {
		got, from := s.receive()
		if header(got, "ST") != want || from == s.to || from.Addr() != s.to.Addr() {
			t.Errorf("from %v: %q, want %s from another port than %v", from, got, want, s.to)
		}
	}
}

// TestSSDPDelayWithinMX checks that a delayed response arrives. It does not measure the
// delay.
func TestSSDPDelayWithinMX(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{Search: quirks.Search{Spread: true}})
	s.send(strings.Replace(searchFor(igd1), "MX: 2", "MX: 1", 1))
	if got, _ := s.receive(); header(got, "ST") != igd1 {
		t.Errorf("got %q", got)
	}
	// Close does not wait for responses that are still delayed.
	s.send(strings.Replace(searchFor(igd1), "MX: 2", "MX: 5", 1))
	if _, err := s.gw.AwaitRequests(testContext(t), 2, nil); err != nil {
		t.Fatal(err)
	}
}

func TestSSDPFaults(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{})
	isSearch := func(r gatewaytest.Request) bool { return r.Op == "search" }
	hold := make(chan struct{})
	s.gw.Inject(gatewaytest.Fault{Match: isSearch, Times: 1, Drop: true})
	s.gw.Inject(gatewaytest.Fault{Match: isSearch, Times: 1, DropReply: true})
	s.gw.Inject(gatewaytest.Fault{Match: isSearch, Times: 1, Hold: hold, Duplicate: 1, Corrupt: func(b []byte) []byte { return b[:8] }})
	s.gw.Inject(gatewaytest.Fault{Match: isSearch, Times: 1, Reply: func(b []byte) [][]byte { return [][]byte{b[:8], {1}} }})
	for range 5 {
		s.send(searchFor(igd1))
	}
	var got []string
	for range 3 {
		b, _ := s.receive()
		got = append(got, b[:min(8, len(b))])
	}
	close(hold)
	for range 2 {
		b, _ := s.receive()
		got = append(got, b)
	}
	if want := "[M-SEARCH \x01 HTTP/1.1 HTTP/1.1 HTTP/1.1]"; fmt.Sprint(got) != want {
		t.Errorf("got %q", got)
	}
}

// readNotifications returns the notifications of one round.
func readNotifications(t *testing.T, s searcher, version string) []string {
	t.Helper()
	var all []string
	for _, want := range searchTargets(version) {
		got, from := s.receive()
		if want = strings.Replace(want, "UDN", s.gw.UPnP().UDN(), 1); header(got, "NT") != want || from != s.to {
			t.Errorf("from %v: %q, want %s", from, got, want)
		}
		all = append(all, got)
	}
	return all
}

func TestNotify(t *testing.T) {
	t.Parallel()
	pc := udpSocket(t, "127.0.0.1:0")
	at := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	gw := startGateway(t, gatewaytest.Config{Notify: at, Quirks: quirks.Quirks{AnnounceCount: 1, UPnP: igdQuirks{Version: 1, UDN: "uuid:1", MovePort: true, Search: quirks.Search{Update: true}}}})
	s := searcher{t, gw, pc, gw.SSDP()}
	notification := func(nts, location string, rest string) string {
		return "NOTIFY * HTTP/1.1\r\nHOST: " + at.String() + "\r\nCACHE-CONTROL: max-age=1800\r\nSERVER: goforward/1 UPnP/1.1 gatewaytest/1\r\n" +
			"LOCATION: " + location + "\r\nNT: upnp:rootdevice\r\nNTS: " + nts + "\r\nUSN: uuid:1::upnp:rootdevice\r\n" + rest + "\r\n\r\n"
	}
	first := gw.UPnP().DescriptionURL()
	gw.Announce()
	if got := readNotifications(t, s, "1")[0]; got != notification("ssdp:alive", first, "BOOTID.UPNP.ORG: 1\r\nCONFIGID.UPNP.ORG: 1") {
		t.Errorf("notification %q", got)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	moved := gw.UPnP().DescriptionURL()
	if got := readNotifications(t, s, "1")[0]; moved == first || got != notification("ssdp:alive", moved, "BOOTID.UPNP.ORG: 2\r\nCONFIGID.UPNP.ORG: 1") {
		t.Errorf("after a restart, with description at %s and then %s: %q", first, moved, got)
	}
	gw.UPnP().Byebye()
	if got := readNotifications(t, s, "1")[0]; header(got, "NTS") != "ssdp:byebye" || strings.Contains(got, "LOCATION") || header(got, "BOOTID.UPNP.ORG") != "2" {
		t.Errorf("byebye %q", got)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	if got := readNotifications(t, s, "1")[0]; header(got, "NTS") != "ssdp:update" || header(got, "BOOTID.UPNP.ORG") != "2" || header(got, "NEXTBOOTID.UPNP.ORG") != "3" {
		t.Errorf("update %q", got)
	}
	if got := readNotifications(t, s, "1")[0]; header(got, "NTS") != "ssdp:alive" || header(got, "BOOTID.UPNP.ORG") != "3" {
		t.Errorf("after the update %q", got)
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	gw.Down("upnp")
	gw.Announce()
	gw.UPnP().Byebye()
	if n := gw.Stats().Notifications; n != 5*len(searchTargets("1")) {
		t.Errorf("%d notifications counted", n)
	}
}

// TestNotifyRounds checks that notifications are repeated, because datagrams can be
// lost.
func TestNotifyRounds(t *testing.T) {
	t.Parallel()
	for count, want := range map[int]int{0: 3, 1: 1, 2: 2} {
		pc := udpSocket(t, "127.0.0.1:0")
		gw := startGateway(t, gatewaytest.Config{Notify: pc.LocalAddr().(*net.UDPAddr).AddrPort(), Quirks: quirks.Quirks{AnnounceCount: count, UPnP: igdQuirks{Version: 1, UDN: "uuid:1"}}})
		s := searcher{t, gw, pc, gw.SSDP()}
		gw.Announce()
		for range want {
			readNotifications(t, s, "1")
		}
		if n := gw.Stats().Notifications; n != want*len(searchTargets("1")) {
			t.Errorf("%d notifications, want %d in %d rounds", n, want*len(searchTargets("1")), want)
		}
	}
}

func TestBootIDStuck(t *testing.T) {
	t.Parallel()
	s := startSearcher(t, igdQuirks{Search: quirks.Search{BootIDStuck: true}})
	s.gw.Restart(gatewaytest.RestartOptions{})
	s.send(searchFor(igd1))
	if got, _ := s.receive(); header(got, "BOOTID.UPNP.ORG") != "1" {
		t.Errorf("got %q", got)
	}
}
