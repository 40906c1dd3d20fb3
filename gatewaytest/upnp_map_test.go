package gatewaytest_test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestUPnPMapping(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	_, port := listenTCP(t)
	in := strconv.Itoa(int(port))
	if code := c.add("InternalPort", in, "PortMappingDescription", "a &lt;b&gt; &amp; c"); code != 0 {
		t.Fatalf("fault %d", code)
	}
	dial(t, c.gw, "tcp")
	e := onlyEntry(t, c.gw)
	if e.Service != "upnp" || e.Description != "a <b> & c" || e.Remaining != time.Hour || e.External.String() != "45.45.45.1:8080" ||
		e.Internal != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) {
		t.Errorf("entry %+v", e)
	}
	c.gw.Advance(time.Minute + time.Millisecond)
	for _, got := range []func() (map[string]string, int){
		func() (map[string]string, int) { return c.lookup("TCP", "8080") },
		func() (map[string]string, int) { return c.byIndex(0) },
	} {
		args, code := got()
		if code != 0 || args["NewInternalPort"] != in || args["NewInternalClient"] != "127.0.0.1" || args["NewEnabled"] != "1" ||
			args["NewPortMappingDescription"] != "a &lt;b&gt; &amp; c" || args["NewLeaseDuration"] != "3540" {
			t.Errorf("fault %d, %v", code, args)
		}
	}
	c.gw.Advance(time.Hour)
	checkRefused(t, c.gw)
	_, code := c.lookup("TCP", "8080")
	checkCodes(t, []int{code, c.remove("TCP", "8080")}, 714, 714)
}

// TestUPnPOverwrites checks that the same client can overwrite a mapping, even with
// another internal port, and that other clients cannot.
func TestUPnPOverwrites(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	other := c
	other.from = "127.0.0.9"
	checkCodes(t, []int{
		c.add(),
		c.add("ExternalPort", "8081"), // a second external port for the same endpoint
		c.add("InternalPort", "81", "PortMappingDescription", "new", "LeaseDuration", "60"),
		other.add("InternalClient", "127.0.0.9"),
		other.add(),
		other.remove("TCP", "8080"),
		c.add("RemoteHost", "45.45.45.2"), // another mapping of the same client has the port
		other.add("InternalClient", "127.0.0.9", "Protocol", "UDP"),
	}, 0, 0, 0, 718, 606, 606, 718, 0)
	args, _ := c.byIndex(0) // the overwritten entry keeps its index
	if args["NewInternalPort"] != "81" || args["NewPortMappingDescription"] != "new" || args["NewLeaseDuration"] != "60" {
		t.Errorf("overwritten entry: %v", args)
	}
	if args, _ := c.byIndex(1); args["NewExternalPort"] != "8081" {
		t.Errorf("second entry: %v", args)
	}
	checkCodes(t, []int{c.remove("TCP", "8080"), c.remove("TCP", "8080"), c.remove("TCP", "8081")}, 0, 714, 0)
}

type rulesQuirks = quirks.Rules

