package pcp_test

import (
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// AllocsPerRun counts the allocations of the whole process: not parallel.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, pcp.MaxMessage)
	announceRequest := pcp.AnnounceRequest{Client: client4}
	announce := pcp.AnnounceResponse{Epoch: epoch}
	mapRequest := request(twoHrs, backends.TCP, 1, 2, nil)
	mapResponse := response(0, twoHrs, backends.UDP, 1, 2, nil)
	peerRequest := pcp.PeerRequest{Client: client4, Lifetime: twoHrs, Protocol: backends.UDP, InternalPort: 1, Remote: remote}
	peer := pcp.PeerResponse{Lifetime: twoHrs, Epoch: epoch, Protocol: backends.UDP, InternalPort: 1, Remote: remote}
	failure := pcp.ErrorResponse{Version: pcp.Version, Opcode: pcp.OpResponse, Result: pcp.UnsupportedVersion, Epoch: epoch}
	full := mapRequest
	full.Options = pcp.Options{ThirdParty: third, PreferFailure: true, Filters: filters, Description: "go map"}
	var (
		announceRequestBytes = vector("announce?")
		announceBytes        = vector("announce")
		mapRequestBytes      = vector("map udp")
		mapBytes             = vector("mapped for less")
		peerRequestBytes     = vector("peer?")
		peerBytes            = vector("peer")
		preferBytes          = vector("prefer failure")
		thirdBytes           = vector("third party, mapped")
		failureBytes         = vector("version 3, refused")
	)
	var err error
	for name, f := range map[string]func(){
		"AnnounceRequest.AppendBinary":     func() { _, err = announceRequest.AppendBinary(buf) },
		"AnnounceResponse.AppendBinary":    func() { _, err = announce.AppendBinary(buf) },
		"MapRequest.AppendBinary":          func() { _, err = mapRequest.AppendBinary(buf) },
		"MapRequest.AppendBinary, options": func() { _, err = full.AppendBinary(buf) },
		"MapResponse.AppendBinary":         func() { _, err = mapResponse.AppendBinary(buf) },
		"PeerRequest.AppendBinary":         func() { _, err = peerRequest.AppendBinary(buf) },
		"PeerResponse.AppendBinary":        func() { _, err = peer.AppendBinary(buf) },
		"ErrorResponse.AppendBinary":       func() { _, err = failure.AppendBinary(buf) },
		"AppendErrorResponse":              func() { _, err = pcp.AppendErrorResponse(buf, mapRequestBytes, 3, soon, epoch) },
		"ParseHeader":                      func() { _, err = pcp.ParseHeader(mapBytes) },
		"ParseAnnounceRequest":             func() { _, err = pcp.ParseAnnounceRequest(announceRequestBytes) },
		"ParseAnnounceResponse":            func() { _, err = pcp.ParseAnnounceResponse(announceBytes) },
		"ParseMapRequest":                  func() { _, err = pcp.ParseMapRequest(mapRequestBytes) },
		"ParseMapRequest, prefer failure":  func() { _, err = pcp.ParseMapRequest(preferBytes) },
		"ParseMapResponse":                 func() { _, err = pcp.ParseMapResponse(mapBytes) },
		"ParseMapResponse, third party":    func() { _, err = pcp.ParseMapResponse(thirdBytes) },
		"ParsePeerRequest":                 func() { _, err = pcp.ParsePeerRequest(peerRequestBytes) },
		"ParsePeerResponse":                func() { _, err = pcp.ParsePeerResponse(peerBytes) },
		"ParseErrorResponse":               func() { _, err = pcp.ParseErrorResponse(failureBytes) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v; want none", name, n, err)
		}
	}
}
