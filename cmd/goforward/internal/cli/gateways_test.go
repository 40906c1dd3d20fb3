package cli

import (
	"encoding/json"
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// hosts makes the app use these routes. Requests to the gateways of the routes go to the given
// test gateways.
func hosts(all, used []discover.Gateway, at map[netip.Addr]*gatewaytest.Gateway) func(*app) {
	return func(a *app) {
		a.defaultRoutes = func() ([]discover.Gateway, []discover.Gateway, error) { return all, used, nil }
		a.protocols = slices.Clone(protocols)
		for i, p := range protocols {
			a.protocols[i].open = func(a *app, t target) (probedBackend, error) {
				gw := at[t.gateway.Addr()]
				noReceiver := netip.MustParseAddrPort("127.0.0.1:0")
				return p.open(a, target{gateway: gw.Addr(), igdURL: gw.UPnP().DescriptionURL(), ssdp: noReceiver})
			}
		}
	}
}

func TestGateways(t *testing.T) {
	t.Parallel()
	good, silent := router(t, gatewaytest.Config{}), router(t, gatewaytest.Config{})
	onlyPCP := gatewaytest.Config{Protocols: []string{"pcp"}}
	pcp, pcp6 := router(t, onlyPCP), router(t, onlyPCP)
	natpmp := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	silent.Inject(gatewaytest.Fault{Drop: true})
	first := discover.Gateway{Addr: netip.MustParseAddr("192.168.1.1"), Local: netip.MustParseAddr("192.168.1.7"), Interface: "eth0", Index: 2, Metric: 100}
	all := []discover.Gateway{
		first,
		{Addr: netip.MustParseAddr("10.0.0.1"), Local: netip.MustParseAddr("10.0.0.7"), Interface: "wlan0", Index: 3, Metric: 600},
		{Addr: netip.MustParseAddr("10.9.0.1"), Local: netip.MustParseAddr("10.9.0.7"), Interface: "x\x1b[2J\t", Index: 4, Metric: 700},
		{Addr: netip.MustParseAddr("10.7.0.1"), Local: netip.MustParseAddr("10.7.0.7"), Interface: "eth1", Index: 6, Metric: 800},
		{Local: netip.MustParseAddr("10.8.0.2"), Interface: "tun0", Index: 5},
		{Addr: netip.MustParseAddr("fe80::1%eth0"), Local: netip.MustParseAddr("2a00::7"), Interface: "eth0", Index: 2, Metric: 1024},
	}
	host := hosts(all, all[:1], map[netip.Addr]*gatewaytest.Gateway{all[0].Addr: good, all[1].Addr: silent, all[2].Addr: pcp, all[3].Addr: natpmp, all[5].Addr: pcp6})

	got := run(t, host, "gateways", "--timeout", "1500ms")
	const want = `USED  GATEWAY        INTERFACE     LOCAL        METRIC  NAT-PMP  PCP     UPnP    EXTERNAL    TOOK
*     192.168.1.1    eth0          192.168.1.7  100     yes      yes     yes     45.45.45.1  TIME
      10.0.0.1       wlan0         10.0.0.7     600     silent   silent  silent  -           -
      10.9.0.1       x\x1b[2J\x09  10.9.0.7     700     no       yes     silent  -           TIME
      10.7.0.1       eth1          10.7.0.7     800     yes      no      silent  45.45.45.1  TIME
      (no next hop)  tun0          10.8.0.2     -       -        -       -       -           -
      fe80::1%eth0   eth0          2a00::7      1024    -        yes     silent  -           TIME

USED  UPNP DEVICE                  ADDRESS    SERVICE            STATUS     EXTERNAL    WHY
*     Test router (gatewaytest 1)  127.0.0.1  WANIPConnection:2  Connected  45.45.45.1  connected, with a public address, and this host's default gateway
`
	table := regexp.MustCompile(`[0-9.]+[mµ]?s\n`).ReplaceAllString(got.stdout, "TIME\n")
	if table != want || got.code != exitDone {
		t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	for _, reason := range []string{
		"10.0.0.1: NAT-PMP: waiting for", "10.0.0.1: PCP: waiting for",
		"10.9.0.1: NAT-PMP: the gateway supports PCP", "10.7.0.1: PCP: the gateway supports NAT-PMP",
	} {
		if !strings.Contains(got.stderr, reason) {
			t.Errorf("no %q in\n%s", reason, got.stderr)
		}
	}
	// The command must not create a mapping, not even briefly. To a gateway that does not
	// respond, the PCP probe also sends the deletion of a mapping that does not exist.
	for _, gw := range []*gatewaytest.Gateway{good, silent, pcp, pcp6, natpmp} {
		for _, r := range gw.Requests() {
			if r.Op == "map" || r.Op == "unmap" && gw != silent || r.Op == "peer" {
				t.Errorf("the gateway received %s", r.Name())
			}
		}
		if n := len(gw.Table()); n != 0 {
			t.Errorf("the gateway has %d mappings, want 0", n)
		}
	}

	got = run(t, host, "gateways", "--interface", "eth0", "--json")
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	var row struct {
		Gateway, Local string
		Used           bool
		Protocols      map[string]struct{ Speaks, External string }
	}
	if err := json.Unmarshal([]byte(lines[0]), &row); err != nil || len(lines) != 2 || row.Gateway != "192.168.1.1" || !row.Used ||
		row.Protocols["natpmp"].Speaks != "yes" || row.Protocols["natpmp"].External != "45.45.45.1" ||
		len(row.Protocols) != 3 || row.Protocols["upnp"].Speaks != "yes" || row.Protocols["upnp"].External != "45.45.45.1" || row.Protocols["pcp"].Speaks != "yes" || row.Protocols["pcp"].External != "" {
		t.Errorf("%v: %+v\n%s", err, row, got.stdout)
	}

	// The named gateway has one of the default routes.
	got = run(t, host, "gateways", "-g", "192.168.1.1")
	if !strings.Contains(got.stdout, "eth0") || strings.Count(got.stdout, "\n") != 5 {
		t.Errorf("unexpected output:\n%s%s", got.stdout, got.stderr)
	}
}

func TestGatewaysWithoutRoutes(t *testing.T) {
	t.Parallel()
	if got := run(t, hosts(nil, nil, nil), "gateways"); got.code != exitNoGateway {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	got := run(t, func(a *app) {
		a.defaultRoutes = func() ([]discover.Gateway, []discover.Gateway, error) { return nil, nil, errors.ErrUnsupported }
	}, "gateways")
	if got.code != exitOther {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}

// TestGatewaysUPnPDevices checks that each device has a line with the reason why it is used or
// not.
func TestGatewaysUPnPDevices(t *testing.T) {
	t.Parallel()
	var ssdp []netip.AddrPort
	for _, config := range []gatewaytest.Config{
		{External: netip.MustParseAddr("0.0.0.0"), Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionPPP}}}},
		{External: netip.MustParseAddr("192.168.7.2"), Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: 1}}},
		{},
	} {
		ssdp = append(ssdp, router(t, config).SSDP())
	}
	several := func(a *app) {
		a.protocols = slices.DeleteFunc(slices.Clone(protocols), func(p protocol) bool { return p.name != upnp.Name })
		a.protocols[0].open = func(a *app, t target) (probedBackend, error) {
			b, err := upnp.New(upnp.Config{Gateway: t.gateway.Addr(), SSDP: ssdp, Notify: t.notify, Wait: searchTimeout, Logger: a.logger()})
			if err != nil {
				return probedBackend{}, err
			}
			return probedBackend{Backend: b, probe: probeWithoutAddr(b.Probe), devices: b.Gateways}, nil
		}
	}
	const want = `USED  GATEWAY    INTERFACE  LOCAL  METRIC  UPnP  EXTERNAL    TOOK
      127.0.0.1  -          -      -       yes   45.45.45.1  -

USED  UPNP DEVICE                  ADDRESS    SERVICE             STATUS        EXTERNAL     WHY
*     Test router (gatewaytest 1)  127.0.0.1  WANIPConnection:2   Connected     45.45.45.1   connected, with a public address, and this host's default gateway
      Test router (gatewaytest 1)  127.0.0.1  WANIPConnection:1   Connected     192.168.7.2  connected, without a public address, and this host's default gateway
      Test router (gatewaytest 1)  127.0.0.1  WANPPPConnection:1  Disconnected  -            not connected: Disconnected, and this host's default gateway
`
	if got := run(t, several, "gateways", "-g", "127.0.0.1"); got != (cmdResult{exitDone, want, ""}) {
		t.Errorf("exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	got := run(t, several, "gateways", "-g", "127.0.0.1", "--json")
	var row struct {
		Protocols struct {
			UPnP struct{ Devices []deviceRecord }
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &row); err != nil {
		t.Fatalf("%v: %s%s", err, got.stdout, got.stderr)
	}
	used := []bool{true, false, false}
	for i, d := range row.Protocols.UPnP.Devices {
		if d.Used != used[i] || d.Reason == "" || !regexp.MustCompile(`^http://127\.0\.0\.1:\d+/`).MatchString(d.URL) {
			t.Errorf("unexpected device: %+v", d)
		}
	}
	if n := len(row.Protocols.UPnP.Devices); n != len(used) {
		t.Errorf("%d devices, want %d", n, len(used))
	}
}

// TestOtherDevice checks that a UPnP device of another host does not make a named gateway
// support UPnP, and that no command uses it.
func TestOtherDevice(t *testing.T) {
	t.Parallel()
	device := router(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	named := []string{"-g", "127.0.0.2:1", "--ssdp", device.SSDP().String(), "--notify", "127.0.0.1:0"}
	got := run(t, nil, append(named, "gateways", "--backend", "upnp")...)
	if got.code != exitDone || !regexp.MustCompile(`(?m)^ +127\.0\.0\.2:1 .* no +- +-$`).MatchString(got.stdout) ||
		!regexp.MustCompile(`(?m)^  +Test router \(gatewaytest 1\) +127\.0\.0\.1 `).MatchString(got.stdout) ||
		!strings.Contains(got.stderr, "127.0.0.2:1: UPnP: not supported: the device at 127.0.0.1 answered; it is not this gateway's\n") {
		t.Errorf("unexpected result: %+v", got)
	}
	for _, args := range [][]string{{"map", "8080"}, {"list"}, {"unmap", "8080"}} {
		if got := run(t, nil, append(slices.Concat(named, args), "--timeout", "300ms")...); got.code == exitDone {
			t.Errorf("%v: %+v; want a failure", args, got)
		}
	}
	if n := len(device.Table()); n != 0 {
		t.Errorf("the device has %d mappings, want 0", n)
	}

	// The named gateway supports NAT-PMP.
	other, err := gatewaytest.Start(gatewaytest.Config{Protocols: []string{"upnp"}, Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	if err != nil {
		t.Skip("this host has only one loopback address: ", err)
	}
	t.Cleanup(func() { _ = other.Close() })
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	for _, only := range []bool{true, false} {
		got = run(t, func(a *app) {
			a.protocols = slices.Clone(protocols)
			for i, p := range protocols {
				a.protocols[i].open = func(a *app, target target) (probedBackend, error) {
					if !target.only {
						t.Error("the devices of other hosts are not excluded")
					}
					target.only = only
					return p.open(a, target)
				}
			}
		}, "list", "-g", gw.Addr().String(), "--ssdp", other.SSDP().String(), "--notify", "127.0.0.1:0", "--announce", "127.0.0.1:0", "--timeout", "1s")
		if got.code != exitOther || got.stdout != "" || !strings.Contains(got.stderr, "127.0.0.2") {
			t.Errorf("only the gateway's device: %v: %+v; want no table", only, got)
		}
	}
}

// TestDefaultGatewayDevice checks which device is marked as used, and that the commands report
// a device that is not the gateway.
func TestDefaultGatewayDevice(t *testing.T) {
	t.Parallel()
	other, yes, no := upnp.Gateway{}, protocolStatus{status: "yes"}, protocolStatus{status: "no"}
	for name, tt := range map[string]struct {
		row    gatewayRow
		device upnp.Gateway
		want   bool
	}{
		"its own":              {gatewayRow{isNamed: true}, upnp.Gateway{Default: true}, true},
		"no protocol":          {gatewayRow{statuses: []protocolStatus{no}}, other, true},
		"no protocol, named":   {gatewayRow{statuses: []protocolStatus{no}, isNamed: true}, other, false},
		"another protocol":     {gatewayRow{statuses: []protocolStatus{yes, no}}, other, false},
		"another, and its own": {gatewayRow{statuses: []protocolStatus{yes, yes}}, upnp.Gateway{Default: true}, true},
	} {
		if got := tt.row.uses(tt.device); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}

	gw := router(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	for _, gateway := range []string{"127.0.0.1", "127.0.0.2"} {
		via := func(a *app) {
			a.currentRoute = func(*settings) route { return route{gateway: netip.AddrPortFrom(netip.MustParseAddr(gateway), 0)} }
		}
		for _, command := range [][]string{{"map", "8080"}, {"list"}, {"unmap", "8080"}} {
			got := run(t, via, append(command, "-g", gw.Addr().String(), "--ssdp", gw.SSDP().String(), "--notify", "127.0.0.1:0")...)
			const remark = "The UPnP device at 127.0.0.1 is used. It is not the gateway, 127.0.0.2"
			if got.code != exitDone || strings.Contains(got.stderr, remark) != (gateway == "127.0.0.2") {
				t.Errorf("gateway %s: %v: %+v", gateway, command, got)
			}
		}
	}
}

// TestUnmapUnusableDevice checks that unmap reports a UPnP device that exists but cannot be
// asked, because it may have the mapping.
func TestUnmapUnusableDevice(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{Status: 404}}}})
	got := run(t, nil, "unmap", "8080", "-g", gw.Addr().String(), "--ssdp", gw.SSDP().String(), "--notify", "127.0.0.1:0", "--announce", "127.0.0.1:0")
	if got.code != exitDone || !strings.Contains(got.stderr, "UPnP was not used: ") || !strings.Contains(got.stderr, "404") {
		t.Errorf("unexpected result: %+v", got)
	}
}

// TestUnmapUnknownHost checks that unmap does not delete an entry if the device cannot list its
// table and reports the entry without the address of its host.
func TestUnmapUnknownHost(t *testing.T) {
	t.Parallel()
	for _, twoSessions := range []bool{false, true} {
		testUnmapUnknownHost(t, twoSessions)
	}
}

func testUnmapUnknownHost(t *testing.T, twoSessions bool) {
	t.Helper()
	gw := router(t, gatewaytest.Config{Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		AnyClient:   true,
		Description: quirks.Description{TwoSessions: twoSessions},
		Listing:     quirks.Listing{IndexFails: 401, NoRange: true, Client: func(netip.Addr) string { return "tv.lan" }},
	}}})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.1.9:8080"), External: netip.AddrPortFrom(gw.External(), 8080), Service: "upnp",
	}); err != nil {
		t.Fatal(err)
	}
	got := run(t, nil, "unmap", "8080", "-g", gw.Addr().String(), "--igd-url", gw.UPnP().DescriptionURL(), "--notify", "127.0.0.1:0", "--announce", "127.0.0.1:0")
	if got.code != exitOther || len(gw.Table()) != 1 {
		t.Errorf("unexpected result: %+v; the gateway has %v", got, gw.Table())
	}
}

