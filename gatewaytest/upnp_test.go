package gatewaytest_test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestUPnPMapping(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	_, port := listenTCP(t)
	in := strconv.Itoa(int(port))
	if code := c.add("InternalPort", in, "PortMappingDescription", "a &lt;b&gt; &amp; c"); code != 0 {
		t.Fatalf("fault %d", code)
	}
	dial(t, c.gw, "tcp")
	e := only(t, c.gw)
	if e.Service != "upnp" || e.Description != "a <b> & c" || e.Remaining != time.Hour || e.External.String() != "45.45.45.1:8080" ||
		e.Internal != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) {
		t.Errorf("entry %+v", e)
	}
	c.gw.Advance(time.Minute + time.Millisecond)
	for _, got := range []func() (map[string]string, int){
		func() (map[string]string, int) { return c.lookup("TCP", "8080") },
		func() (map[string]string, int) { return c.index(0) },
	} {
		args, code := got()
		if code != 0 || args["NewInternalPort"] != in || args["NewInternalClient"] != "127.0.0.1" || args["NewEnabled"] != "1" ||
			args["NewPortMappingDescription"] != "a &lt;b&gt; &amp; c" || args["NewLeaseDuration"] != "3540" {
			t.Errorf("fault %d, %v", code, args)
		}
	}
	c.gw.Advance(time.Hour)
	refusedTCP(t, c.gw)
	_, code := c.lookup("TCP", "8080")
	wantCodes(t, []int{code, c.remove("TCP", "8080")}, 714, 714)
}

// The same client overwrites, also with another internal port; others do not.
func TestUPnPOverwrites(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	other := c
	other.from = "127.0.0.9"
	wantCodes(t, []int{
		c.add(),
		c.add("ExternalPort", "8081"), // another port for the same endpoint
		c.add("InternalPort", "81", "PortMappingDescription", "new", "LeaseDuration", "60"),
		other.add("InternalClient", "127.0.0.9"),
		other.add(),
		other.remove("TCP", "8080"),
		c.add("RemoteHost", "45.45.45.2"), // the port is another's, who is the same
		other.add("InternalClient", "127.0.0.9", "Protocol", "UDP"),
	}, 0, 0, 0, 718, 606, 606, 718, 0)
	args, _ := c.index(0) // keeps its place
	if args["NewInternalPort"] != "81" || args["NewPortMappingDescription"] != "new" || args["NewLeaseDuration"] != "60" {
		t.Errorf("overwritten: %v", args)
	}
	if args, _ := c.index(1); args["NewExternalPort"] != "8081" {
		t.Errorf("second: %v", args)
	}
	wantCodes(t, []int{c.remove("TCP", "8080"), c.remove("TCP", "8080"), c.remove("TCP", "8081")}, 0, 714, 0)
}

// What one protocol has is in the way of the others.
func TestUPnPAmongOthers(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	c, h := newControl(t, gw), newHost(t, gw)
	static := taken(backends.TCP, 83)
	static.Static = true
	for _, e := range []gatewaytest.Entry{taken(backends.TCP, 82), static} {
		if err := gw.AddMapping(e); err != nil {
			t.Fatal(err)
		}
	}
	h.ask("0002 0000 1f90 0050 00001c20") // NAT-PMP: 8080 at 80
	h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 9, 81 })
	var codes []int
	for _, port := range []string{"80", "81", "82", "83"} {
		codes = append(codes, c.add("ExternalPort", port, "InternalPort", "8080"))
	}
	wantCodes(t, codes, 718, 718, 718, 718)
	if port, code := c.anyPort("ExternalPort", "80", "InternalPort", "7"); code != 0 || port != "84" {
		t.Errorf("any: port %s, fault %d", port, code)
	}
	// Neither renews nor ends what the other has.
	wantCodes(t, []int{c.add("ExternalPort", "8080", "InternalPort", "8080")}, 0)
	h.expect("0002 0000 1f90 1f90 00001c20", "0082 0000 000004d2 1f90 0050 00001c20")
	h.expect("0002 0000 1f90 0000 00000000", "0082 0000 000004d2 1f90 0000 00000000")
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 8080, 8080 })
	if r.Result != pcp.Success || r.ExternalPort != 8081 {
		t.Errorf("PCP beside UPnP: %+v", r)
	}
	r = h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = 8080 })
	want(t, r, pcp.Success, 0)
	// All are listed, in the order of creation. Not all can be deleted.
	var ports []string
	for i := uint32(0); ; i++ {
		args, code := c.index(i)
		if code != 0 {
			break
		}
		ports = append(ports, args["NewExternalPort"])
	}
	if got := strings.Join(ports, " "); got != "82 83 81 84 8080" {
		t.Errorf("listed %s", got)
	}
	wantCodes(t, []int{
		c.remove("TCP", "81"), c.remove("TCP", "82"), c.remove("TCP", "83"), c.remove("TCP", "84"), c.remove("TCP", "8080"),
	}, 606, 606, 606, 0, 0)
	h.ask("0002 0000 1f90 0050 00001c20")
	wantCodes(t, []int{c.remove("TCP", "80")}, 0) // this host's, by whatever protocol
}

