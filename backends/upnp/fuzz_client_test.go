package upnp

import (
	"context"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/attack"
)

// FuzzClient: whatever becomes of a device's answers, with their headers, every
// call ends in its time, and what it says was granted makes sense.
func FuzzClient(f *testing.F) {
	var gateways []*gatewaytest.Gateway
	for version := 1; version <= 2; version++ {
		gw, err := gatewaytest.Start(gatewaytest.Config{UPnP: gatewaytest.UPnP{Version: version}})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { _ = gw.Close() })
		gateways = append(gateways, gw)
	}
	for i, seed := range attack.Seeds() {
		f.Add(seed, i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, program []byte, one, permanent bool) {
		gw := gateways[1]
		if one {
			gw = gateways[0]
		}
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewSpoiler(program).Spoil})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		b, err := New(Config{URL: gw.DescriptionURL(), Timeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		b.breather = time.Millisecond
		defer b.Close()
		defer attack.Watchdog()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := backends.Request{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), External: netip.AddrPortFrom(netip.Addr{}, 8081),
			Description: "fuzz", Lifetime: time.Hour,
		}
		if permanent {
			r.Lifetime = backends.Forever
		}
		if err := attack.Converse(ctx, b, r); err != nil {
			t.Error(err)
		}
		rows := 0
		for e, err := range b.List(ctx) {
			if rows++; err != nil && ctx.Err() == nil && rows > maxEntries {
				t.Errorf("%d rows, %v, %v", rows, e, err)
			}
		}
	})
}

// FuzzRelocate: wherever an answer says that the description is, who answered is
// asked or the gateway, and by plain http.
func FuzzRelocate(f *testing.F) {
	for _, seed := range []string{
		"http://192.168.1.1:5000/rootDesc.xml", "http://192.168.1.9/", "HTTP://x:1", "http://[fe80::1%253]:80/", "http://[::1%eth0]/?a#b",
		"https://192.168.1.1/", "http://a:b@192.168.1.1/", "http://192.168.1.1:0/", "http:/x", "//x", "http://\x00/", "http://x:99999/",
		"http://192.168.1.1:80/%0d%0aX:%20y?\r\n", " http://[::ffff:192.168.1.1]:1/ ", "file:///etc/passwd",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	gateway := netip.MustParseAddr("192.168.1.1")
	f.Fuzz(func(t *testing.T, location string, stranger bool) {
		from := netip.AddrPortFrom(gateway, 1900)
		if stranger {
			from = netip.MustParseAddrPort("192.168.1.66:40000")
		}
		got, err := relocate(location, from, gateway, func(netip.Addr) bool { return true })
		if err != nil {
			return
		}
		e, err := parseEndpoint(got)
		if len(location) < maxURL/3 && err != nil {
			t.Fatalf("%q is %q: %v", location, got, err)
		}
		if u, _ := url.Parse(got); err == nil && (u.Scheme != "http" || u.User != nil || e.addr.Port() == 0 ||
			e.addr.Addr() != gateway && e.addr.Addr() != from.Addr()) {
			t.Fatalf("%q is %q", location, got)
		}
	})
}
