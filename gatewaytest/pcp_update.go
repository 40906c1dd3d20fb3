package gatewaytest

import (
	"net/netip"

	"github.com/natforward/goforward/backends/pcp"
)

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
		Result: result, Lifetime: lifetime, Epoch: s.g.Epoch(), Nonce: c.secret, Protocol: c.Protocol,
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
