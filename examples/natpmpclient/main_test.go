package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/gatewaytest"
)

// TestMainMaps runs the unchanged example on test gateways.
func TestMainMaps(t *testing.T) {
	for name, test := range map[string]struct {
		router gatewaytest.Config
		want   []string
	}{
		"granted": {gatewaytest.Config{}, []string{
			"external address 45.45.45.1 of a gateway that has been up for 1h0m0s",
			"external port 80 is mapped to local port 8080 for 1h0m0s",
			"deleted: <nil>",
		}},
		"PCP only": {
			gatewaytest.Config{Protocols: []string{"pcp", "upnp"}},
			[]string{"the gateway supports protocol version 2 only: 2 is PCP"},
		},
	} {
		test.router.ManualClock, test.router.Uptime = true, time.Hour
		gw, err := gatewaytest.Start(test.router)
		if err != nil {
			t.Fatal(err)
		}
		program, err := stage.Run(main, gw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, program.Wait()); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", name, diff)
		}
		if table := gw.Table(); len(table) != 0 {
			t.Errorf("%s: the gateway still has %v", name, table)
		}
		_ = gw.Close()
	}
}