func TestUPnPRules(t *testing.T) {
	t.Parallel()
	codes := func(some ...int) []int { return some }
	for name, tt := range map[string]struct {
		config gatewaytest.Config
		do     func(igdClient) []int
		want   []int
		left   int // number of entries at the end, without the test's own entry
	}{
		"re-add refused": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{NoReAdd: 718}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add(), c.remove("TCP", "8080"), c.add())
		}, codes(0, 718, 0, 0), 1},
		"one port": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{OnePort: true}}}}, func(c igdClient) []int {
			return codes(
				c.add(), c.add(), c.add("ExternalPort", "1"), c.add("ExternalPort", "1", "InternalPort", "1"),
				c.add("InternalPort", "81"), c.add("ExternalPort", "2", "InternalPort", "81"), c.add("ExternalPort", "2"),
			)
		}, codes(0, 0, 718, 0, 0, 718, 0), 3},
		"other mechanism": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{OtherMechanism: 729}}}}, func(c igdClient) []int {
			other := c
			other.from = "127.0.0.9"
			return codes(c.add("ExternalPort", "7"), c.add(), other.add("InternalClient", other.from))
		}, codes(729, 0, 718), 1},
		"same port": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{SamePort: true}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("ExternalPort", "80"))
		}, codes(724, 0), 1},
		"low ports": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{LowPorts: 606}}}}, func(c igdClient) []int {
			return codes(c.add("ExternalPort", "1023"), c.add("ExternalPort", "1024"), second(c.addAny("ExternalPort", "0")))
		}, codes(606, 0, 0), 2},
		"low ports, another code": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{LowPorts: 718}}}}, func(c igdClient) []int {
			return codes(c.add("ExternalPort", "1023"))
		}, codes(718), 0},
		"source needed": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{SourceNeeded: true}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("RemoteHost", "45.45.45.2"))
		}, codes(715, 0), 1},
		"any source only": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{AnySourceOnly: true}}}}, func(c igdClient) []int {
			return codes(c.add("RemoteHost", "45.45.45.2"), c.add())
		}, codes(726, 0), 1},
		"any port only": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{AnyPortOnly: true}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("ExternalPort", "0"))
		}, codes(727, 716), 0},
		"full": {gatewaytest.Config{TableLimit: 2}, func(c igdClient) []int {
			return codes(c.add(), c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 0, 728), 1},
		"full, version 1": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igdQuirks{Version: 1}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 501), 1},
		"full, another code": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{Full: 402}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 402), 1},
		"full, silent": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{FullSilent: true}}}}, func(c igdClient) []int {
			return codes(c.add(), c.add("ExternalPort", "1"), second(c.lookup("TCP", "1")))
		}, codes(0, 0, 714), 1},
		"unlisted": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{Unlisted: true}}}}, func(c igdClient) []int {
			port, code := c.addAny()
			if port != "8080" {
				t.Errorf("AddAnyPortMapping: port %s", port)
			}
			return codes(c.add(), code, second(c.lookup("TCP", "8080")))
		}, codes(0, 0, 714), 0},
		"listed client": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{ListedClient: netip.MustParseAddr("127.0.0.77")}}}}, func(c igdClient) []int {
			code := c.add()
			if args, _ := c.lookup("TCP", "8080"); args["NewInternalClient"] != "127.0.0.77" {
				t.Errorf("listed %v", args)
			}
			return codes(code, c.remove("TCP", "8080"))
		}, codes(0, 606), 1},
		"private, refused": {gatewaytest.Config{External: netip.MustParseAddr("100.64.0.2"), Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{RefusePrivate: true}}}}, func(c igdClient) []int {
			if args, _ := c.call("GetExternalIPAddress"); args["NewExternalIPAddress"] != "" {
				t.Errorf("external %v", args)
			}
			if args, _ := c.call("GetStatusInfo"); args["NewConnectionStatus"] != "Connected" {
				t.Errorf("status %v", args)
			}
			return codes(c.add(), second(c.addAny()))
		}, codes(501, 501), 0},
		"private, accepted": {gatewaytest.Config{External: netip.MustParseAddr("100.64.0.2")}, func(c igdClient) []int {
			return codes(c.add())
		}, codes(0), 1},
		"switched off": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{SwitchedOff: true}}}}, func(c igdClient) []int {
			_, manage := c.call("DeletePortMappingRange", "NewStartPort", "1", "NewEndPort", "9", "NewProtocol", "TCP", "NewManage", "1")
			return codes(c.add(), second(c.addAny()), c.remove("TCP", "7"), manage, second(c.lookup("TCP", "7")), second(c.byIndex(0)))
		}, codes(606, 606, 606, 606, 0, 0), 0},
		"other clients": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{AnyClient: true}}}, func(c igdClient) []int {
			return codes(c.add("InternalClient", "127.0.0.9"), c.add(), c.remove("TCP", "8080"), c.remove("TCP", "7"))
		}, codes(0, 718, 0, 0), -1},
		"other clients, version 1": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Version: 1}}}, func(c igdClient) []int {
			return codes(c.add("InternalClient", "127.0.0.9"))
		}, codes(718), 0},
		"no AddAny": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{NoAddAny: true}}}}, func(c igdClient) []int {
			return codes(second(c.addAny()), c.add())
		}, codes(401, 0), 1},
		"AddAny resets": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{AddAnyResets: true}}}}, func(c igdClient) []int {
			return codes(second(c.addAny()), c.add())
		}, codes(connReset, 0), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.config.ManualClock = true
			gw := startGateway(t, tt.config)
			if err := gw.AddMapping(otherHostEntry(backends.TCP, 7)); err != nil {
				t.Fatal(err)
			}
			checkCodes(t, tt.do(newIGDClient(t, gw)), tt.want...)
			if n := len(gw.Table()) - 1; n != tt.left {
				t.Errorf("%d entries, want %d: %v", n, tt.left, gw.Table())
			}
		})
	}
}

