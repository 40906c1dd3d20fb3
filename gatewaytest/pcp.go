package gatewaytest

import (
	"errors"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
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
	case h.Opcode == pcp.OpAnnounce && s.quirks.NoAnnounce, s.quirks.DropOptions && len(q.Raw) > max(pcpHeaderSize, sizeWithoutOptions[h.Opcode]):
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

// respondMap creates, renews or deletes a mapping (RFC 6887, sections 11.3 and 15).
func (s *pcpServer) respondMap(q Request) ([]byte, error) {
	m, err := pcp.ParseMapRequest(q.Raw)
	if err != nil {
		return nil, err
	}
	addr, err := s.internalHost(q.Source.Addr(), m.Client, m.Options.ThirdParty)
	if err != nil {
		return nil, err
	}
	if m.InternalPort == 0 && !s.quirks.AllPorts {
		if s.quirks.WildcardMalformed {
			return nil, refusal{code: pcp.MalformedRequest}
		}
		return nil, refusal{code: pcp.UnsupportedProtocol}
	}
	internal := netip.AddrPortFrom(addr, m.InternalPort)
	r := pcp.MapResponse{
		Nonce: m.Nonce, Protocol: m.Protocol, InternalPort: m.InternalPort,
		ExternalPort: m.ExternalPort, External: m.External,
	}
	r.Options.ThirdParty = m.Options.ThirdParty
	if m.Lifetime == 0 {
		err = s.deleteMapping(transportAddr{m.Protocol, internal}, m.Nonce)
	} else {
		err = s.makeMapping(q.Source, internal, netip.AddrPort{}, m, &r)
	}
	if err != nil {
		return nil, err
	}
	r.Epoch = s.g.epoch()
	return r.MarshalBinary()
}

// deleteMapping deletes a mapping if the nonce is right (RFC 6887, section 15).
func (s *pcpServer) deleteMapping(internal transportAddr, nonce pcp.Nonce) error {
	e, err := s.g.table.deleteWithNonce(internal, nonce)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNoEntry) && s.quirks.DeleteUnknownNoResources:
		return refusal{code: pcp.NoResources}
	case errors.Is(err, errNoEntry):
		return nil
	case errors.Is(err, errOtherOwner):
		return refusal{code: pcp.NotAuthorized, lifetime: e.Remaining}
	}
	return refusal{code: pcp.NotAuthorized}
}

// makeMapping creates or renews a mapping and completes the response. If peer is valid, the
// request is a PEER request for it, which fails if the requested endpoint is not available
// (RFC 6887, section 12.3).
func (s *pcpServer) makeMapping(source, internal, peer netip.AddrPort, m pcp.MapRequest, r *pcp.MapResponse) error {
	preferFailure := m.Options.PreferFailure && !s.quirks.PreferFailureIgnored
	choice, err := s.chooseExternal(m.Protocol, internal, netip.AddrPortFrom(m.External, m.ExternalPort), preferFailure || peer.IsValid())
	if err != nil {
		return err
	}
	spec := mappingSpec{
		Entry: Entry{
			Protocol: m.Protocol, Internal: internal, External: choice.external, Remote: peer,
			Remaining: s.g.config.lifetime(m.Lifetime), Service: servicePCP,
		},
		exactPort:   choice.exactPort,
		host:        &entryHost{nonce: m.Nonce, source: source, preferFailure: preferFailure, externalAddr: choice.addr},
		ignoreNonce: s.quirks.NonceLoose,
		edit:        func(e *Entry) error { return s.applyOptions(e, m.Options) },
	}
	granted, err := s.g.table.grant(spec)
	if err != nil {
		return grantError(err, spec, granted)
	}
	r.Lifetime = spec.Remaining // not granted.Remaining, from which the clock may already have taken some time
	if granted.Static {
		r.Lifetime = backends.Forever
	}
	r.ExternalPort, r.External = granted.External.Port(), choice.addr
	r.Options = m.Options
	r.Options.PreferFailure = preferFailure
	return nil
}

