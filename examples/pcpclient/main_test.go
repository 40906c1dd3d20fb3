package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/gatewaytest"
)

// TestMainMaps runs the unchanged example on test gateways. One of them rejects the filter.
func TestMainMaps(t *testing.T) {
	granted := []string{
		"45.45.45.1:51820 is mapped to local port 51820 for 1h0m0s",
		"renewed for 1h0m0s <nil>",
		"deleted: <nil>",
	}
	for name, test := range map[string]struct {
		fault gatewaytest.Fault
		want  []string
	}{
		"granted": {gatewaytest.Fault{Result: 2, Match: func(gatewaytest.Request) bool { return false }}, granted},
		"no filters": {
			gatewaytest.Fault{Result: 5, Times: 1},
			append([]string{"retrying without the filter: pcp: map: unsupported option (result 5), for the next 30m0s"}, granted...),
		},
		"refused": {gatewaytest.Fault{Result: 2}, []string{"pcp: map: not authorized or refused (result 2), for the next 30m0s"}},
	} {
		gw, err := gatewaytest.Start(gatewaytest.Config{ManualClock: true})
		if err != nil {
			t.Fatal(err)
		}
		gw.Inject(test.fault)
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
