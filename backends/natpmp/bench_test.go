package natpmp_test

import (
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

func BenchmarkAppendMapRequest(b *testing.B) {
	buf := make([]byte, 0, 64)
	r := natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080, Lifetime: 2 * time.Hour}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.AppendBinary(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseMapResponse(b *testing.B) {
	datagram, err := natpmp.MapResponse{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080, Lifetime: time.Hour}.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := natpmp.ParseMapResponse(datagram); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClientMap measures a request and its reply, with a gateway in this
// process.
func BenchmarkClientMap(b *testing.B) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer gw.Close()
	c, err := natpmp.NewClient(natpmp.Config{Gateway: gw.Addr()})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := c.Map(b.Context(), natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080}); err != nil {
			b.Fatal(err)
		}
	}
}
