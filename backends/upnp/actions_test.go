package upnp

import (
	"context"
	"errors"
	"fmt"
	"html"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
)

var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})

// lastArguments returns the arguments of the last request that the server received.
func lastArguments(t *testing.T, s *rawServer) string {
	t.Helper()
	all := s.received()
	if len(all) == 0 {
		return ""
	}
	_, rest, _ := strings.Cut(all[len(all)-1], "<s:Body><u:")
	_, rest, _ = strings.Cut(rest, ">")
	arguments, _, _ := strings.Cut(rest, "</u:")
	return arguments
}

// elements returns XML elements for pairs of name and value.
func elements(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "<%s>%s</%[1]s>", pairs[i], pairs[i+1])
	}
	return b.String()
}

func TestExternalAddr(t *testing.T) {
	for reported, want := range map[string]string{
		"203.0.113.7": "203.0.113.7", "": "", "0.0.0.0": "", "10.0.0.2": "10.0.0.2", "100.64.1.1": "100.64.1.1",
		"203.000.113.007": "203.0.113.7", "1.2.3.0x4": "", "2001:0db8::0010": "2001:db8::10",
		" 203.0.113.7 ": "203.0.113.7", "unknown": "", "203.0.113.7:80": "", "::": "", "::ffff:203.0.113.7": "203.0.113.7",
	} {
		s := serveRaw(t, respondWith(ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", reported)))))
		got, err := s.client(t, ip1, ClientConfig{}).ExternalAddr(t.Context())
		wantAddr, _ := netip.ParseAddr(want)
		if err != nil || got != wantAddr {
			t.Errorf("%q: %v, %v; want %v", reported, got, err, want)
		}
		if got := lastArguments(t, s); got != "" {
			t.Errorf("arguments %s", got)
		}
	}
	for name, a := range map[string]string{"empty": ok(""), "nothing in it": ok(`<s:Envelope xmlns:s="x"><s:Body/></s:Envelope>`)} {
		s := serveRaw(t, respondWith(a))
		if got, err := s.client(t, ip1, ClientConfig{}).ExternalAddr(t.Context()); !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%s: %v, %v, want ErrMalformed", name, got, err)
		}
	}
}

func TestStatus(t *testing.T) {
	for reported, connected := range map[string]bool{
		"Connected": true, "connected": true, "UP": true, " Connected\n": true, "Disconnected": false, "": false, "Upstream": false,
	} {
		s := serveRaw(t, respondWith(ok(soapResponse("GetStatusInfo", elements(
			"NewConnectionStatus", reported, "NewLastConnectionError", "ERROR_NONE", "newuptime", "77")))))
		got, err := s.client(t, ip1, ClientConfig{}).Status(t.Context())
		want := Status{Connection: strings.TrimSpace(reported), LastError: "ERROR_NONE", Uptime: 77 * time.Second}
		if err != nil || got != want || got.Connected() != connected {
			t.Errorf("%q: %+v, %v", reported, got, err)
		}
	}
}

func TestPortMapping(t *testing.T) {
	s := serveRaw(t, respondWith(ok(soapResponse("GetSpecificPortMappingEntry", elements(
		"NewInternalPort", "80", "NewInternalClient", "192.168.1.10", "NewEnabled", "1",
		"NewPortMappingDescription", "R&amp;D\x01", "NewLeaseDuration", "3599")))))
	key := PortMappingKey{Remote: netip.MustParseAddr("198.51.100.9"), ExternalPort: 8080, Protocol: backends.TCP}
	got, err := s.client(t, ip1, ClientConfig{}).PortMapping(t.Context(), key)
	want := PortMapping{
		Remote: key.Remote, ExternalPort: 8080, Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.1.10:80"),
		Enabled: true, Description: "R&D", Lease: 3599 * time.Second,
	}
	if err != nil || got != want || got.Key() != key {
		t.Errorf("%+v, %v", got, err)
	}
	if got := lastArguments(t, s); got != elements("NewRemoteHost", "198.51.100.9", "NewExternalPort", "8080", "NewProtocol", "TCP") {
		t.Errorf("arguments %s", got)
	}
}

func TestPortMappingAt(t *testing.T) {
	entry := []string{
		"NewRemoteHost", "0.0.0.0", "NewExternalPort", "8080", "NewProtocol", "udp", "NewInternalPort", "80",
		"NewInternalClient", "desktop", "NewEnabled", "no", "NewPortMappingDescription", "", "NewLeaseDuration", "never",
	}
	s := serveRaw(t, respondWith(ok(soapResponse("GetGenericPortMappingEntry", elements(entry...)))))
	got, err := s.client(t, ip1, ClientConfig{}).PortMappingAt(t.Context(), 7)
	want := PortMapping{ExternalPort: 8080, Protocol: backends.UDP, Internal: netip.AddrPortFrom(netip.Addr{}, 80)}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got := lastArguments(t, s); got != elements("NewPortMappingIndex", "7") {
		t.Errorf("arguments %s", got)
	}
	for i, tt := range map[int]struct {
		text   string
		change func(*PortMapping)
	}{
		0:  {"NewRemoteHosts", func(*PortMapping) {}},
		9:  {"192.168.001.020", func(m *PortMapping) { m.Internal = netip.MustParseAddrPort("192.168.1.20:80") }},
		10: {"NewEnable", func(m *PortMapping) { m.Enabled = true }},
		11: {"", func(m *PortMapping) { m.Enabled = true }},
	} {
		changed, want := append([]string(nil), entry...), want
		changed[i] = tt.text
		tt.change(&want)
		s := serveRaw(t, respondWith(ok(soapResponse("GetGenericPortMappingEntry", elements(changed...)))))
		if got, err := s.client(t, ip1, ClientConfig{}).PortMappingAt(t.Context(), 0); err != nil || got != want {
			t.Errorf("%s: %+v, %v", tt.text, got, err)
		}
	}
	for i, bad := range map[int]string{3: "65536", 5: "both", 7: "-1"} {
		malformed := append([]string(nil), entry...)
		malformed[i] = bad
		s := serveRaw(t, respondWith(ok(soapResponse("GetGenericPortMappingEntry", elements(malformed...)))))
		if _, err := s.client(t, ip1, ClientConfig{}).PortMappingAt(t.Context(), 0); !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%s %s: %v", entry[i-1], bad, err)
		}
	}
}