func TestUPnPLeases(t *testing.T) {
	t.Parallel()
	const week = 604800 * time.Second
	type leases = quirks.Leases
	version1 := func(l leases) gatewaytest.Config {
		return gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Version: 1, Leases: l}}}
	}
	version2 := func(l leases) gatewaytest.Config {
		return gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Leases: l}}}
	}
	for name, tt := range map[string]struct {
		config   gatewaytest.Config
		lease    string
		code     int
		granted  time.Duration
		reported string
	}{
		"version 1, permanent":         {version1(leases{}), "0", 0, backends.Forever, "0"},
		"version 1, long":              {version1(leases{}), "4294967295", 0, 4294967295 * time.Second, "4294967295"},
		"version 2, permanent":         {version2(leases{}), "0", 0, week, "604800"},
		"version 2, long":              {version2(leases{}), "604801", 0, week, "604800"},
		"no number":                    {version2(leases{}), "long", 402, 0, ""},
		"too large":                    {version2(leases{}), "4294967296", 402, 0, ""},
		"permanent only":               {version2(leases{PermanentOnly: 725}), "1", 725, 0, ""},
		"permanent only, another code": {version1(leases{PermanentOnly: 402}), "1", 402, 0, ""},
		"permanent only, permanent":    {version2(leases{PermanentOnly: 725}), "0", 0, backends.Forever, "0"},
		"no permanent":                 {version1(leases{NoPermanent: 402}), "0", 402, 0, ""},
		"no long":                      {version2(leases{NoLong: 402}), "604801", 402, 0, ""},
		"no long, one week":            {version2(leases{NoLong: 402}), "604800", 0, week, "604800"},
		"shortened":                    {version1(leases{Max: time.Minute}), "0", 0, time.Minute, "60"},
		"shortened for all protocols":  {gatewaytest.Config{MaxLifetime: time.Minute}, "3600", 0, time.Minute, "60"},
		"reported constant":            {version2(leases{Reported: 24 * time.Hour}), "60", 0, time.Minute, "86400"},
		"reported constant, permanent": {version1(leases{Reported: 24 * time.Hour}), "0", 0, backends.Forever, "86400"},
		"reported 0":                   {version2(leases{ReportedZero: true}), "60", 0, time.Minute, "0"},
		"reported 0, permanent only":   {version1(leases{ReportedZero: true, PermanentOnly: 725}), "0", 0, backends.Forever, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.config.ManualClock = true
			c := newIGDClient(t, startGateway(t, tt.config))
			checkCodes(t, []int{c.add("LeaseDuration", tt.lease)}, tt.code)
			if tt.code != 0 {
				return
			}
			if got := onlyEntry(t, c.gw).Remaining; got != tt.granted {
				t.Errorf("granted %v, want %v", got, tt.granted)
			}
			for _, args := range []map[string]string{first(c.lookup("TCP", "8080")), first(c.byIndex(0))} {
				if got := args["NewLeaseDuration"]; got != tt.reported {
					t.Errorf("reported %s, want %s", got, tt.reported)
				}
			}
		})
	}
}

func TestUPnPNoRefresh(t *testing.T) {
	t.Parallel()
	for _, noRefresh := range []bool{false, true} {
		c := startIGD(t, igdQuirks{Leases: quirks.Leases{NoRefresh: noRefresh}})
		c.add()
		c.gw.Advance(30 * time.Minute)
		checkCodes(t, []int{c.add("PortMappingDescription", "again")}, 0)
		if e := onlyEntry(t, c.gw); (e.Remaining == 30*time.Minute) != noRefresh || e.Description != "again" {
			t.Errorf("NoRefresh %v: remaining %v of %q", noRefresh, e.Remaining, e.Description)
		}
		c.gw.Advance(30 * time.Minute)
		if n := len(c.gw.Table()); (n == 0) != noRefresh {
			t.Errorf("NoRefresh %v: %d entries", noRefresh, n)
		}
	}
}

