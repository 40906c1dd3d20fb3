package gatewaytest

import (
	"errors"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// servicePCP is the name of PCP in entries and requests.
const servicePCP = "pcp"

// The sizes of PCP messages without options (RFC 6887, sections 7.2, 11.1 and 12.1).
const (
	pcpHeaderSize = 24
	pcpMapSize    = 60
	pcpPeerSize   = 80
)

// sizeWithoutOptions maps the opcodes whose messages can have options to the sizes of
// these messages without options.
var sizeWithoutOptions = map[pcp.Opcode]int{pcp.OpMap: pcpMapSize, pcp.OpPeer: pcpPeerSize}

// pcpServer handles PCP requests, on the gateway's table.
type pcpServer struct {
	g      *Gateway
	quirks quirks.PCP
}

// identifyPCP parses a datagram of a version other than 0 into a Request.
func identifyPCP(raw []byte) Request {
	q := Request{Service: servicePCP, Op: opOther, Raw: raw}
	if _, err := pcp.ParseAnnounceRequest(raw); err == nil {
		q.Op = opAnnounce
	}
	if m, err := pcp.ParseMapRequest(raw); err == nil {
		q.Op, q.Protocol = opMap, m.Protocol
		if m.Lifetime == 0 {
			q.Op = opUnmap
		}
	}
	if m, err := pcp.ParsePeerRequest(raw); err == nil {
		q.Op, q.Protocol = opPeer, m.Protocol
	}
	return q
}

// handle handles a request, with the checks in the order of RFC 6887, section 8.2. It
// returns nil if there is no response.
func (s *pcpServer) handle(q Request, forcedResult int) []byte {
	h, err := pcp.ParseHeader(q.Raw)
	switch {
	case err != nil || h.Opcode&pcp.OpResponse != 0:
		return nil
	case h.Version != pcp.Version || s.quirks.VersionOne:
		return s.errorResponse(q.Raw, refusal{code: pcp.UnsupportedVersion})
	case len(q.Raw) < pcpHeaderSize:
		return nil
	case forcedResult != 0:
		return s.errorResponse(q.Raw, refusal{code: pcp.ResultCode(forcedResult)})
	case h.Opcode == pcp.OpAnnounce && s.quirks.NoAnnounce:
		return nil
	}
	reply, err := s.perform(q, h.Opcode)
	if err != nil {
		return s.errorResponse(q.Raw, err)
	}
	if size := sizeWithoutOptions[h.Opcode]; s.quirks.OptionsEchoed && size != 0 {
		reply = append(reply[:size:size], q.Raw[size:]...)
	}
	return reply
}

// perform executes the request and encodes the response.
func (s *pcpServer) perform(q Request, op pcp.Opcode) ([]byte, error) {
	switch {
	case op == pcp.OpMap:
		return s.respondMap(q)
	case op == pcp.OpPeer && !s.quirks.NoPeer:
		return s.respondPeer(q)
	case op == pcp.OpAnnounce && !s.quirks.AnnounceUnsupported:
		return s.respondAnnounce(q)
	}
	if _, err := pcp.ParseAnnounceRequest(q.Raw); err != nil && op != pcp.OpAnnounce {
		return nil, err // unsupported opcode, or an error that is detected before the opcode is examined
	}
	return nil, refusal{code: pcp.UnsupportedOpcode}
}

// respondAnnounce responds to an ANNOUNCE request.
func (s *pcpServer) respondAnnounce(q Request) ([]byte, error) {
	a, err := pcp.ParseAnnounceRequest(q.Raw)
	if err != nil {
		return nil, err
	}
	if _, err := s.internalHost(q.Source.Addr(), a.Client, netip.Addr{}); err != nil {
		return nil, err
	}
	return pcp.AnnounceResponse{Epoch: s.g.epoch()}.MarshalBinary()
}

// internalHost returns the host that a request is for: its sender, or the third party
// that it names.
func (s *pcpServer) internalHost(source, client, thirdParty netip.Addr) (netip.Addr, error) {
	source = source.WithZone("")
	switch {
	case s.quirks.NAT || client != source:
		return netip.Addr{}, refusal{code: pcp.AddressMismatch}
	case !thirdParty.IsValid():
		return source, nil
	case !s.quirks.ThirdParty:
		return netip.Addr{}, refusal{code: pcp.UnsupportedOption}
	case thirdParty.IsUnspecified() || thirdParty.IsMulticast():
		return netip.Addr{}, refusal{code: pcp.MalformedRequest}
	}
	return thirdParty, nil
}

// The default lifetimes of errors (RFC 6887, section 7.4).
const (
	longErrorLifetime  = 30 * time.Minute
	shortErrorLifetime = 30 * time.Second
)

// refusal is the reason for an error response.
type refusal struct {
	code pcp.ResultCode
	// lifetime is the time for which the reason lasts; 0 means the default of the code.
	lifetime time.Duration
	// external, if valid, is written to the field in which a success response has the
	// external address.
	external netip.Addr
}

func (r refusal) Error() string { return "gatewaytest: " + r.code.String() }

// errorResponse encodes an error of perform. It returns nil if there is no response.
func (s *pcpServer) errorResponse(raw []byte, err error) []byte {
	var r refusal
	var requestErr *pcp.RequestError
	switch {
	case errors.As(err, &requestErr):
		r.code = requestErr.Code
	case !errors.As(err, &r):
		return nil // the packet is not a request
	}
	b, err := pcp.AppendErrorResponse(nil, raw, r.code, s.errorLifetime(r), s.g.epoch())
	if err != nil {
		return nil
	}
	if s.quirks.VersionOne {
		b[0] = 1
	}
	if r.external.IsValid() && len(b) >= pcpMapSize {
		a16 := r.external.As16()
		copy(b[pcpMapSize-16:pcpMapSize], a16[:])
	}
	return b
}

// errorLifetime returns the lifetime in the error response.
func (s *pcpServer) errorLifetime(r refusal) time.Duration {
	switch r.code {
	case pcp.NetworkFailure, pcp.NoResources, pcp.UserExceededQuota:
		return shortErrorLifetime
	}
	switch {
	case s.quirks.ErrorLifetimeZero:
		return 0
	case r.lifetime != 0:
		return r.lifetime
	}
	return longErrorLifetime
}
