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
	r.Epoch = s.g.Epoch()
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
		e.Filters = append(e.Filters, Filter{Prefix: f.Prefix.Masked(), Port: f.Port})
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