// TestUPnPDisabledAndRemote checks that a disabled mapping is listed but forwards
// nothing, and that a mapping for a remote host admits only that host.
func TestUPnPDisabledAndRemote(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	in := strconv.Itoa(int(serveEcho(t, "tcp4", "127.0.0.1:0")))
	const ext = "45.45.45.1:8080"
	checkCodes(t, []int{c.add("InternalPort", in, "Enabled", "0")}, 0)
	args, _ := c.byIndex(0)
	if args["NewEnabled"] != "0" || !onlyEntry(t, c.gw).Disabled {
		t.Errorf("listed %v", args)
	}
	checkReach(t, c.gw, "45.45.45.2:7000", ext, false)
	checkCodes(t, []int{c.add("InternalPort", in, "Enabled", "yes")}, 0)
	checkReach(t, c.gw, "45.45.45.2:7000", ext, true)
	checkCodes(t, []int{
		c.remove("TCP", "8080"), c.add("InternalPort", in, "RemoteHost", "45.45.45.2"), c.remove("TCP", "8080"),
	}, 0, 0, 714)
	checkReach(t, c.gw, "45.45.45.2:7001", ext, true)
	checkReach(t, c.gw, "45.45.45.3:7001", ext, false)
	if args, _ := c.byIndex(0); args["NewRemoteHost"] != "45.45.45.2" {
		t.Errorf("listed %v", args)
	}
	_, code := c.call("DeletePortMapping", "NewRemoteHost", "45.45.45.2", "NewExternalPort", "8080", "NewProtocol", "tcp")
	checkCodes(t, []int{code}, 0)
}

func TestUPnPNoTraffic(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Rules: rulesQuirks{NoTraffic: true}})
	port := strconv.Itoa(int(serveEcho(t, "tcp4", "127.0.0.1:0")))
	checkCodes(t, []int{c.add("InternalPort", port), second(c.lookup("TCP", "8080"))}, 0, 0)
	checkReach(t, c.gw, "45.45.45.2:7000", "45.45.45.1:8080", false)
}

func TestUPnPIdleAfter(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Rules: rulesQuirks{IdleAfter: 10 * time.Minute, IdleAbove: 1}})
	port := strconv.Itoa(int(serveEcho(t, "tcp4", "127.0.0.1:0")))
	if err := c.gw.AddMapping(otherHostEntry(backends.TCP, 7)); err != nil {
		t.Fatal(err)
	}
	checkCodes(t, []int{c.add("InternalPort", port), c.add("ExternalPort", "1", "LeaseDuration", "0")}, 0, 0)
	c.gw.Advance(6 * time.Minute)
	checkReach(t, c.gw, "45.45.45.2:7000", "45.45.45.1:8080", true)
	c.gw.Advance(6 * time.Minute)
	checkCodes(t, []int{second(c.lookup("TCP", "1")), second(c.lookup("TCP", "8080"))}, 714, 0)
	if !c.gw.RemoveMapping(backends.TCP, 7) {
		t.Error("the entry of another host was deleted")
	}
	c.gw.Advance(20 * time.Minute)
	onlyEntry(t, c.gw) // the table has too few entries for IdleAfter to apply
}

func TestUPnPRanges(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{})
	other := c
	other.from = "127.0.0.9"
	for _, port := range []string{"8000", "8001", "8002", "9000"} {
		c.add("ExternalPort", port)
	}
	other.add("ExternalPort", "8003", "InternalClient", "127.0.0.9")
	list := func(c igdClient, manage, number string) (ports string, code int) {
		args, code := c.call("GetListOfPortMappings", "NewStartPort", "8001", "NewEndPort", "8999", "NewProtocol", "TCP", "NewManage", manage, "NewNumberOfPorts", number)
		for _, entry := range strings.Split(args["NewPortListing"], "<p:PortMappingEntry>")[1:] {
			_, rest, _ := strings.Cut(entry, "<p:NewExternalPort>")
			port, _, _ := strings.Cut(rest, "<")
			ports += port + " "
		}
		return ports, code
	}
	for _, tt := range []struct {
		c              igdClient
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
	deleteRange := func(c igdClient, from, to, manage string) int {
		_, code := c.call("DeletePortMappingRange", "NewStartPort", from, "NewEndPort", to, "NewProtocol", "TCP", "NewManage", manage)
		return code
	}
	checkCodes(t, []int{
		deleteRange(c, "2", "1", "0"), deleteRange(c, "1", "7999", "1"), deleteRange(c, "8001", "8999", "1"), deleteRange(c, "8001", "8999", "1"),
		deleteRange(other, "1", "65535", "0"),
	}, 733, 730, 0, 730, 0)
	if n := len(c.gw.Table()); n != 2 {
		t.Errorf("%d entries remain", n)
	}
	_, code := c.listRange("2", "1")
	_, none := c.listRange("1", "2")
	checkCodes(t, []int{code, none}, 733, 730)
}