func TestUPnPLeases(t *testing.T) {
	t.Parallel()
	const week = 604800 * time.Second
	type leases = quirks.Leases
	one := func(l leases) gatewaytest.Config {
		return gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Version: 1, Leases: l}}}
	}
	two := func(l leases) gatewaytest.Config {
		return gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Leases: l}}}
	}
	for name, tt := range map[string]struct {
		config   gatewaytest.Config
		lease    string
		code     int
		granted  time.Duration
		reported string
	}{
		"version 1, permanent":          {one(leases{}), "0", 0, backends.Forever, "0"},
		"version 1, long":               {one(leases{}), "4294967295", 0, 4294967295 * time.Second, "4294967295"},
		"version 2, longest":            {two(leases{}), "0", 0, week, "604800"},
		"version 2, long":               {two(leases{}), "604801", 0, week, "604800"},
		"no number":                     {two(leases{}), "long", 402, 0, ""},
		"too large":                     {two(leases{}), "4294967296", 402, 0, ""},
		"only permanent":                {two(leases{PermanentOnly: 725}), "1", 725, 0, ""},
		"only permanent, another code":  {one(leases{PermanentOnly: 402}), "1", 402, 0, ""},
		"only permanent, permanent":     {two(leases{PermanentOnly: 725}), "0", 0, backends.Forever, "0"},
		"none permanent":                {one(leases{NoPermanent: 402}), "0", 402, 0, ""},
		"none long":                     {two(leases{NoLong: 402}), "604801", 402, 0, ""},
		"none long, a week":             {two(leases{NoLong: 402}), "604800", 0, week, "604800"},
		"shortened":                     {one(leases{Max: time.Minute}), "0", 0, time.Minute, "60"},
		"shortened for all protocols":   {gatewaytest.Config{MaxLifetime: time.Minute}, "3600", 0, time.Minute, "60"},
		"reported constant":             {two(leases{Reported: 24 * time.Hour}), "60", 0, time.Minute, "86400"},
		"reported constant, permanent":  {one(leases{Reported: 24 * time.Hour}), "0", 0, backends.Forever, "86400"},
		"reported 0":                    {two(leases{ReportedZero: true}), "60", 0, time.Minute, "0"},
		"reported 0 of permanents only": {one(leases{ReportedZero: true, PermanentOnly: 725}), "0", 0, backends.Forever, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.config.ManualClock = true
			c := newControl(t, start(t, tt.config))
			wantCodes(t, []int{c.add("LeaseDuration", tt.lease)}, tt.code)
			if tt.code != 0 {
				return
			}
			if got := only(t, c.gw).Remaining; got != tt.granted {
				t.Errorf("granted %v, want %v", got, tt.granted)
			}
			for _, args := range []map[string]string{first(c.lookup("TCP", "8080")), first(c.index(0))} {
				if got := args["NewLeaseDuration"]; got != tt.reported {
					t.Errorf("reported %s, want %s", got, tt.reported)
				}
			}
		})
	}
}

func first[T, U any](v T, _ U) T { return v }

func TestUPnPNoRefresh(t *testing.T) {
	t.Parallel()
	for _, stuck := range []bool{false, true} {
		c := controlled(t, igd{Leases: quirks.Leases{NoRefresh: stuck}})
		c.add()
		c.gw.Advance(30 * time.Minute)
		wantCodes(t, []int{c.add("PortMappingDescription", "again")}, 0)
		if e := only(t, c.gw); (e.Remaining == 30*time.Minute) != stuck || e.Description != "again" {
			t.Errorf("stuck %v: %v left of %q", stuck, e.Remaining, e.Description)
		}
		c.gw.Advance(30 * time.Minute)
		if n := len(c.gw.Table()); (n == 0) != stuck {
			t.Errorf("stuck %v: %d entries", stuck, n)
		}
	}
}

