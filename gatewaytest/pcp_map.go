package gatewaytest

import (
	"errors"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

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
		err = s.deleteMapping(endpoint{m.Protocol, internal}, m.Nonce)
	} else {
		err = s.makeMapping(q.Source, internal, m, &r)
	}
	if err != nil {
		return nil, err
	}
	r.Epoch = s.g.epoch()
	return r.MarshalBinary()
}

// deleteMapping deletes a mapping if the nonce is right (RFC 6887, section 15).
func (s *pcpServer) deleteMapping(internal endpoint, nonce pcp.Nonce) error {
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

// makeMapping creates or renews a mapping and completes the response.
func (s *pcpServer) makeMapping(source, internal netip.AddrPort, m pcp.MapRequest, r *pcp.MapResponse) error {
	preferFailure := m.Options.PreferFailure && !s.quirks.PreferFailureIgnored
	choice, err := s.chooseExternal(m.Protocol, internal, netip.AddrPortFrom(m.External, m.ExternalPort), preferFailure)
	if err != nil {
		return err
	}
	spec := mappingSpec{
		Entry: Entry{
			Protocol: m.Protocol, Internal: internal, External: choice.external,
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
	r := pcp.PeerResponse{
		Nonce: m.Nonce, Protocol: m.Protocol, InternalPort: m.InternalPort,
		ExternalPort: m.ExternalPort, External: m.External, Remote: remote, Options: m.Options,
	}
	if m.Lifetime == 0 {
		if e, ok := s.g.table.peerEntry(endpoint{m.Protocol, internal}, remote); ok {
			r.Lifetime, r.ExternalPort, r.External = e.Remaining, e.External.Port(), s.externalAddrOf(e)
		}
	} else if err := s.makePeer(q.Source, internal, m, &r); err != nil {
		return nil, err
	}
	r.Epoch = s.g.epoch()
	return r.MarshalBinary()
}

// makePeer creates or renews the entry and completes the response. It fails if the
// requested endpoint is not available (RFC 6887, section 12.3).
func (s *pcpServer) makePeer(source, internal netip.AddrPort, m pcp.PeerRequest, r *pcp.PeerResponse) error {
	choice, err := s.chooseExternal(m.Protocol, internal, netip.AddrPortFrom(m.External, m.ExternalPort), true)
	if err != nil {
		return err
	}
	spec := mappingSpec{
		Entry: Entry{
			Protocol: m.Protocol, Internal: internal, External: choice.external, Remote: m.Remote,
			Remaining: s.g.config.lifetime(m.Lifetime), Service: servicePCP,
		},
		exactPort:   choice.exactPort,
		host:        &entryHost{nonce: m.Nonce, source: source, externalAddr: choice.addr},
		ignoreNonce: s.quirks.NonceLoose,
		edit: func(e *Entry) error {
			if m.Options.Description != "" || m.Options.ClearDescription {
				e.Description = m.Options.Description
			}
			return nil
		},
	}
	granted, err := s.g.table.grant(spec)
	if err != nil {
		return grantError(err, spec, granted)
	}
	r.Lifetime, r.ExternalPort, r.External = spec.Remaining, granted.External.Port(), choice.addr
	return nil
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
	result, lifetime := pcp.Success, entry.Remaining
	if a := entry.External.Addr(); a.IsValid() {
		external = a
	}
	var reason refusal
	switch {
	case entry.lostAddress(external):
		reason.code = pcp.CannotProvideExternal
	case external.IsUnspecified():
		reason.code = pcp.NetworkFailure
	}
	if reason.code != pcp.Success {
		result, lifetime = reason.code, s.errorLifetime(reason)
	}
	var options pcp.Options
	if client := entry.source.Addr().WithZone(""); client != entry.Internal.Addr() {
		options.ThirdParty = entry.Internal.Addr()
	}
	m := pcp.MapResponse{
		Result: result, Lifetime: lifetime, Epoch: s.g.epoch(), Nonce: entry.nonce, Protocol: entry.Protocol,
		InternalPort: entry.Internal.Port(), ExternalPort: entry.External.Port(), External: external, Options: options,
	}
	var b []byte
	var err error
	if entry.Remote.IsValid() {
		b, err = pcp.PeerResponse{
			Result: m.Result, Lifetime: m.Lifetime, Epoch: m.Epoch, Nonce: m.Nonce, Protocol: m.Protocol,
			InternalPort: m.InternalPort, ExternalPort: m.ExternalPort, External: m.External,
			Remote: entry.Remote, Options: m.Options,
		}.MarshalBinary()
	} else {
		b, err = m.MarshalBinary()
	}
	if err != nil {
		return nil
	}
	return b
}
