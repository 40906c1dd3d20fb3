package gatewaytest

import (
	"errors"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// answerMap makes, renews or deletes a mapping (RFC 6887, sections 11.3 and 15).
func (s *pcpServer) answerMap(q Request) ([]byte, error) {
	m, err := pcp.ParseMapRequest(q.Raw)
	if err != nil {
		return nil, err
	}
	addr, err := s.internal(q.Source.Addr(), m.Client, m.Options.ThirdParty)
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

// deleteMapping ends a mapping for who knows its nonce (RFC 6887, section 15).
func (s *pcpServer) deleteMapping(internal endpoint, nonce pcp.Nonce) error {
	e, err := s.g.table.revoke(internal, nonce)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNone) && s.quirks.DeleteUnknownNoResources:
		return refusal{code: pcp.NoResources}
	case errors.Is(err, errNone):
		return nil
	case errors.Is(err, errOwner):
		return refusal{code: pcp.NotAuthorized, lifetime: e.Remaining}
	}
	return refusal{code: pcp.NotAuthorized}
}

// makeMapping makes or renews a mapping and fills in the response.
func (s *pcpServer) makeMapping(source, internal netip.AddrPort, m pcp.MapRequest, r *pcp.MapResponse) error {
	insist := m.Options.PreferFailure && !s.quirks.PreferFailureIgnored
	p, err := s.place(m.Protocol, internal, netip.AddrPortFrom(m.External, m.ExternalPort), insist)
	if err != nil {
		return err
	}
	w := wish{
		Entry: Entry{
			Protocol: m.Protocol, Internal: internal, External: p.external,
			Remaining: s.g.config.lifetime(m.Lifetime), Service: servicePCP,
		},
		exact: p.exact,
		claim: &claim{secret: m.Nonce, client: source, exact: insist, external: p.addr},
		loose: s.quirks.NonceLoose,
		edit:  func(e *Entry) error { return s.applyOptions(e, m.Options) },
	}
	granted, err := s.g.table.grant(w)
	if err != nil {
		return grantError(err, w, granted)
	}
	r.Lifetime = w.Remaining // of granted, the clock may have taken some already
	if granted.Static {
		r.Lifetime = backends.Forever
	}
	r.ExternalPort, r.External = granted.External.Port(), p.addr
	r.Options = m.Options
	r.Options.PreferFailure = insist
	return nil
}

// applyOptions does what the options say of the entry (RFC 6887, section 13.3;
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
			e.Filters = nil // those of this request go on from here
			continue
		}
		e.Filters = append(e.Filters, pcp.Filter{Prefix: f.Prefix.Masked(), Port: f.Port})
	}
	if len(e.Filters) > s.g.config.Quirks.PCP.MaxFilters {
		return refusal{code: pcp.ExcessiveRemotePeers}
	}
	return nil
}

// place is where a mapping is to be outside.
type place struct {
	// external is how the table names it, and addr what the address is.
	external netip.AddrPort
	addr     netip.Addr
	exact    bool
}

// place returns where the internal endpoint may be outside. To insist is to
// refuse another place than the wish.
func (s *pcpServer) place(p backends.Protocol, internal, wish netip.AddrPort, insist bool) (place, error) {
	addr, port := wish.Addr(), wish.Port()
	if addr.Is4() != internal.Addr().Is4() {
		// The standard has no code for a family that the server cannot provide.
		return place{}, refusal{code: pcp.CannotProvideExternal}
	}
	var at place
	if internal.Addr().Is4() {
		wan, err := s.wan()
		if err != nil {
			return place{}, err
		}
		at = place{addr: wan, exact: insist && port != 0}
		if port == 0 {
			port = internal.Port()
		}
		if p == backends.SCTP { // its checksums do not bear another port
			at.exact = true
			if insist && port != internal.Port() {
				return place{}, refusal{code: pcp.CannotProvideExternal}
			}
			port = internal.Port()
		}
		at.external = netip.AddrPortFrom(netip.Addr{}, port)
	} else {
		// The firewall lets through, and translates nothing.
		at = place{addr: internal.Addr(), external: internal, exact: true}
		if insist && port != 0 && port != internal.Port() {
			return place{}, refusal{code: pcp.CannotProvideExternal}
		}
	}
	if insist && !addr.IsUnspecified() && addr != at.addr {
		return place{}, refusal{code: pcp.CannotProvideExternal}
	}
	return at, nil
}

// wan is the external IPv4 address to map at.
func (s *pcpServer) wan() (netip.Addr, error) {
	addr := s.g.External()
	switch {
	case addr.IsUnspecified():
		return addr, refusal{code: pcp.NetworkFailure}
	case s.quirks.RefusePrivate && private(addr):
		return addr, refusal{code: pcp.NoResources, external: addr}
	}
	return addr, nil
}

// grantError is the refusal for an error of table.grant, which came with the
// entry in the way.
func grantError(err error, w wish, other Entry) error {
	switch {
	case errors.Is(err, errFull):
		return refusal{code: pcp.NoResources}
	case errors.Is(err, errOwner):
		return refusal{code: pcp.NotAuthorized, lifetime: other.Remaining}
	case errors.Is(err, errTaken) && w.Internal.Port() == 0:
		return refusal{code: pcp.UnsupportedProtocol}
	case errors.Is(err, errTaken):
		return refusal{code: pcp.CannotProvideExternal, lifetime: min(other.Remaining, longError)}
	}
	return err
}