// What is disabled is there and lets nothing through; a remote host gets in
// where others do not.
func TestUPnPDisabledAndRemote(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	in := strconv.Itoa(int(serve(t, "tcp4", "127.0.0.1:0")))
	const ext = "45.45.45.1:8080"
	wantCodes(t, []int{c.add("InternalPort", in, "Enabled", "0")}, 0)
	args, _ := c.index(0)
	if args["NewEnabled"] != "0" || !only(t, c.gw).Disabled {
		t.Errorf("listed %v", args)
	}
	reaches(t, c.gw, "45.45.45.2:7000", ext, false)
	wantCodes(t, []int{c.add("InternalPort", in, "Enabled", "yes")}, 0)
	reaches(t, c.gw, "45.45.45.2:7000", ext, true)
	wantCodes(t, []int{
		c.remove("TCP", "8080"), c.add("InternalPort", in, "RemoteHost", "45.45.45.2"), c.remove("TCP", "8080"),
	}, 0, 0, 714)
	reaches(t, c.gw, "45.45.45.2:7001", ext, true)
	reaches(t, c.gw, "45.45.45.3:7001", ext, false)
	if args, _ := c.index(0); args["NewRemoteHost"] != "45.45.45.2" {
		t.Errorf("listed %v", args)
	}
	_, code := c.call("DeletePortMapping", "NewRemoteHost", "45.45.45.2", "NewExternalPort", "8080", "NewProtocol", "tcp")
	wantCodes(t, []int{code}, 0)
}

func TestUPnPRanges(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	other := c
	other.from = "127.0.0.9"
	for _, port := range []string{"8000", "8001", "8002", "9000"} {
		c.add("ExternalPort", port)
	}
	other.add("ExternalPort", "8003", "InternalClient", "127.0.0.9")
	list := func(c control, manage, number string) (ports string, code int) {
		args, code := c.call("GetListOfPortMappings", "NewStartPort", "8001", "NewEndPort", "8999", "NewProtocol", "TCP", "NewManage", manage, "NewNumberOfPorts", number)
		for _, entry := range strings.Split(args["NewPortListing"], "<p:PortMappingEntry>")[1:] {
			_, rest, _ := strings.Cut(entry, "<p:NewExternalPort>")
			port, _, _ := strings.Cut(rest, "<")
			ports += port + " "
		}
		return ports, code
	}
	for _, tt := range []struct {
		c              control
		manage, number string
		want           string
	}{{c, "0", "0", "8001 8002 "}, {c, "1", "0", "8001 8002 8003 "}, {c, "1", "2", "8001 8002 "}, {other, "0", "9", "8003 "}} {
		if got, code := list(tt.c, tt.manage, tt.number); code != 0 || got != tt.want {
			t.Errorf("from %s, manage %s, number %s: %q, fault %d", tt.c.from, tt.manage, tt.number, got, code)
		}
	}
	listing, _ := c.listRange("8001", "8001")
	const entry = `<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection"><p:PortMappingEntry>` +
		`<p:NewRemoteHost></p:NewRemoteHost><p:NewExternalPort>8001</p:NewExternalPort><p:NewProtocol>TCP</p:NewProtocol>` +
		`<p:NewInternalPort>80</p:NewInternalPort><p:NewInternalClient>127.0.0.1</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled>` +
		`<p:NewDescription>a test</p:NewDescription><p:NewLeaseTime>3600</p:NewLeaseTime></p:PortMappingEntry></p:PortMappingList>`
	if listing != entry {
		t.Errorf("got  %s\nwant %s", listing, entry)
	}
	remove := func(c control, from, to, manage string) int {
		_, code := c.call("DeletePortMappingRange", "NewStartPort", from, "NewEndPort", to, "NewProtocol", "TCP", "NewManage", manage)
		return code
	}
	wantCodes(t, []int{
		remove(c, "2", "1", "0"), remove(c, "1", "7999", "1"), remove(c, "8001", "8999", "1"), remove(c, "8001", "8999", "1"),
		remove(other, "1", "65535", "0"),
	}, 733, 730, 0, 730, 0)
	if n := len(c.gw.Table()); n != 2 {
		t.Errorf("%d left", n)
	}
	_, code := c.listRange("2", "1")
	_, none := c.listRange("1", "2")
	wantCodes(t, []int{code, none}, 733, 730)
}

