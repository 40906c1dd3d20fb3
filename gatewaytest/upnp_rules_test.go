package gatewaytest_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

type rules = quirks.Rules

func TestUPnPRules(t *testing.T) {
	t.Parallel()
	codes := func(some ...int) []int { return some }
	for name, tt := range map[string]struct {
		config gatewaytest.Config
		do     func(control) []int
		want   []int
		left   int // entries, without those of the test
	}{
		"re-add refused": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{NoReAdd: 718}}}}, func(c control) []int {
			return codes(c.add(), c.add(), c.remove("TCP", "8080"), c.add())
		}, codes(0, 718, 0, 0), 1},
		"one port": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{OnePort: true}}}}, func(c control) []int {
			return codes(
				c.add(), c.add(), c.add("ExternalPort", "1"), c.add("ExternalPort", "1", "InternalPort", "1"),
				c.add("InternalPort", "81"), c.add("ExternalPort", "2", "InternalPort", "81"), c.add("ExternalPort", "2"),
			)
		}, codes(0, 0, 718, 0, 0, 718, 0), 3},
		"other mechanism": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{OtherMechanism: 729}}}}, func(c control) []int {
			other := c
			other.from = "127.0.0.9"
			return codes(c.add("ExternalPort", "7"), c.add(), other.add("InternalClient", other.from))
		}, codes(729, 0, 718), 1},
		"same port": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{SamePort: true}}}}, func(c control) []int {
			return codes(c.add(), c.add("ExternalPort", "80"))
		}, codes(724, 0), 1},
		"low ports": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{LowPorts: 606}}}}, func(c control) []int {
			return codes(c.add("ExternalPort", "1023"), c.add("ExternalPort", "1024"), second(c.anyPort("ExternalPort", "0")))
		}, codes(606, 0, 0), 2},
		"low ports, another code": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{LowPorts: 718}}}}, func(c control) []int {
			return codes(c.add("ExternalPort", "1023"))
		}, codes(718), 0},
		"source needed": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{SourceNeeded: true}}}}, func(c control) []int {
			return codes(c.add(), c.add("RemoteHost", "45.45.45.2"))
		}, codes(715, 0), 1},
		"any source only": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{AnySourceOnly: true}}}}, func(c control) []int {
			return codes(c.add("RemoteHost", "45.45.45.2"), c.add())
		}, codes(726, 0), 1},
		"any port only": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{AnyPortOnly: true}}}}, func(c control) []int {
			return codes(c.add(), c.add("ExternalPort", "0"))
		}, codes(727, 716), 0},
		"full": {gatewaytest.Config{TableLimit: 2}, func(c control) []int {
			return codes(c.add(), c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 0, 728), 1},
		"full, version 1": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igd{Version: 1}}}, func(c control) []int {
			return codes(c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 501), 1},
		"full, another code": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igd{Rules: rules{Full: 402}}}}, func(c control) []int {
			return codes(c.add(), c.add("ExternalPort", "1"))
		}, codes(0, 402), 1},
		"full, silent": {gatewaytest.Config{TableLimit: 2, Quirks: quirks.Quirks{UPnP: igd{Rules: rules{FullSilent: true}}}}, func(c control) []int {
			return codes(c.add(), c.add("ExternalPort", "1"), second(c.lookup("TCP", "1")))
		}, codes(0, 0, 714), 1},
		"unlisted": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{Unlisted: true}}}}, func(c control) []int {
			port, code := c.anyPort()
			if port != "8080" {
				t.Errorf("any: %s", port)
			}
			return codes(c.add(), code, second(c.lookup("TCP", "8080")))
		}, codes(0, 0, 714), 0},
		"listed client": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{ListedClient: netip.MustParseAddr("127.0.0.77")}}}}, func(c control) []int {
			code := c.add()
			if args, _ := c.lookup("TCP", "8080"); args["NewInternalClient"] != "127.0.0.77" {
				t.Errorf("listed %v", args)
			}
			return codes(code, c.remove("TCP", "8080"))
		}, codes(0, 606), 1},
		"private": {gatewaytest.Config{External: netip.MustParseAddr("100.64.0.2"), Quirks: quirks.Quirks{UPnP: igd{Rules: rules{RefusePrivate: true}}}}, func(c control) []int {
			if args, _ := c.call("GetExternalIPAddress"); args["NewExternalIPAddress"] != "" {
				t.Errorf("external %v", args)
			}
			if args, _ := c.call("GetStatusInfo"); args["NewConnectionStatus"] != "Connected" {
				t.Errorf("status %v", args)
			}
			return codes(c.add(), second(c.anyPort()))
		}, codes(501, 501), 0},
		"private, all the same": {gatewaytest.Config{External: netip.MustParseAddr("100.64.0.2")}, func(c control) []int {
			return codes(c.add())
		}, codes(0), 1},
		"switched off": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{SwitchedOff: true}}}}, func(c control) []int {
			_, manage := c.call("DeletePortMappingRange", "NewStartPort", "1", "NewEndPort", "9", "NewProtocol", "TCP", "NewManage", "1")
			return codes(c.add(), second(c.anyPort()), c.remove("TCP", "7"), manage, second(c.lookup("TCP", "7")), second(c.index(0)))
		}, codes(606, 606, 606, 606, 0, 0), 0},
		"other clients": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{AnyClient: true}}}, func(c control) []int {
			return codes(c.add("InternalClient", "127.0.0.9"), c.add(), c.remove("TCP", "8080"), c.remove("TCP", "7"))
		}, codes(0, 718, 0, 0), -1},
		"other clients, version 1": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Version: 1}}}, func(c control) []int {
			return codes(c.add("InternalClient", "127.0.0.9"))
		}, codes(718), 0},
		"no AddAny": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{NoAddAny: true}}}}, func(c control) []int {
			return codes(second(c.anyPort()), c.add())
		}, codes(401, 0), 1},
		"AddAny resets": {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Rules: rules{AddAnyResets: true}}}}, func(c control) []int {
			return codes(second(c.anyPort()), c.add())
		}, codes(reset, 0), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.config.ManualClock = true
			gw := start(t, tt.config)
			if err := gw.AddMapping(taken(backends.TCP, 7)); err != nil {
				t.Fatal(err)
			}
			wantCodes(t, tt.do(newControl(t, gw)), tt.want...)
			if n := len(gw.Table()) - 1; n != tt.left {
				t.Errorf("%d entries, want %d: %v", n, tt.left, gw.Table())
			}
		})
	}
}