func TestAddAnyPortMapping(t *testing.T) {
	for reported, want := range map[string]uint16{"6882": 6882, "0": 0, "": 0, "x": 0} {
		s := serveRaw(t, respondWith(ok(soapResponse("AddAnyPortMapping", elements("NewReservedPort", reported)))))
		got, err := s.client(t, ip1, ClientConfig{}).AddAnyPortMapping(t.Context(), testMapping)
		if got != want || (want == 0) != errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%q: %d, %v", reported, got, err)
		}
	}
}

func TestDeletePortMapping(t *testing.T) {
	s := serveRaw(t, respondWith(ok(soapResponse("DeletePortMapping", ""))))
	if err := s.client(t, ip1, ClientConfig{}).DeletePortMapping(t.Context(), testMapping.Key()); err != nil {
		t.Error(err)
	}
	if got := lastArguments(t, s); got != elements("NewRemoteHost", "", "NewExternalPort", "6881", "NewProtocol", "UDP") {
		t.Errorf("arguments %s", got)
	}
}

// listing is the inner document of GetListOfPortMappings in its standard form.
const listing = `<?xml version="1.0"?>
<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<p:PortMappingEntry><p:NewRemoteHost></p:NewRemoteHost><p:NewExternalPort>6881</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>6882</p:NewInternalPort><p:NewInternalClient>192.168.1.11</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled><p:NewDescription>a&lt;b</p:NewDescription><p:NewLeaseTime>60</p:NewLeaseTime></p:PortMappingEntry>
<p:PortMappingEntry><p:NewRemoteHost>198.51.100.9</p:NewRemoteHost><p:NewExternalPort>6883</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol><p:NewInternalPort>6883</p:NewInternalPort><p:NewInternalClient>192.168.1.12</p:NewInternalClient><p:NewEnabled>0</p:NewEnabled><p:NewPortMappingDescription></p:NewPortMappingDescription><p:NewLeaseTime>0</p:NewLeaseTime></p:PortMappingEntry>
<p:PortMappingEntry><p:NewExternalPort>nonsense</p:NewExternalPort></p:PortMappingEntry>
</p:PortMappingList>`