func TestUPnPStatus(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{})
	ask := func(action string) map[string]string {
		t.Helper()
		args, code := c.call(action)
		wantCodes(t, []int{code}, 0)
		return args
	}
	c.gw.Advance(time.Hour)
	if s := ask("GetStatusInfo"); s["NewConnectionStatus"] != "Connected" || s["NewUptime"] != "3600" || s["NewLastConnectionError"] != "ERROR_NONE" {
		t.Errorf("status %v", s)
	}
	if s := ask("GetConnectionTypeInfo"); s["NewConnectionType"] != "IP_Routed" || s["NewPossibleConnectionTypes"] != "IP_Routed" {
		t.Errorf("type %v", s)
	}
	if s := ask("GetNATRSIPStatus"); s["NewNATEnabled"] != "1" || s["NewRSIPAvailable"] != "0" {
		t.Errorf("NAT %v", s)
	}
	c.gw.Restart(gatewaytest.RestartOptions{})
	if s := ask("GetStatusInfo"); s["NewUptime"] != "0" {
		t.Errorf("after a restart: %v", s)
	}
	for addr, want := range map[string]string{"45.45.45.7": "45.45.45.7", "10.0.0.2": "10.0.0.2", "0.0.0.0": ""} {
		c.gw.SetExternal(netip.MustParseAddr(addr))
		if s := ask("GetExternalIPAddress"); s["NewExternalIPAddress"] != want {
			t.Errorf("external %s: told %v", addr, s)
		}
	}
	c.gw.SetExternal(netip.Addr{})
	if s := ask("GetStatusInfo"); s["NewConnectionStatus"] != "Disconnected" {
		t.Errorf("without an address: %v", s)
	}
	wantCodes(t, []int{c.add()}, 501)

	c.path, c.service = "/ctl/0/WANCommonInterfaceConfig", "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1"
	if s := ask("GetCommonLinkProperties"); s["NewPhysicalLinkStatus"] != "Up" {
		t.Errorf("link %v", s)
	}
	c.path, c.service = "/ctl/0/Layer3Forwarding", "urn:schemas-upnp-org:service:Layer3Forwarding:1"
	want := c.gw.UDN() + "-conn0:schemas-upnp-org:device:WANConnectionDevice:2,urn:upnp-org:serviceId:WANIPConn1"
	if s := ask("GetDefaultConnectionService"); s["NewDefaultConnectionService"] != want {
		t.Errorf("default %v, want %s", s, want)
	}
}

// A wrong service, a wrong version and unknown actions are 401, bad arguments 402.
func TestUPnPBadCalls(t *testing.T) {
	t.Parallel()
	c, one := controlled(t, igd{}), controlled(t, igd{Version: 1})
	as := func(c control, service string) control { c.service = service; return c }
	_, unknown := c.call("RequestConnection")
	_, listing := one.listRange("1", "2")
	_, anyPort := one.anyPort()
	wantCodes(t, []int{
		unknown, listing, anyPort,
		as(c, ipConnection).add("ExternalPort", "1"), as(one, ipConnection).add(),
		as(c, "urn:schemas-upnp-org:service:WANPPPConnection:1").add(), as(c, "").add(), as(c, "urn:").add(),
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
	wantCodes(t, []int{c.add("ExternalPort", "0"), c.add("InternalPort", "0"), c.add("ExternalPort", "5351", "Protocol", "UDP")}, 716, 732, 718)
	_, code := c.call("GetGenericPortMappingEntry", "NewPortMappingIndex", "first")
	wantCodes(t, []int{code}, 402)
	if got, err := c.post("<s:Envelope>", `SOAPAction: "`+ipConnection1+`#AddPortMapping"`); err != nil || faultCode(t, got) != 402 {
		t.Errorf("cut off: %s, %v", got, err)
	}
	if e := only(t, c.gw); e.External.Port() != 1 {
		t.Errorf("entry %v", e)
	}
}
