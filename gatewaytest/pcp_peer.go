package gatewaytest

import (
	"net/netip"

	"github.com/natforward/goforward/backends/pcp"
)

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