func TestUPnPListing(t *testing.T) {
	t.Parallel()
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		quirks listing
		codes  []int // lookup of a mapping that exists and of one that does not; indexes 0 and 1; range; deletion of a mapping that does not exist
	}{
		"none":                       {listing{}, []int{0, 714, 0, 713, 0, 714}},
		"no lookup":                  {listing{NoSpecific: true}, []int{401, 401, 0, 713, 0, 714}},
		"absent is 402":              {listing{Absent: 402}, []int{0, 402, 0, 713, 0, 714}},
		"absent is 501":              {listing{Absent: 501}, []int{0, 501, 0, 713, 0, 714}},
		"ends with 899":              {listing{EndOfList: 899}, []int{0, 714, 0, 899, 0, 714}},
		"ends with 714":              {listing{EndOfList: 714}, []int{0, 714, 0, 714, 0, 714}},
		"endless":                    {listing{Endless: true}, []int{0, 714, 0, 0, 0, 714}},
		"no index":                   {listing{IndexFails: 501}, []int{0, 714, 501, 501, 0, 714}},
		"no range":                   {listing{NoRange: true}, []int{0, 714, 0, 713, 401, 714}},
		"range resets":               {listing{RangeResets: true}, []int{0, 714, 0, 713, connReset, 714}},
		"range crashes, few entries": {listing{RangeCrashes: true}, []int{0, 714, 0, 713, 0, 714}},
		"range escaped":              {listing{RangeEscaped: true}, []int{0, 714, 0, 713, 0, 714}},
		"no lookup, no list":         {listing{NoSpecific: true, IndexFails: 402, NoRange: true}, []int{401, 401, 402, 402, 401, 714}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{Listing: tt.quirks})
			checkCodes(t, []int{c.add()}, 0)
			text, code := c.listRange("1", "65535")
			checkCodes(t, []int{
				second(c.lookup("TCP", "8080")), second(c.lookup("TCP", "1")), second(c.byIndex(0)), second(c.byIndex(1)),
				code, c.remove("TCP", "1"),
			}, tt.codes...)
			if escaped := strings.HasPrefix(text, "&lt;p:PortMappingList"); code == 0 && escaped != tt.quirks.RangeEscaped {
				t.Errorf("listing %q", text)
			}
		})
	}
}

func TestUPnPEndlessListing(t *testing.T) {
	t.Parallel()
	c := startIGD(t, igdQuirks{Listing: quirks.Listing{Endless: true}})
	for _, i := range []uint32{0, 1, 70000} {
		if args, code := c.byIndex(i); code != 0 || args["NewExternalPort"] != "9" {
			t.Errorf("index %d of an empty list: fault %d, %v", i, code, args)
		}
	}
	c.add()
	if args, code := c.byIndex(1 << 31); code != 0 || args["NewExternalPort"] != "8080" {
		t.Errorf("list with one entry: fault %d, %v", code, args)
	}
}

// TestUPnPRangeCrashes checks that a large listing crashes the service, and that Restart
// starts it again.
func TestUPnPRangeCrashes(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Listing: quirks.Listing{RangeCrashes: true}}}})
	c := newIGDClient(t, gw)
	for port := range uint16(129) {
		e := otherHostEntry(backends.TCP, 1000+port)
		e.Static = true
		if err := gw.AddMapping(e); err != nil {
			t.Fatal(err)
		}
	}
	listing, code := c.listRange("1", "1127")
	if n := strings.Count(listing, "<p:PortMappingEntry>"); code != 0 || n != 128 {
		t.Errorf("%d entries, fault %d", n, code)
	}
	_, code = c.listRange("1", "1128")
	checkCodes(t, []int{code}, connReset)
	if _, err := c.request("GetStatusInfo"); !isConnRefused(err) {
		t.Errorf("after the crash: %v", err)
	}
	newHost(t, gw).request("0000") // other protocols still work
	gw.Restart(gatewaytest.RestartOptions{})
	_, code = c.call("GetStatusInfo")
	_, again := c.listRange("1", "1128")
	checkCodes(t, []int{code, again}, 0, connReset)
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	_, code = c.call("GetStatusInfo")
	gw.Down("upnp")
	gw.Restart(gatewaytest.RestartOptions{}) // does not reopen the ports that Down closed
	if _, err := c.request("GetStatusInfo"); code != 0 || !isConnRefused(err) {
		t.Errorf("fault %d, then %v", code, err)
	}
}