func second[T, U any](_ T, v U) U { return v }

func TestUPnPNoTraffic(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Rules: rules{NoTraffic: true}})
	port := strconv.Itoa(int(serve(t, "tcp4", "127.0.0.1:0")))
	wantCodes(t, []int{c.add("InternalPort", port), second(c.lookup("TCP", "8080"))}, 0, 0)
	reaches(t, c.gw, "45.45.45.2:7000", "45.45.45.1:8080", false)
}

func TestUPnPIdle(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Rules: rules{IdleAfter: 10 * time.Minute, IdleAbove: 1}})
	port := strconv.Itoa(int(serve(t, "tcp4", "127.0.0.1:0")))
	if err := c.gw.AddMapping(taken(backends.TCP, 7)); err != nil {
		t.Fatal(err)
	}
	wantCodes(t, []int{c.add("InternalPort", port), c.add("ExternalPort", "1", "LeaseDuration", "0")}, 0, 0)
	c.gw.Advance(6 * time.Minute)
	reaches(t, c.gw, "45.45.45.2:7000", "45.45.45.1:8080", true)
	c.gw.Advance(6 * time.Minute)
	wantCodes(t, []int{second(c.lookup("TCP", "1")), second(c.lookup("TCP", "8080"))}, 714, 0)
	if !c.gw.RemoveMapping(backends.TCP, 7) {
		t.Error("what others made is gone")
	}
	c.gw.Advance(20 * time.Minute)
	only(t, c.gw) // too few to be cleaned
}

func TestUPnPListing(t *testing.T) {
	t.Parallel()
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		quirks listing
		codes  []int // looking up what is there, and what is not; index 0, 1; the range; deleting what is not there
	}{
		"none":                {listing{}, []int{0, 714, 0, 713, 0, 714}},
		"no look-up":          {listing{NoSpecific: true}, []int{401, 401, 0, 713, 0, 714}},
		"absent is 402":       {listing{Absent: 402}, []int{0, 402, 0, 713, 0, 714}},
		"absent is 501":       {listing{Absent: 501}, []int{0, 501, 0, 713, 0, 714}},
		"ends with 899":       {listing{EndOfList: 899}, []int{0, 714, 0, 899, 0, 714}},
		"ends with 714":       {listing{EndOfList: 714}, []int{0, 714, 0, 714, 0, 714}},
		"endless":             {listing{Endless: true}, []int{0, 714, 0, 0, 0, 714}},
		"no index":            {listing{IndexFails: 501}, []int{0, 714, 501, 501, 0, 714}},
		"no range":            {listing{NoRange: true}, []int{0, 714, 0, 713, 401, 714}},
		"range resets":        {listing{RangeResets: true}, []int{0, 714, 0, 713, reset, 714}},
		"range, survived":     {listing{RangeCrashes: true}, []int{0, 714, 0, 713, 0, 714}},
		"range, as text":      {listing{RangeEscaped: true}, []int{0, 714, 0, 713, 0, 714}},
		"no look-up, no list": {listing{NoSpecific: true, IndexFails: 402, NoRange: true}, []int{401, 401, 402, 402, 401, 714}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := controlled(t, igd{Listing: tt.quirks})
			wantCodes(t, []int{c.add()}, 0)
			text, code := c.listRange("1", "65535")
			wantCodes(t, []int{
				second(c.lookup("TCP", "8080")), second(c.lookup("TCP", "1")), second(c.index(0)), second(c.index(1)),
				code, c.remove("TCP", "1"),
			}, tt.codes...)
			if escaped := strings.HasPrefix(text, "&lt;p:PortMappingList"); code == 0 && escaped != tt.quirks.RangeEscaped {
				t.Errorf("listing %q", text)
			}
		})
	}
}

