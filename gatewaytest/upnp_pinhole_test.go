package gatewaytest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const firewallService = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"

// firewalled is a control of the IPv6 firewall service, over IPv6.
func firewalled(t *testing.T, config gatewaytest.Config) (control, host) {
	t.Helper()
	config.ManualClock = true
	gw, h := firewall(t, config)
	return control{t, gw, "::1", hostPort(t, gw.DescriptionURL6()), "/ctl/0/WANIPv6FirewallControl", firewallService}, h
}

func (c control) pinhole(pairs ...string) (id string, code int) {
	c.t.Helper()
	args := []string{"RemoteHost", "", "RemotePort", "0", "InternalClient", "::1", "InternalPort", "8080", "Protocol", "6", "LeaseTime", "3600"}
	for i := 0; i < len(pairs); i += 2 {
		for j := 0; j < len(args); j += 2 {
			if args[j] == pairs[i] {
				args[j+1] = pairs[i+1]
			}
		}
	}
	got, code := c.call("AddPinhole", args...)
	return got["UniqueID"], code
}

func (c control) hole(action, id string, more ...string) int {
	c.t.Helper()
	_, code := c.call(action, append([]string{"UniqueID", id}, more...)...)
	return code
}

func TestUPnPPinhole(t *testing.T) {
	t.Parallel()
	c, h := firewalled(t, gatewaytest.Config{TableLimit: 3})
	port := itoa(int(serve(t, "tcp6", "[::1]:0")))
	to := "[::1]:" + port
	const from, other = "[2001:db8::9]:7000", "[2001:db8::8]:7000"
	id, code := c.pinhole("InternalPort", port, "RemoteHost", "2001:db8::9")
	again, _ := c.pinhole("InternalPort", port, "RemoteHost", "2001:db8::9", "LeaseTime", "60")
	if e := only(t, c.gw); code != 0 || again != id || e.Remaining != time.Minute || e.Service != "upnp" || e.External != e.Internal {
		t.Errorf("fault %d, pinholes %s, %s: %+v", code, id, again, e)
	}
	reaches(t, c.gw, from, to, true)
	reaches(t, c.gw, other, to, false)
	more, code := c.pinhole("InternalPort", port, "RemoteHost", "2001:db8::8", "RemotePort", "7000")
	if code != 0 || more == id {
		t.Errorf("another: %s, fault %d", more, code)
	}
	reaches(t, c.gw, other, to, true)
	reaches(t, c.gw, "[2001:db8::8]:7001", to, false)
	// PCP has pinholes of its own in the same place.
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = e16(t, port), 0 })
	want(t, r, pcp.Success, 2*time.Hour)
	reaches(t, c.gw, "[2001:db8::7]:1", to, true)
	_, code = c.pinhole("InternalPort", "9")
	wantCodes(t, []int{code, c.hole("UpdatePinhole", id, "NewLeaseTime", "120"), c.hole("DeletePinhole", more)}, 701, 0, 0)
	c.gw.Advance(119 * time.Second)
	reaches(t, c.gw, from, to, true)
	if args, code := c.call("GetPinholePackets", "UniqueID", id); code != 0 || args["PinholePackets"] != "2" {
		t.Errorf("packets %v, fault %d", args, code)
	}
	c.gw.Advance(time.Second)
	wantCodes(t, []int{c.hole("CheckPinholeWorking", id), c.hole("UpdatePinhole", id, "NewLeaseTime", "1"), c.hole("DeletePinhole", more)}, 704, 704, 704)
	if e := only(t, c.gw); e.Service != "pcp" {
		t.Errorf("left %+v", e)
	}
}

func e16(t *testing.T, text string) uint16 {
	t.Helper()
	var n uint16
	for _, digit := range text {
		n = n*10 + uint16(digit-'0')
	}
	return n
}