// answerPeer makes or renews what an outgoing packet would make: an entry that
// admits one outside endpoint (RFC 6887, section 12.3). It cannot be deleted.
func (s *pcpServer) answerPeer(q Request) ([]byte, error) {
	m, err := pcp.ParsePeerRequest(q.Raw)
	if err != nil {
		return nil, err
	}
	addr, err := s.internal(q.Source.Addr(), m.Client, m.Options.ThirdParty)
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
		if e, ok := s.g.table.outbound(endpoint{m.Protocol, internal}, remote); ok {
			r.Lifetime, r.ExternalPort, r.External = e.Remaining, e.External.Port(), s.outside(e)
		}
	} else if err := s.makePeer(q.Source, internal, m, &r); err != nil {
		return nil, err
	}
	r.Epoch = s.g.epoch()
	return r.MarshalBinary()
}

// makePeer makes or renews the entry and fills in the response. A wish that
// cannot be met fails (RFC 6887, section 12.3).
func (s *pcpServer) makePeer(source, internal netip.AddrPort, m pcp.PeerRequest, r *pcp.PeerResponse) error {
	p, err := s.place(m.Protocol, internal, netip.AddrPortFrom(m.External, m.ExternalPort), true)
	if err != nil {
		return err
	}
	w := wish{
		Entry: Entry{
			Protocol: m.Protocol, Internal: internal, External: p.external, Remote: m.Remote,
			Remaining: s.g.config.lifetime(m.Lifetime), Service: servicePCP,
		},
		exact: p.exact,
		claim: &claim{secret: m.Nonce, client: source, external: p.addr},
		loose: s.quirks.NonceLoose,
		edit: func(e *Entry) error {
			if m.Options.Description != "" || m.Options.ClearDescription {
				e.Description = m.Options.Description
			}
			return nil
		},
	}
	granted, err := s.g.table.grant(w)
	if err != nil {
		return grantError(err, w, granted)
	}
	r.Lifetime, r.ExternalPort, r.External = w.Remaining, granted.External.Port(), p.addr
	return nil
}

// outside is the external address of an entry.
func (s *pcpServer) outside(e Entry) netip.Addr {
	if a := e.External.Addr(); a.IsValid() {
		return a
	}
	return s.g.External()
}

// UpdateMappings tells the clients of PCP mappings how these stand, as a server
// does after a change (RFC 6887, section 14.2): each gets the response that a
// renewal would get now, at the address and port of its last request,
// quirks.PCP.UpdateCount times. The first round is sent before it returns. A mapping
// that was asked for with PREFER_FAILURE and is elsewhere now is gone, which
// its client is told with result 11.
func (g *Gateway) UpdateMappings() {
	external := g.External()
	all := g.table.claims(func(c claimed) bool { return c.lost(external) })
	if len(all) == 0 {
		return
	}
	g.series(&g.updating, g.config.Quirks.PCP.UpdateCount, func() {
		for _, c := range all {
			if b := g.pcp.update(c, external); b != nil {
				g.send(c.client, b, func(s *Stats) { s.MappingUpdates++ })
			}
		}
	})
}

// lost reports whether the entry is not where its owner insists on.
func (c claimed) lost(external netip.Addr) bool {
	return c.exact && !c.External.Addr().IsValid() && c.external != external
}

// update is the unsolicited response about an entry.
func (s *pcpServer) update(c claimed, external netip.Addr) []byte {
	result, lifetime := pcp.Success, c.Remaining
	if a := c.External.Addr(); a.IsValid() {
		external = a
	}
	var why refusal
	switch {
	case c.lost(external):
		why.code = pcp.CannotProvideExternal
	case external.IsUnspecified():
		why.code = pcp.NetworkFailure
	}
	if why.code != pcp.Success {
		result, lifetime = why.code, s.errorLifetime(why)
	}
	var options pcp.Options
	if client := c.client.Addr().WithZone(""); client != c.Internal.Addr() {
		options.ThirdParty = c.Internal.Addr()
	}
	m := pcp.MapResponse{
		Result: result, Lifetime: lifetime, Epoch: s.g.epoch(), Nonce: c.secret, Protocol: c.Protocol,
		InternalPort: c.Internal.Port(), ExternalPort: c.External.Port(), External: external, Options: options,
	}
	var b []byte
	var err error
	if c.Remote.IsValid() {
		b, err = pcp.PeerResponse{
			Result: m.Result, Lifetime: m.Lifetime, Epoch: m.Epoch, Nonce: m.Nonce, Protocol: m.Protocol,
			InternalPort: m.InternalPort, ExternalPort: m.ExternalPort, External: m.External,
			Remote: c.Remote, Options: m.Options,
		}.MarshalBinary()
	} else {
		b, err = m.MarshalBinary()
	}
	if err != nil {
		return nil
	}
	return b
}