func TestUPnPEndless(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Listing: quirks.Listing{Endless: true}})
	for _, i := range []uint32{0, 1, 70000} {
		if args, code := c.index(i); code != 0 || args["NewExternalPort"] != "9" {
			t.Errorf("index %d of nothing: fault %d, %v", i, code, args)
		}
	}
	c.add()
	if args, code := c.index(1 << 31); code != 0 || args["NewExternalPort"] != "8080" {
		t.Errorf("index of one: fault %d, %v", code, args)
	}
}

// A large listing kills the service, which Restart brings back.
func TestUPnPRangeCrashes(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igd{Listing: quirks.Listing{RangeCrashes: true}}}})
	c := newControl(t, gw)
	for port := range uint16(129) {
		e := taken(backends.TCP, 1000+port)
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
	wantCodes(t, []int{code}, reset)
	if _, err := c.ask("GetStatusInfo"); !refusedBy(err) {
		t.Errorf("after the crash: %v", err)
	}
	newHost(t, gw).ask("0000") // other protocols live on
	gw.Restart(gatewaytest.RestartOptions{})
	_, code = c.call("GetStatusInfo")
	_, again := c.listRange("1", "1128")
	wantCodes(t, []int{code, again}, 0, reset)
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	_, code = c.call("GetStatusInfo")
	gw.DownUPnP()
	gw.Restart(gatewaytest.RestartOptions{}) // somebody wanted it down
	if _, err := c.ask("GetStatusInfo"); code != 0 || !refusedBy(err) {
		t.Errorf("fault %d, then %v", code, err)
	}
}

func TestUPnPStatusQuirks(t *testing.T) {
	t.Parallel()
	type status = quirks.Status
	for _, told := range []string{"", "0.0.0.0", " 203.0.113.7 ", "unknown", "10.0.0.2"} {
		c := controlled(t, igd{Status: status{External: func(netip.Addr) string { return told }}})
		if args, code := c.call("GetExternalIPAddress"); code != 0 || args["NewExternalIPAddress"] != told {
			t.Errorf("told %v, fault %d, want %q", args, code, told)
		}
		wantCodes(t, []int{c.add()}, 0)
	}
	for _, state := range []string{"Up", "Disconnected"} {
		c := controlled(t, igd{Status: status{Connection: state}})
		if args, code := c.call("GetStatusInfo"); code != 0 || args["NewConnectionStatus"] != state {
			t.Errorf("told %v, fault %d, want %q", args, code, state)
		}
	}
	_, code := controlled(t, igd{Status: status{Unsupported: true}}).call("GetStatusInfo")
	wantCodes(t, []int{code}, 401)
}

// Of several WAN devices and connections one is connected, and only that maps.
func TestUPnPConnections(t *testing.T) {
	t.Parallel()
	c := controlled(t, igd{Description: quirks.Description{WANDevices: 3, Connected: 1, Connections: quirks.ConnectionBoth}})
	for i := range 3 {
		for _, kind := range []string{"IP", "PPP"} {
			c.path = fmt.Sprintf("/ctl/%d/WAN%sConnection", i, kind)
			c.service = "urn:schemas-upnp-org:service:WAN" + kind + "Connection:1"
			state, _ := c.call("GetStatusInfo")
			addr, _ := c.call("GetExternalIPAddress")
			got := fmt.Sprint(state["NewConnectionStatus"], addr["NewExternalIPAddress"], c.add(), second(c.index(0)), c.remove("TCP", "8080"))
			want := fmt.Sprint("Disconnected", "", 501, 713, 714)
			if i == 1 && kind == "IP" {
				want = fmt.Sprint("Connected", "45.45.45.1", 0, 0, 0)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", c.path, got, want)
			}
		}
	}
	// One's type at the other's address is no service.
	c.path, c.service = "/ctl/1/WANPPPConnection", ipConnection1
	wantCodes(t, []int{c.add()}, 401)
}

// refusedBy reports whether nobody listens.
func refusedBy(err error) bool {
	return isErrno(err, syscall.ECONNREFUSED) || isErrno(err, syscall.Errno(10061))
}
