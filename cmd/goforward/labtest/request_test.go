package labtest

import (
	"path/filepath"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// TestRequestsPerMapping checks that a router that grants what is requested receives one
// request for each mapping, and one more for each refresh. The request for the external
// address, which only NAT-PMP has, is sent once.
func TestRequestsPerMapping(t *testing.T) {
	t.Parallel()
	natpmpOnly, pcpOnly := lab.Router{NoPCP: true, NoUPnP: true}, lab.Router{NoNATPMP: true, NoUPnP: true}
	for _, c := range []struct {
		name      string
		router    lab.Router
		stateFile bool
		maps      string // matches requests for a mapping
		addresses string // matches requests for the external address
	}{
		{"natpmp", natpmpOnly, false, `@th,64,16 0x0002`, `@th,64,16 0x0000`},
		{"pcp", pcpOnly, false, `@th,64,16 0x0201`, ""},
		{"pcp with a state file", pcpOnly, true, `@th,64,16 0x0201`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, c.name+": one request for each mapping")
			home := lab.Home(t, c.router)
			maps := countPackets(t, home.Router, "input", "maps", `iifname "lan0" udp dport 5351 `+c.maps)
			config := config{}
			if c.stateFile {
				config.StateFile = filepath.Join(t.TempDir(), "state")
			}
			f := newForwarder(t, home.Lan, config)
			const count = 5
			var first *mapping
			for i := range uint16(count) {
				m := f.enable(tcp(8080 + i))
				if first == nil {
					first = m
				}
				if got := maps.packets(t); got != int(i)+1 {
					t.Errorf("%d requests for %d mappings", got, i+1)
				}
			}
			var addresses packetCounter
			if c.addresses != "" {
				addresses = countPackets(t, home.Router, "input", "addresses", `iifname "lan0" udp dport 5351 `+c.addresses)
			}
			f.enable(tcp(9000))
			if c.addresses != "" && addresses.packets(t) != 0 {
				t.Errorf("%d requests for the external address for another mapping", addresses.packets(t))
			}
			first.refresh()
			if got := maps.packets(t); got != count+2 {
				t.Errorf("%d requests for %d mappings and a refresh", got, count+1)
			}
		})
	}
}
