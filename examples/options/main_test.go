package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/examples/internal/stage"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestMainExplains runs the unchanged example on test gateways.
func TestMainExplains(t *testing.T) {
	conflict := gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:443"), External: netip.MustParseAddrPort("45.45.45.1:443"),
	}
	for name, test := range map[string]struct {
		router  gatewaytest.Config
		prepare func(*gatewaytest.Gateway)
		want    []string
	}{
		"granted": {want: []string{"45.45.45.1:443 by natpmp"}},
		"port in use": {
			prepare: func(gw *gatewaytest.Gateway) {
				if err := gw.AddMapping(conflict); err != nil {
					t.Error(err)
				}
			},
			want: []string{"port 443 is in use: trying any other port", "45.45.45.1:8443 by natpmp"},
		},
		"double NAT": {
			router: gatewaytest.Config{External: netip.MustParseAddr("192.168.178.20")},
			want:   []string{"192.168.178.20:443 by natpmp", "but that address is private and not reachable from the internet"},
		},
		"refused": {
			router: gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{SwitchedOff: true}}}},
			prepare: func(gw *gatewaytest.Gateway) {
				gw.Inject(gatewaytest.Fault{Result: 2, Match: func(r gatewaytest.Request) bool {
					return r.Service == "natpmp" || r.Service == "pcp"
				}})
			},
			want: []string{
				"the router does not let this host open ports",
				"- natpmp: map tcp: not authorized or refused (result 2)",
				"- pcp: map: not authorized or refused (result 2), for the next 30m0s",
				`- upnp: AddPortMapping: action not authorized (error 606: "Action not authorized"): the gateway refuses: perhaps because it does not permit ports below 1024`,
				"the UPnP error code is 606",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, err := stage.Router(test.router)
			if err != nil {
				t.Fatal(err)
			}
			defer gw.Close()
			defer forward.Close()
			if test.prepare != nil {
				test.prepare(gw)
			}
			program, err := stage.Run(main)
			if err != nil {
				t.Fatal(err)
			}
			// The order of the attempts depends on how fast the protocols respond.
			got := program.Wait()
			slices.Sort(got)
			slices.Sort(test.want)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			table := slices.DeleteFunc(gw.Table(), func(e gatewaytest.Entry) bool { return strings.HasPrefix(e.Internal.String(), "127.0.0.9:") })
			if len(table) != 0 {
				t.Errorf("the gateway still has %v", table)
			}
		})
	}
}
