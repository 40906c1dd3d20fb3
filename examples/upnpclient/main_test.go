package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/gatewaytest"
)

// The example as it stands, on a gateway of the test's own, where another host
// has first another port, then that very one.
func TestMainMaps(t *testing.T) {
	for port, want := range map[uint16][]string{
		443: {
			"- WANIPConnection 2", "external address 45.45.45.1",
			"tcp 443 → 192.168.77.9:443 other", "tcp 8080 → 127.0.0.1:80 my server", "deleted: <nil>",
		},
		8080: {"- WANIPConnection 2", "external address 45.45.45.1", "somebody else has the port"},
	} {
		gw, err := gatewaytest.Start(gatewaytest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		err = gw.AddMapping(gatewaytest.Entry{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.MustParseAddr("192.168.77.9"), port),
			External: netip.AddrPortFrom(gw.External(), port), Description: "other",
		})
		if err != nil {
			t.Fatal(err)
		}
		program, err := stage.Run(main, gw.UPnP().DescriptionURL())
		if err != nil {
			t.Fatal(err)
		}
		got := program.Wait()
		t.Logf("it says %q", got)
		if diff := cmp.Diff(want, got[1:min(1+len(want), len(got))]); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		if left := gw.Table(); len(left) != 1 {
			t.Errorf("the gateway has %v", left)
		}
		_ = gw.Close()
	}
}
