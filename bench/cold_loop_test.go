package bench

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// BenchmarkCold makes a Forwarder, enables and closes, over and over in a warm
// process: for profiles. What a first time takes is TestBench's matter.
func BenchmarkCold(b *testing.B) {
	b.Run("natpmp", func(b *testing.B) {
		loopCold(b, &forward.Config{Gateway: netip.AddrPortFrom(natpmpGateway(b), 0)})
	})
	b.Run("upnp", func(b *testing.B) {
		gw := startGateway(b, gatewaytest.Config{Protocols: []string{"upnp"}})
		gw.Down("natpmp", "pcp")
		loopCold(b, &forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}})
		for name, n := range gw.Stats().Requests {
			b.ReportMetric(float64(n)/float64(b.N), strings.ReplaceAll(name, " ", "-")+"/op")
		}
	})
}

func loopCold(b *testing.B, config *forward.Config) {
	b.ReportAllocs()
	for b.Loop() {
		f, err := forward.New(config)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Enable(b.Context(), forward.UDP(warmPort)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		b.StartTimer()
	}
}