// applyOptions applies the options of the request to the entry (RFC 6887, section 13.3;
// RFC 7220).
func (s *pcpServer) applyOptions(e *Entry, o pcp.Options) error {
	if o.Description != "" || o.ClearDescription {
		e.Description = o.Description
	}
	if s.quirks.FilterIgnored {
		return nil
	}
	for _, f := range o.Filters {
		if !f.Prefix.IsValid() {
			e.Filters = nil // a filter that deletes the filters before it
			continue
		}
		e.Filters = append(e.Filters, pcp.Filter{Prefix: f.Prefix.Masked(), Port: f.Port})
	}
	if len(e.Filters) > s.g.config.Quirks.PCP.MaxFilters {
		return refusal{code: pcp.ExcessiveRemotePeers}
	}
	return nil
}

// externalChoice is the external endpoint for a mapping.
type externalChoice struct {
	// external is the endpoint as the table stores it; addr is the external address
	// itself.
	external  netip.AddrPort
	addr      netip.Addr
	exactPort bool
}

// chooseExternal returns the external endpoint that the internal endpoint may have. With
// preferFailure, it fails if it cannot choose the requested endpoint.
func (s *pcpServer) chooseExternal(p backends.Protocol, internal, requested netip.AddrPort, preferFailure bool) (externalChoice, error) {
	addr, port := requested.Addr(), requested.Port()
	if addr.Is4() != internal.Addr().Is4() {
		// The standard has no result code for an address family that the server cannot
		// provide.
		return externalChoice{}, refusal{code: pcp.CannotProvideExternal}
	}
	var choice externalChoice
	if internal.Addr().Is4() {
		external, err := s.externalAddr()
		if err != nil {
			return externalChoice{}, err
		}
		choice = externalChoice{addr: external, exactPort: preferFailure && port != 0}
		if port == 0 {
			port = internal.Port()
		}
		if p == backends.SCTP { // its checksums do not permit another port
			choice.exactPort = true
			if preferFailure && port != internal.Port() {
				return externalChoice{}, refusal{code: pcp.CannotProvideExternal}
			}
			port = internal.Port()
		}
		choice.external = netip.AddrPortFrom(netip.Addr{}, port)
	} else {
		// The firewall admits packets and does not translate their addresses.
		choice = externalChoice{addr: internal.Addr(), external: internal, exactPort: true}
		if preferFailure && port != 0 && port != internal.Port() {
			return externalChoice{}, refusal{code: pcp.CannotProvideExternal}
		}
	}
	if preferFailure && !addr.IsUnspecified() && addr != choice.addr {
		return externalChoice{}, refusal{code: pcp.CannotProvideExternal}
	}
	return choice, nil
}

// externalAddr returns the external IPv4 address for mappings.
func (s *pcpServer) externalAddr() (netip.Addr, error) {
	addr := s.g.External()
	switch {
	case addr.IsUnspecified():
		return addr, refusal{code: pcp.NetworkFailure}
	case s.quirks.RefusePrivate && isPrivate(addr):
		return addr, refusal{code: pcp.NoResources, external: addr}
	}
	return addr, nil
}

// grantError returns the refusal for an error of table.grant. conflict is the
// conflicting entry, or the zero Entry.
func grantError(err error, spec mappingSpec, conflict Entry) error {
	switch {
	case errors.Is(err, errTableFull):
		return refusal{code: pcp.NoResources}
	case errors.Is(err, errOtherOwner):
		return refusal{code: pcp.NotAuthorized, lifetime: conflict.Remaining}
	case errors.Is(err, errPortTaken) && spec.Internal.Port() == 0:
		return refusal{code: pcp.UnsupportedProtocol}
	case errors.Is(err, errPortTaken):
		return refusal{code: pcp.CannotProvideExternal, lifetime: min(conflict.Remaining, longErrorLifetime)}
	}
	return err
}

