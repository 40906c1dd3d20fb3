package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/natforward/goforward/backends"
)

// jsonEndpoint is an address and port in JSON. An unknown address is "".
type jsonEndpoint struct {
	IP   netip.Addr `json:"ip"`
	Port uint16     `json:"port"`
}

func jsonEndpointOf(ap netip.AddrPort) jsonEndpoint { return jsonEndpoint{ap.Addr(), ap.Port()} }

// mappingRecord is an event of a mapping in JSON.
type mappingRecord struct {
	Event    string            `json:"event"`
	Time     string            `json:"time,omitempty"`
	Protocol backends.Protocol `json:"protocol"`
	External jsonEndpoint      `json:"external,omitzero"`
	Internal jsonEndpoint      `json:"internal"`
	Remote   jsonEndpoint      `json:"remote,omitzero"`
	Backend  string            `json:"backend"`
	Gateway  string            `json:"gateway"`
	// Lifetime and Expires are omitted if the mapping is permanent.
	Lifetime    int64           `json:"lifetime_s,omitempty"`
	Expires     string          `json:"expires,omitempty"`
	Scope       *backends.Scope `json:"scope,omitempty"`
	Description string          `json:"description,omitempty"`
	Enabled     *bool           `json:"enabled,omitempty"`
	Ours        *bool           `json:"ours,omitempty"`
	Previous    jsonEndpoint    `json:"previous,omitzero"`
	Reason      string          `json:"reason,omitempty"`
	Kind        string          `json:"kind,omitempty"`     // kind of a failed attempt, as for the exit codes
	Next        string          `json:"next_try,omitempty"` // if an attempt failed or the mapping is lost
}

// printRecords prints one line for each mapping. r has the fields that are the same for all.
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

// jsonTime formats a time for JSON. The zero time is "".
func jsonTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// printJSON prints a value as one line of JSON.
func (a *app) printJSON(v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil { // encoding our own types cannot fail
		panic(err)
	}
	_, _ = io.WriteString(a.stdout, escapeUnprintable(b.String(), func(r rune) string {
		var s strings.Builder
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&s, `\u%04x`, u)
		}
		return s.String()
	}))
}
