package lab_test

import (
	"slices"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// TestCapture checks which packets of both directions a capture records.
func TestCapture(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: the packets of an interface are recorded")
	home := lab.Home(t, lab.Router{IPv6: true})
	lan, wan := home.Lan.Capture(t, "eth0"), home.Router.Capture(t, "wan0")
	for _, address := range []string{"45.45.45.2:7", "[2a0c:7777:2::2]:7"} {
		for _, network := range []string{"tcp", "udp"} {
			echo := home.Wan.Echo(t, network, address)
			lan.Reset()
			wan.Reset()
			if _, err := home.Lan.Reach(echo, echo.Addr); err != nil {
				t.Fatal(err)
			}
			protocol := byte(lab.ProtocolTCP)
			if network == "udp" {
				protocol = lab.ProtocolUDP
			}
			for name, c := range map[string]*lab.Capture{"lan": lan, "wan": wan} {
				packets := c.Packets()
				sent := slices.IndexFunc(packets, func(p lab.Packet) bool {
					return p.Out && p.Protocol == protocol && p.To == echo.Addr && len(p.Payload) > 0
				})
				received := slices.IndexFunc(packets, func(p lab.Packet) bool {
					return !p.Out && p.Protocol == protocol && p.From == echo.Addr && len(p.Payload) > 0
				})
				if sent < 0 || received < 0 {
					t.Errorf("%s to %v: the capture of the %s has no packet of a direction: %+v", network, address, name, packets)
				}
				if network == "udp" && len(packets) != 2 {
					t.Errorf("%s to %v: the capture of the %s has %d packets, want 2: %+v", network, address, name, len(packets), packets)
				}
			}
		}
	}
	if lan.Reset(); len(lan.Packets()) != 0 {
		t.Errorf("after Reset: %+v", lan.Packets())
	}
}
