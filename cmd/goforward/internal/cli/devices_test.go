package cli

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"testing"

	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// Of several devices, each has a line, and the reason why it is used or not.
func TestDevices(t *testing.T) {
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
		a.openers = slices.DeleteFunc(slices.Clone(openers), func(o opener) bool { return o.name != upnp.Name })
		a.openers[0].open = func(a *app, w way) (speaker, error) {
			b, err := upnp.New(upnp.Config{Gateway: w.gateway.Addr(), SSDP: ssdp, Notify: w.notify, Wait: searchTime, Logger: a.logger()})
			if err != nil {
				return speaker{}, err
			}
			return speaker{Backend: b, ask: probe(b.Probe), devices: b.Gateways}, nil
		}
	}
	const want = `USED  GATEWAY    INTERFACE  LOCAL  METRIC  UPnP  EXTERNAL    TOOK
      127.0.0.1  -          -      -       yes   45.45.45.1  -

USED  UPNP DEVICE                  ADDRESS    SERVICE             STATUS        EXTERNAL     WHY
*     Test router (gatewaytest 1)  127.0.0.1  WANIPConnection:2   Connected     45.45.45.1   connected, with a public address, and this host's way out
      Test router (gatewaytest 1)  127.0.0.1  WANIPConnection:1   Connected     192.168.7.2  connected, without a public address, and this host's way out
      Test router (gatewaytest 1)  127.0.0.1  WANPPPConnection:1  Disconnected  -            not connected: Disconnected, and this host's way out
`
	if got := run(t, several, "gateways", "-g", "127.0.0.1"); got != (ran{exitDone, want, ""}) {
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
			t.Errorf("%+v", d)
		}
	}
	if n := len(row.Protocols.UPnP.Devices); n != len(used) {
		t.Errorf("%d devices", n)
	}
}

// What a device says of itself is said once, and may be missing.
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
			t.Errorf("%+v: %q", tt.device, got)
		}
	}
}
