package cli

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// endpoint is an address and port in JSON. An address that is not known is "".
type jsonEndpoint struct {
	IP   netip.Addr `json:"ip"`
	Port uint16     `json:"port"`
}

func jsonEndpointOf(ap netip.AddrPort) jsonEndpoint { return jsonEndpoint{ap.Addr(), ap.Port()} }

// record is what happened to a mapping, in JSON.
type mappingRecord struct {
	Event    string            `json:"event"`
	Time     string            `json:"time,omitempty"`
	Protocol backends.Protocol `json:"protocol"`
	External jsonEndpoint          `json:"external,omitzero"`
	Internal jsonEndpoint          `json:"internal"`
	Remote   jsonEndpoint          `json:"remote,omitzero"`
	Backend  string            `json:"backend"`
	Gateway  string            `json:"gateway"`
	// Lifetime and Expires are left out where the mapping has no end.
	Lifetime    int64           `json:"lifetime_s,omitempty"`
	Expires     string          `json:"expires,omitempty"`
	Scope       *backends.Scope `json:"scope,omitempty"`
	Description string          `json:"description,omitempty"`
	Enabled     *bool           `json:"enabled,omitempty"`
	Ours        *bool           `json:"ours,omitempty"`
	Previous    jsonEndpoint        `json:"previous,omitzero"`
	Reason      string          `json:"reason,omitempty"`
	Kind        string          `json:"kind,omitempty"`     // of a failed attempt, as the exit codes have it
	Next        string          `json:"next_try,omitempty"` // where it failed, or is lost
}

// records prints a line for each mapping, over what is common to them.
func (a *app) printRecords(event string, ms []backends.Mapping, r mappingRecord) {
	for _, m := range ms {
		a.printJSON(r.forMapping(event, m))
	}
}

func (r mappingRecord) forMapping(event string, m backends.Mapping) mappingRecord {
	r.Event = event
	r.Protocol = m.Protocol
	r.Internal = jsonEndpointOf(m.Internal)
	r.Remote = jsonEndpointOf(m.Remote)
	r.Backend = m.Backend
	r.Gateway = endpointText(m.Gateway)
	if m.External != (netip.AddrPort{}) {
		scope := backends.ScopeOf(m.External.Addr())
		r.External, r.Scope = jsonEndpointOf(m.External), &scope
	}
	if m.Lifetime != backends.Forever {
		r.Lifetime = int64(m.Lifetime / time.Second)
	}
	if expires := m.Expires(); !m.Granted.IsZero() && !expires.IsZero() {
		r.Expires = expires.UTC().Format(time.RFC3339)
	}
	return r
}
