package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/gatewaytest"
)

// TestMainMaps runs the unchanged example on a test gateway. Another host has mapped another
// port in the first case, and the same port in the second.
func TestMainMaps(t *testing.T) {
	for port, want := range map[uint16][]string{
		443: {
			"- WANIPConnection 2", "external address 45.45.45.1",
			"tcp 443 → 192.168.77.9:443 other", "tcp 8080 → 127.0.0.1:80 my server", "deleted: <nil>",
		},
		8080: {"- WANIPConnection 2", "external address 45.45.45.1", "another host has mapped the port"},
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
		t.Logf("the program printed %q", got)
		if diff := cmp.Diff(want, got[1:min(1+len(want), len(got))]); diff != "" {
			t.Errorf("output (-want +got):\n%s", diff)
		}
		if table := gw.Table(); len(table) != 1 {
			t.Errorf("the gateway has %v", table)
		}
		_ = gw.Close()
	}
}