func TestUPnPPinholeRefusals(t *testing.T) {
	t.Parallel()
	c, _ := firewalled(t, gatewaytest.Config{
		Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: igd{Rules: rules{LowPorts: 606}}},
	})
	for _, tt := range []struct {
		pairs string
		code  int
	}{
		{"InternalPort 0", 706},
		{"InternalPort x", 402},
		{"InternalClient ", 708},
		{"InternalClient *", 708},
		{"InternalClient 2001:db8::1", 606},
		{"InternalClient 127.0.0.1", 606},
		{"InternalClient host", 402},
		{"Protocol 65535", 707},
		{"Protocol 132", 705},
		{"Protocol 262", 705},
		{"LeaseTime 0", 402},
		{"LeaseTime 86401", 402},
		{"RemoteHost 45.45.45.2", 402},
		{"InternalPort 1023", 606},
		{"RemoteHost ::", 0},
		{"RemotePort 65535", 0},
		{"Protocol 17", 0},
		{"LeaseTime 86400", 0},
	} {
		name, value, _ := strings.Cut(tt.pairs, " ")
		if _, code := c.pinhole(name, value); code != tt.code {
			t.Errorf("%s: fault %d, want %d", tt.pairs, code, tt.code)
		}
	}
	v4 := c
	v4.from, v4.to = "127.0.0.1", hostPort(t, c.gw.DescriptionURL())
	_, code := v4.pinhole()
	_, client := v4.pinhole("InternalClient", "127.0.0.1")
	wantCodes(t, []int{code, client, v4.hole("DeletePinhole", "1"), c.hole("DeletePinhole", "0"), c.hole("DeletePinhole", "x")}, 606, 606, 606, 704, 402)
	_, code = c.call("GetOutboundPinholeTimeout")
	wantCodes(t, []int{code}, 501)
}

func TestUPnPFirewallQuirks(t *testing.T) {
	t.Parallel()
	type firewall = quirks.Firewall
	for name, tt := range map[string]struct {
		quirks  firewall
		status  string // enabled, allowed
		codes   []int  // add, look, delete, delete
		through bool
	}{
		"none":          {firewall{}, "1 1", []int{0, 0, 0, 704}, true},
		"disabled":      {firewall{Disabled: true}, "0 1", []int{702, 704, 702, 702}, false},
		"not allowed":   {firewall{NotAllowed: true}, "1 0", []int{703, 704, 703, 703}, false},
		"never working": {firewall{NeverWorking: true}, "1 1", []int{0, 709, 0, 704}, true},
		"absent is 402": {firewall{Absent: 402}, "1 1", []int{0, 0, 0, 402}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := firewalled(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Firewall: tt.quirks}}})
			port := itoa(int(serve(t, "tcp6", "[::1]:0")))
			args, _ := c.call("GetFirewallStatus")
			if got := args["FirewallEnabled"] + " " + args["InboundPinholeAllowed"]; got != tt.status {
				t.Errorf("status %s, want %s", got, tt.status)
			}
			id, code := c.pinhole("InternalPort", port)
			if id == "" {
				id = "1"
			}
			reaches(t, c.gw, "[2001:db8::9]:7000", "[::1]:"+port, tt.through)
			wantCodes(t, []int{code, c.hole("CheckPinholeWorking", id), c.hole("DeletePinhole", id), c.hole("DeletePinhole", id)}, tt.codes...)
		})
	}
}

// Over IPv6 everything but that is as over IPv4.
func TestUPnPOverIPv6(t *testing.T) {
	t.Parallel()
	c, _ := firewalled(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Description: quirks.Description{
		URLBase: quirks.URLBaseNoPort, ControlURL: quirks.ControlAbsolute,
	}}}})
	_, body := split(c.get("/rootDesc.xml"))
	for _, want := range []string{"<URLBase>http://[::1]/</URLBase>", "<controlURL>http://" + c.to + "/ctl/0/WANIPConnection</controlURL>"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	s := searcher{t, c.gw, udpSocket(t, "[::1]:0"), c.gw.SSDP6()}
	s.send(strings.Replace(search(igd2), "239.255.255.250:1900", "[FF02::C]:1900", 1))
	if got, from := s.receive(); header(got, "LOCATION") != c.gw.DescriptionURL6() || from != s.to {
		t.Errorf("from %v %q", from, got)
	}
	c.path, c.service = ipPath, ipConnection
	wantCodes(t, []int{c.add("InternalClient", "::1"), c.add()}, 402, 606) // it maps IPv4 for IPv4 hosts
}
