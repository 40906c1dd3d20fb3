package cli

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// endpoint is an address and port in JSON. An address that is not known is "".
type endpoint struct {
	IP   netip.Addr `json:"ip"`
	Port uint16     `json:"port"`
}

func endpointOf(ap netip.AddrPort) endpoint { return endpoint{ap.Addr(), ap.Port()} }

// record is what happened to a mapping, in JSON.
type record struct {
	Event    string            `json:"event"`
	Time     string            `json:"time,omitempty"`
	Protocol backends.Protocol `json:"protocol"`
	External endpoint          `json:"external,omitzero"`
	Internal endpoint          `json:"internal"`
	Remote   endpoint          `json:"remote,omitzero"`
	Backend  string            `json:"backend"`
	Gateway  string            `json:"gateway"`
	// Lifetime and Expires are left out where the mapping has no end.
	Lifetime    int64           `json:"lifetime_s,omitempty"`
	Expires     string          `json:"expires,omitempty"`
	Scope       *backends.Scope `json:"scope,omitempty"`
	Description string          `json:"description,omitempty"`
	Enabled     *bool           `json:"enabled,omitempty"`
	Ours        *bool           `json:"ours,omitempty"`
	Previous    endpoint        `json:"previous,omitzero"`
	Reason      string          `json:"reason,omitempty"`
	Kind        string          `json:"kind,omitempty"`     // of a failed attempt, as the exit codes have it
	Next        string          `json:"next_try,omitempty"` // where it failed, or is lost
}

// records prints a line for each mapping, over what is common to them.
func (a *app) records(event string, ms []backends.Mapping, r record) {
	for _, m := range ms {
		a.object(r.of(event, m))
	}
}

func (r record) of(event string, m backends.Mapping) record {
	r.Event = event
	r.Protocol = m.Protocol
	r.Internal = endpointOf(m.Internal)
	r.Remote = endpointOf(m.Remote)
	r.Backend = m.Backend
	r.Gateway = endpointText(m.Gateway)
	if m.External != (netip.AddrPort{}) {
		scope := backends.ScopeOf(m.External.Addr())
		r.External, r.Scope = endpointOf(m.External), &scope
	}
	if m.Lifetime != backends.Forever {
		r.Lifetime = int64(m.Lifetime / time.Second)
	}
	if expires := m.Expires(); !m.Granted.IsZero() && !expires.IsZero() {
		r.Expires = expires.UTC().Format(time.RFC3339)
	}
	return r
}
