package gatewaytest

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// serviceNATPMP is the name of NAT-PMP in entries and requests.
const serviceNATPMP = "natpmp"

// natpmpServer handles NAT-PMP requests, on the gateway's table.
type natpmpServer struct {
	g          *Gateway
	quirks     quirks.NATPMP
	epochReads atomic.Uint32 // number of epochs read with EpochBack
}

// identifyNATPMP parses a datagram of version 0 into a Request.
func identifyNATPMP(raw []byte) Request {
	q := Request{Service: serviceNATPMP, Op: opOther, Raw: raw}
	if _, err := natpmp.ParseExternalAddrRequest(raw); err == nil {
		q.Op = opExternalAddr
	}
	if m, err := natpmp.ParseMapRequest(raw); err == nil {
		q.Op, q.Protocol = opMap, m.Protocol
		if m.Lifetime == 0 {
			q.Op = opUnmap
		}
	}
	return q
}

// handle handles a request, with the checks in the order of RFC 6886, section 3.5. It
// returns nil if there is no response.
func (s *natpmpServer) handle(q Request, forcedResult int) []byte {
	h, err := natpmp.ParseHeader(q.Raw)
	switch {
	case err != nil || !s.g.supports(serviceNATPMP):
		return nil
	case s.quirks.PCPOnly || s.quirks.PCPOnlyTruncated:
		return s.pcpOnlyResponse(q, h)
	case h.Version != natpmp.Version:
		return s.versionErrorResponse(h)
	case h.Opcode&natpmp.OpResponse != 0:
		return nil
	}
	switch h.Opcode {
	case natpmp.OpExternalAddr:
		return s.externalAddrResponse(forcedResult)
	case natpmp.OpMapUDP, natpmp.OpMapTCP:
		m, err := natpmp.ParseMapRequest(q.Raw)
		if err != nil {
			return nil
		}
		return s.mapResponse(q.Source.Addr(), m, natpmp.ResultCode(forcedResult))
	}
	return s.opcodeErrorResponse(q.Raw, h)
}

// externalAddrResponse returns the response to a request for the external address. It
// is also the form of announcements.
func (s *natpmpServer) externalAddrResponse(forcedResult int) []byte {
	r := natpmp.ExternalAddrResponse{Result: natpmp.ResultCode(forcedResult), Epoch: s.epoch()}
	if r.Result == natpmp.Success {
		r.Result, r.Addr = s.externalResult()
	}
	b, _ := r.MarshalBinary()
	return b
}

// externalResult returns the external address, or the result code of the error if there
// is none.
func (s *natpmpServer) externalResult() (natpmp.ResultCode, netip.Addr) {
	addr := s.g.External()
	switch {
	case s.quirks.ExternalZero:
		return natpmp.Success, netip.IPv4Unspecified()
	case addr.IsUnspecified(), s.quirks.RefusePrivate && isPrivate(addr):
		return natpmp.NetworkFailure, netip.IPv4Unspecified()
	}
	return natpmp.Success, addr
}

// mapResponse handles a mapping request and encodes the response.
func (s *natpmpServer) mapResponse(client netip.Addr, m natpmp.MapRequest, forcedResult natpmp.ResultCode) []byte {
	r := natpmp.MapResponse{
		Protocol: m.Protocol, Result: forcedResult, Epoch: s.epoch(), InternalPort: m.InternalPort,
	}
	if r.Result == natpmp.Success {
		var granted Entry // its port is 0 after a deletion
		granted, r.Result = s.mapOrUnmap(client, m)
		r.ExternalPort, r.Lifetime = granted.External.Port(), granted.Remaining
	}
	if r.Result != natpmp.Success && s.quirks.EchoErrors {
		r.ExternalPort, r.Lifetime = m.ExternalPort, m.Lifetime
	}
	if s.quirks.VPN {
		r.InternalPort = 0
	}
	if s.quirks.LowByte {
		r.InternalPort &= 0xff
		r.ExternalPort &= 0xff
	}
	if s.quirks.OwnPort && r.ExternalPort != 0 && r.Result == natpmp.Success {
		r.InternalPort = r.ExternalPort
	}
	b, _ := r.MarshalBinary() // cannot fail: the protocol comes from an opcode
	if s.quirks.ShortErrors && r.Result != natpmp.Success {
		b = b[:8]
	}
	return b
}

