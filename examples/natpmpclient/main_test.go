package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/gatewaytest"
)

// The example as it stands, on gateways of the test's own.
func TestMainMaps(t *testing.T) {
	for name, test := range map[string]struct {
		router gatewaytest.Config
		want   []string
	}{
		"granted": {gatewaytest.Config{}, []string{
			"external address 45.45.45.1 of a gateway that is up for 1h0m0s",
			"port 80 leads to 8080 here for 1h0m0s",
			"deleted: <nil>",
		}},
		"PCP only": {
			gatewaytest.Config{Protocols: []string{"pcp", "upnp"}},
			[]string{"the gateway speaks version 2 of the port's protocols: 2 is PCP"},
		},
	} {
		test.router.ManualClock = true
		gw, err := gatewaytest.Start(test.router)
		if err != nil {
			t.Fatal(err)
		}
		gw.Advance(time.Hour)
		program, err := stage.Run(main, gw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, program.Wait()); diff != "" {
			t.Errorf("%s: output (-want +got):\n%s", name, diff)
		}
		if left := gw.Table(); len(left) != 0 {
			t.Errorf("%s: the gateway has %v", name, left)
		}
		_ = gw.Close()
	}
}