// respondPeer creates or renews the entry that an outgoing packet would create, which
// admits one outside endpoint (RFC 6887, section 12.3). A client cannot delete such an
// entry.
func (s *pcpServer) respondPeer(q Request) ([]byte, error) {
	m, err := pcp.ParsePeerRequest(q.Raw)
	if err != nil {
		return nil, err
	}
	addr, err := s.internalHost(q.Source.Addr(), m.Client, m.Options.ThirdParty)
	if err != nil {
		return nil, err
	}
	internal, remote := netip.AddrPortFrom(addr, m.InternalPort), m.Remote
	if m.Protocol == 0 || m.InternalPort == 0 || remote.Port() == 0 || remote.Addr().IsUnspecified() ||
		remote.Addr().Is4() != addr.Is4() {
		return nil, refusal{code: pcp.MalformedRequest}
	}
	r := pcp.MapResponse{
		Nonce: m.Nonce, Protocol: m.Protocol, InternalPort: m.InternalPort,
		ExternalPort: m.ExternalPort, External: m.External, Options: m.Options,
	}
	if m.Lifetime == 0 {
		if e, ok := s.g.table.peerEntry(transportAddr{m.Protocol, internal}, remote); ok {
			r.Lifetime, r.ExternalPort, r.External = e.Remaining, e.External.Port(), s.externalAddrOf(e)
		}
	} else if err := s.makeMapping(q.Source, internal, remote, pcp.MapRequest{
		Lifetime: m.Lifetime, Nonce: m.Nonce, Protocol: m.Protocol, ExternalPort: m.ExternalPort, External: m.External, Options: m.Options,
	}, &r); err != nil {
		return nil, err
	}
	r.Epoch = s.g.epoch()
	return peerResponse(r, remote).MarshalBinary()
}

// peerResponse returns the response to a PEER request that has the fields of r.
func peerResponse(r pcp.MapResponse, remote netip.AddrPort) pcp.PeerResponse {
	return pcp.PeerResponse{
		Result: r.Result, Lifetime: r.Lifetime, Epoch: r.Epoch, Nonce: r.Nonce, Protocol: r.Protocol, InternalPort: r.InternalPort,
		ExternalPort: r.ExternalPort, External: r.External, Remote: remote, Options: r.Options,
	}
}

// externalAddrOf returns the external address of an entry.
func (s *pcpServer) externalAddrOf(e Entry) netip.Addr {
	if a := e.External.Addr(); a.IsValid() {
		return a
	}
	return s.g.External()
}

// UpdateMappings informs the clients of PCP mappings about the state of these mappings,
// as a server does after a change (RFC 6887, section 14.2). Each client receives the
// response that a renewal would receive now, at the source address and port of its last
// request. The response is sent quirks.PCP.UpdateCount times; the first round is sent
// before UpdateMappings returns. If a mapping was requested with PREFER_FAILURE and its
// external address has changed, UpdateMappings deletes the mapping and sends its client
// result 11.
func (g *Gateway) UpdateMappings() {
	external := g.External()
	entries := g.table.hostedEntries(func(entry hostedEntry) bool { return entry.lostAddress(external) })
	if len(entries) == 0 {
		return
	}
	g.sendSeries(&g.cancelUpdates, g.config.Quirks.PCP.UpdateCount, func() {
		for _, entry := range entries {
			if b := g.pcp.updateResponse(entry, external); b != nil {
				g.send(entry.source, b, func(s *Stats) { s.MappingUpdates++ })
			}
		}
	})
}

// lostAddress reports whether the entry has lost the external address that its owner
// requires.
func (e hostedEntry) lostAddress(external netip.Addr) bool {
	return e.preferFailure && !e.External.Addr().IsValid() && e.externalAddr != external
}

// updateResponse returns the unsolicited response for an entry.
func (s *pcpServer) updateResponse(entry hostedEntry, external netip.Addr) []byte {
	if a := entry.External.Addr(); a.IsValid() {
		external = a
	}
	m := pcp.MapResponse{
		Lifetime: entry.Remaining, Epoch: s.g.epoch(), Nonce: entry.nonce, Protocol: entry.Protocol,
		InternalPort: entry.Internal.Port(), ExternalPort: entry.External.Port(), External: external,
	}
	switch {
	case entry.lostAddress(external):
		m.Result = pcp.CannotProvideExternal
	case external.IsUnspecified():
		m.Result = pcp.NetworkFailure
	}
	if m.Result != pcp.Success {
		m.Lifetime = s.errorLifetime(refusal{code: m.Result})
	}
	if client := entry.source.Addr().WithZone(""); client != entry.Internal.Addr() {
		m.Options.ThirdParty = entry.Internal.Addr()
	}
	b, err := m.MarshalBinary()
	if entry.Remote.IsValid() {
		b, err = peerResponse(m, entry.Remote).MarshalBinary()
	}
	if err != nil {
		return nil
	}
	return b
}