// TestPinholeOverIPv4 checks that unmap closes a pinhole through a device that supports UPnP
// only over IPv4.
func TestPinholeOverIPv4(t *testing.T) {
	t.Parallel()
	gw, err := gatewaytest.Start(gatewaytest.Config{
		Protocols: []string{"upnp"}, Listen6: netip.MustParseAddrPort("[::1]:0"),
		Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{IPv4Only: true}}},
	})
	if err != nil {
		t.Skip("this host has no IPv6: ", err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	for i, command := range []string{"map", "unmap"} {
		got := run(t, nil, command, "8080", "-6", "-g", gw.Addr6().String(), "--igd-url", gw.UPnP().DescriptionURL(), "--notify", "127.0.0.1:0", "--announce", "[::1]:0")
		if got.code != exitDone || len(gw.Table()) != 1-i {
			t.Errorf("%s: %+v; the gateway has %v", command, got, gw.Table())
		}
	}
}

// TestDeviceText checks that the text does not repeat parts of the name, and that parts may be
// missing.
func TestDeviceText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		device upnp.Device
		want   string
	}{
		{upnp.Device{FriendlyName: "Kitchen", Model: "R7000", ModelNumber: "v2"}, "Kitchen (R7000 v2)"},
		{upnp.Device{FriendlyName: "R7000", Model: "R7000", ModelNumber: "R7000"}, "R7000"},
		{upnp.Device{FriendlyName: "R7000 router", Model: "R7000"}, "R7000 router"},
		{upnp.Device{FriendlyName: "MiniUPnPd", ModelNumber: "1"}, "MiniUPnPd (1)"},
		{upnp.Device{Model: "R7000"}, "R7000"},
		{upnp.Device{}, ""},
	} {
		if got := deviceText(&tt.device); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.device, got, tt.want)
		}
	}
}