// mapOrUnmap creates, renews or deletes a mapping, and returns the entry if it is not
// deleted.
func (s *natpmpServer) mapOrUnmap(client netip.Addr, m natpmp.MapRequest) (Entry, natpmp.ResultCode) {
	if m.Lifetime == 0 {
		return Entry{}, s.unmap(client, m)
	}
	if result, _ := s.externalResult(); result != natpmp.Success {
		return Entry{}, result
	}
	internal, external, lifetime := m.InternalPort, m.ExternalPort, s.g.config.lifetime(m.Lifetime)
	if s.quirks.VPN {
		internal = s.vpnPort(client)
		external, lifetime = internal, time.Minute
	}
	if internal == 0 {
		return Entry{}, natpmp.NotAuthorized
	}
	granted, err := s.g.table.grant(mappingSpec{
		Entry: Entry{
			Protocol:  m.Protocol,
			Internal:  netip.AddrPortFrom(client, internal),
			External:  netip.AddrPortFrom(netip.Addr{}, external),
			Remaining: lifetime,
			Service:   serviceNATPMP,
		},
		allowSecond: s.g.config.Quirks.NATPMP.MultiplePorts,
		ignoreNonce: true,
	})
	if err != nil {
		return Entry{}, natpmp.OutOfResources
	}
	granted.Remaining = lifetime // the clock may have advanced since
	return granted, natpmp.Success
}

// unmap deletes one mapping, or all mappings of the client for the protocol if the port
// is 0. If there is no such mapping, the result is success (RFC 6886, section 3.4). A
// mapping that PCP created is kept, because a NAT-PMP request has no nonce.
func (s *natpmpServer) unmap(client netip.Addr, m natpmp.MapRequest) natpmp.ResultCode {
	if m.ExternalPort != 0 && !s.quirks.AnyDeletePort && !s.quirks.VPN {
		return natpmp.NotAuthorized
	}
	internal := netip.AddrPortFrom(client, m.InternalPort)
	if kept := s.g.table.deleteInternal(transportAddr{m.Protocol, internal}); kept {
		return natpmp.NotAuthorized
	}
	return natpmp.Success
}

// vpnPort returns the port that a client of a VPN gateway already has, or a new one.
func (s *natpmpServer) vpnPort(client netip.Addr) uint16 {
	all := s.g.table.entries()
	i := slices.IndexFunc(all, func(e Entry) bool {
		return e.Internal.Addr() == client && e.Service == serviceNATPMP
	})
	if i >= 0 {
		return all[i].External.Port()
	}
	return s.g.table.highPortForBoth()
}

// versionErrorResponse returns the response to an unknown version (RFC 6886, section
// 3.5).
func (s *natpmpServer) versionErrorResponse(h natpmp.Header) []byte {
	r := natpmp.ErrorResponse{Version: natpmp.Version, Result: natpmp.UnsupportedVersion, Epoch: s.epoch()}
	switch s.quirks.VersionError {
	case quirks.VersionErrorRFC:
	case quirks.VersionErrorOpcode:
		r.Opcode = h.Opcode | natpmp.OpResponse
	default:
		return nil
	}
	b, _ := r.MarshalBinary()
	return b
}

// opcodeErrorResponse returns the response to an unknown opcode: a copy of the request
// with the result code in it (RFC 6886, section 3.5).
func (s *natpmpServer) opcodeErrorResponse(raw []byte, h natpmp.Header) []byte {
	r := natpmp.ErrorResponse{
		Version: natpmp.Version, Opcode: h.Opcode | natpmp.OpResponse,
		Result: natpmp.UnsupportedOpcode, Epoch: s.epoch(),
	}
	b, _ := r.MarshalBinary()
	if s.quirks.ShortOpcodeError {
		return b
	}
	return append(b[:4:4], raw[min(4, len(raw)):]...)
}

// pcpOnlyResponse returns the response of a gateway that supports only PCP to a request
// of version 0.
func (s *natpmpServer) pcpOnlyResponse(q Request, h natpmp.Header) []byte {
	if h.Version != natpmp.Version || h.Opcode&natpmp.OpResponse != 0 {
		return nil
	}
	if !s.quirks.PCPOnlyTruncated {
		return s.g.pcp.errorResponse(q.Raw, refusal{code: pcp.UnsupportedVersion})
	}
	if q.Op == opMap || q.Op == opUnmap {
		return s.g.pcp.errorResponse(q.Raw, refusal{code: pcp.NotAuthorized})[:12]
	}
	return s.g.pcp.errorResponse(q.Raw, refusal{code: pcp.UnsupportedVersion})[:2]
}

// epoch returns the gateway's epoch, changed by the quirks.
func (s *natpmpServer) epoch() time.Duration {
	const lag = 1000 * time.Second
	epoch := s.g.epoch()
	switch {
	case s.quirks.EpochStuck:
		return 0
	case s.quirks.EpochBack && s.epochReads.Add(1)%2 == 1:
		return epoch + lag
	}
	return epoch
}