func TestPortMappings(t *testing.T) {
	want := []PortMapping{
		{ExternalPort: 6881, Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.1.11:6882"), Enabled: true, Description: "a<b", Lease: time.Minute},
		{Remote: netip.MustParseAddr("198.51.100.9"), ExternalPort: 6883, Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.1.12:6883")},
	}
	for name, reported := range map[string]string{
		"escaped":   html.EscapeString(listing),
		"CDATA":     "<![CDATA[" + listing + "]]>",
		"unescaped": strings.TrimPrefix(listing, `<?xml version="1.0"?>`),
	} {
		s := serveRaw(t, respondWith(ok(soapResponse(listAction, elements("NewPortListing", reported)))))
		got, err := s.client(t, ip1, ClientConfig{}).PortMappings(t.Context(), backends.TCP, 6881, 7008)
		if diff := cmp.Diff(want, got, addresses); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if got := lastArguments(t, s); got != elements("NewStartPort", "6881", "NewEndPort", "7008", "NewProtocol", "TCP", "NewManage", "1", "NewNumberOfPorts", "128") {
			t.Errorf("arguments %s", got)
		}
	}
	s := serveRaw(t, respondWith(status(500, `<Envelope><Body><Fault><detail><UPnPError><errorCode>730</errorCode></UPnPError></detail></Fault></Body></Envelope>`)))
	if got, err := s.client(t, ip1, ClientConfig{}).PortMappings(t.Context(), backends.TCP, 1, 1); err != nil || got != nil {
		t.Errorf("empty listing: %v, %v", got, err)
	}
}

// TestLongListing checks that the largest listing that can be requested is read,
// escaped or not.
func TestLongListing(t *testing.T) {
	var b strings.Builder
	b.WriteString("<list>")
	for port := 1; port <= maxWindow; port++ {
		b.WriteString("<PortMappingEntry>" + elements("NewRemoteHost", "", "NewExternalPort", fmt.Sprint(port), "NewProtocol", "TCP", "NewInternalPort", "1",
			"NewInternalClient", "192.168.1.2", "NewEnabled", "1", "NewDescription", strings.Repeat("x", 256), "NewLeaseTime", "0") + "</PortMappingEntry>")
	}
	b.WriteString("</list>")
	for _, reported := range []string{b.String(), html.EscapeString(b.String())} {
		s := serveRaw(t, respondWith(ok(soapResponse(listAction, elements("NewPortListing", reported)))))
		got, err := s.client(t, ip1, ClientConfig{}).PortMappings(t.Context(), backends.TCP, 1, maxWindow)
		if err != nil || len(got) != maxWindow {
			t.Errorf("%d entries, %v", len(got), err)
		}
	}
}

// listingOutput returns the output arguments with an escaped listing.
func listingOutput(listing string) *lenient.Element {
	return &lenient.Element{Children: []*lenient.Element{{Name: "NewPortListing", Text: listing}}}
}

// TestPortListingPrefixes checks that a truncated listing yields only complete
// entries.
func TestPortListingPrefixes(t *testing.T) {
	all, err := parseListing(listingOutput(listing))
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for n := range len(listing) {
		got, err := parseListing(listingOutput(listing[:n]))
		if err != nil || len(got) > 2 || !cmp.Equal(got, all[:len(got)], addresses, cmpopts.EquateEmpty()) {
			t.Fatalf("%d bytes: %v, %v", n, got, err)
		}
	}
	if got, err := parseListing(listingOutput(strings.Repeat("<a/>", 5000))); !errors.Is(err, backends.ErrMalformed) {
		t.Errorf("many elements: %v, %v", got, err)
	}
}

func TestPinholes(t *testing.T) {
	const fw = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
	s := serveRaw(t, respondWith(
		ok(soapResponse("GetFirewallStatus", elements("FirewallEnabled", "1", "InboundPinholeAllowed", "0"))),
		ok(soapResponse("AddPinhole", elements("UniqueID", "65535"))),
		ok(""),
		ok(soapResponse("CheckPinholeWorking", elements("IsWorking", "true"))),
		ok(soapResponse("DeletePinhole", "")),
		ok(soapResponse("AddPinhole", elements("UniqueID", "65536"))),
	))
	c := s.client(t, fw, ClientConfig{})
	ctx := t.Context()
	if got, err := c.FirewallStatus(ctx); err != nil || got != (FirewallStatus{Enabled: true}) {
		t.Errorf("status %+v, %v", got, err)
	}
	request := Pinhole{Internal: netip.MustParseAddrPort("[2001:db8::10]:8080"), Protocol: backends.UDP, Lease: time.Hour}
	id, err := c.AddPinhole(ctx, request)
	if err != nil || id != 65535 {
		t.Errorf("added %d, %v", id, err)
	}
	if got := lastArguments(t, s); got != elements("RemoteHost", "", "RemotePort", "0", "InternalClient", "2001:db8::10", "InternalPort", "8080", "Protocol", "17", "LeaseTime", "3600") {
		t.Errorf("arguments %s", got)
	}
	if err := c.UpdatePinhole(ctx, id, time.Minute+1); err != nil {
		t.Errorf("updated: %v", err)
	}
	if got := lastArguments(t, s); got != elements("UniqueID", "65535", "NewLeaseTime", "61") {
		t.Errorf("arguments %s", got)
	}
	if working, err := c.PinholeWorking(ctx, id); err != nil || !working {
		t.Errorf("working %v, %v", working, err)
	}
	if err := c.DeletePinhole(ctx, id); err != nil {
		t.Errorf("deleted: %v", err)
	}
	request.Remote = netip.MustParseAddrPort("[2001:db8:1::9]:53")
	if _, err := c.AddPinhole(ctx, request); !errors.Is(err, backends.ErrMalformed) {
		t.Errorf("ID out of range: %v", err)
	}
	if got := lastArguments(t, s); !strings.HasPrefix(got, elements("RemoteHost", "2001:db8:1::9", "RemotePort", "53")) {
		t.Errorf("arguments %s", got)
	}
}

// TestInvalid checks that invalid arguments are rejected without a request.
func TestInvalid(t *testing.T) {
	s := serveRaw(t, respondWith(ok("")))
	c := s.client(t, ip1, ClientConfig{})
	add := func(invalidate func(*PortMapping)) func(context.Context) error {
		m := testMapping
		invalidate(&m)
		return func(ctx context.Context) error {
			_, anyErr := c.AddAnyPortMapping(ctx, m)
			if err := c.AddPortMapping(ctx, m); !errors.Is(anyErr, backends.ErrInvalid) {
				return err
			}
			return anyErr
		}
	}
	pinhole := func(invalidate func(*Pinhole)) func(context.Context) error {
		p := Pinhole{Internal: netip.MustParseAddrPort("[2001:db8::10]:8080"), Protocol: backends.UDP, Lease: time.Hour}
		invalidate(&p)
		return func(ctx context.Context) error { _, err := c.AddPinhole(ctx, p); return err }
	}
	list := func(first, last uint16) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.PortMappings(ctx, backends.TCP, first, last)
			return err
		}
	}
	at := func(index int) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.PortMappingAt(ctx, index); return err }
	}
	for name, do := range map[string]func(context.Context) error{
		"external port 0":  add(func(m *PortMapping) { m.ExternalPort = 0 }),
		"internal port 0":  add(func(m *PortMapping) { m.Internal = netip.AddrPortFrom(m.Internal.Addr(), 0) }),
		"no address":       add(func(m *PortMapping) { m.Internal = netip.AddrPortFrom(netip.Addr{}, 1) }),
		"any address":      add(func(m *PortMapping) { m.Internal = netip.MustParseAddrPort("0.0.0.0:1") }),
		"no protocol":      add(func(m *PortMapping) { m.Protocol = 0 }),
		"negative lease":   add(func(m *PortMapping) { m.Lease = -1 }),
		"delete port 0":    func(ctx context.Context) error { return c.DeletePortMapping(ctx, PortMappingKey{Protocol: 6}) },
		"get port 0":       func(ctx context.Context) error { _, err := c.PortMapping(ctx, PortMappingKey{Protocol: 6}); return err },
		"129 ports":        list(1, 129),
		"no ports":         list(2, 1),
		"from port 0":      list(0, 1),
		"all ports":        list(0, 65535),
		"index -1":         at(-1),
		"index 65536":      at(65536),
		"pinhole port":     pinhole(func(p *Pinhole) { p.Internal = netip.AddrPortFrom(p.Internal.Addr(), 0) }),
		"pinhole protocol": pinhole(func(p *Pinhole) { p.Protocol = 0 }),
		"pinhole address":  pinhole(func(p *Pinhole) { p.Internal = netip.MustParseAddrPort("[::]:1") }),
		"pinhole lease":    pinhole(func(p *Pinhole) { p.Lease = 0 }),
		"infinite lease":   pinhole(func(p *Pinhole) { p.Lease = backends.Forever }),
		"update lease":     func(ctx context.Context) error { return c.UpdatePinhole(ctx, 1, -time.Second) },
	} {
		if err := do(t.Context()); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for name, do := range map[string]func(context.Context) error{
		"SCTP":         add(func(m *PortMapping) { m.Protocol = backends.SCTP }),
		"IPv6":         add(func(m *PortMapping) { m.Internal = netip.MustParseAddrPort("[2001:db8::1]:1") }),
		"IPv4 pinhole": pinhole(func(p *Pinhole) { p.Internal = netip.MustParseAddrPort("192.0.2.1:1") }),
	} {
		if err := do(t.Context()); !errors.Is(err, backends.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", name, err)
		}
	}
	if n := len(s.received()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestWireDescription(t *testing.T) {
	for in, want := range map[string]string{
		"gomap":                                "gomap",
		"":                                     "goforward",
		" \t\n":                                "__",
		"   ":                                  "goforward",
		`a"b'c<d>e&f` + "`\\":                  "a_b_c_d_e_f__",
		"Bücher\x00\u202e":                     "B_cher__",
		strings.Repeat("x", 100):               strings.Repeat("x", 63),
		strings.Repeat("x", 62) + " y":         strings.Repeat("x", 62),
		"http-alt 8080/tcp (host.example:1)@#": "http-alt 8080/tcp (host.example:1)@#",
	} {
		if got := wireDescription(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestLease(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 1: "1", time.Second: "1", time.Second + 1: "2", time.Hour: "3600",
		backends.Forever: "0", math.MaxUint32*time.Second + 1: "4294967295", backends.Forever - 1: "4294967295",
	} {
		if got, err := leaseSeconds(d); got != want || err != nil {
			t.Errorf("%v: %s, %v; want %s", d, got, err, want)
		}
	}
	if _, err := leaseSeconds(-1); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("negative: %v", err)
	}
	for s, want := range map[string]time.Duration{
		"3600": time.Hour, " 60\n": time.Minute, "": 0, "-1": 0, "x": 0, "4294967295": math.MaxUint32 * time.Second,
		"4294967296": 0, "99999999999999999999999": 0, "1.5": 0,
	} {
		if got := parseLease(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestBool(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "true": true, "TRUE": true, "Yes": true, " 1 ": true,
		"0": false, "false": false, "no": false, "": false, "2": false, "on fire": false,
	} {
		if parseBool(s, false) != want {
			t.Errorf("%q: want %v", s, want)
		}
	}
	for s, want := range map[string]bool{"1": true, " YES ": true, "0": false, "False": false, "no\n": false, "": true, "2": true, "disabled?": true} {
		if parseBool(s, true) != want {
			t.Errorf("%q or else true: want %v", s, want)
		}
	}
}

func TestHost(t *testing.T) {
	for a, want := range map[netip.Addr]string{
		{}:                                      "",
		netip.MustParseAddr("0.0.0.0"):          "",
		netip.MustParseAddr("::"):               "",
		netip.MustParseAddr("192.0.2.1"):        "192.0.2.1",
		netip.MustParseAddr("::ffff:192.0.2.1"): "192.0.2.1",
		netip.MustParseAddr("fe80::1%eth0"):     "fe80::1",
	} {
		if got := formatHost(a); got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
}
