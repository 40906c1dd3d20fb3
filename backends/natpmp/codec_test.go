package natpmp_test

import (
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// AllocsPerRun counts the allocations of the whole process: not parallel.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, 64)
	addrRequest := natpmp.ExternalAddrRequest{}
	addr := natpmp.ExternalAddrResponse{Epoch: epoch, Addr: external}
	mapRequest := natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 1, ExternalPort: 2, Lifetime: twoHrs}
	mapResponse := natpmp.MapResponse{Protocol: backends.UDP, InternalPort: 1, ExternalPort: 2, Lifetime: twoHrs}
	failure := natpmp.ErrorResponse{Result: natpmp.UnsupportedVersion, Epoch: epoch}
	var (
		addrRequestBytes = unhex("0000")
		addrBytes        = unhex("0080 0000 000004d2 cb007107")
		mapRequestBytes  = unhex("0001 0000 1ae1 1ae1 00001c20")
		mapBytes         = unhex("0081 0000 000004d2 1ae1 1ae2 00000e10")
		failureBytes     = unhex("0000 0001 000004d2")
	)
	var err error
	for name, f := range map[string]func(){
		"ExternalAddrRequest.AppendBinary":  func() { _, err = addrRequest.AppendBinary(buf) },
		"ExternalAddrResponse.AppendBinary": func() { _, err = addr.AppendBinary(buf) },
		"MapRequest.AppendBinary":           func() { _, err = mapRequest.AppendBinary(buf) },
		"MapResponse.AppendBinary":          func() { _, err = mapResponse.AppendBinary(buf) },
		"ErrorResponse.AppendBinary":        func() { _, err = failure.AppendBinary(buf) },
		"ParseHeader":                       func() { _, err = natpmp.ParseHeader(mapBytes) },
		"ParseExternalAddrRequest":          func() { _, err = natpmp.ParseExternalAddrRequest(addrRequestBytes) },
		"ParseExternalAddrResponse":         func() { _, err = natpmp.ParseExternalAddrResponse(addrBytes) },
		"ParseMapRequest":                   func() { _, err = natpmp.ParseMapRequest(mapRequestBytes) },
		"ParseMapResponse":                  func() { _, err = natpmp.ParseMapResponse(mapBytes) },
		"ParseErrorResponse":                func() { _, err = natpmp.ParseErrorResponse(failureBytes) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v; want none", name, n, err)
		}
	}
}
