package dialback

import (
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// Version is the version of the protocol of a reflector.
const Version = 1

// The paths of a reflector.
const (
	// ProbePath takes a Request by POST. The reply has a Line for each announcement and for each
	// result, in JSON, one on each line (NDJSON). After an error, it has a Refusal instead.
	ProbePath = "/v1/probe"
	// AddressPath replies to GET with a Seen.
	AddressPath = "/v1/ip"
)

// MaxProbes is the number of probes in one Request, at most.
const MaxProbes = 8

// Request asks a reflector to connect to ports of the host that sends it. The address is never a
// parameter: the reflector takes the source of the request.
type Request struct {
	Version int     `json:"v"`
	Probes  []Probe `json:"probes"`
}

// Probe is one port.
type Probe struct {
	// Protocol is "tcp" or "udp".
	Protocol backends.Protocol `json:"protocol"`
	Port     uint16            `json:"port"`
	// Nonce and Want are those of Call. Without the token of the operator, UDP needs both.
	Nonce string `json:"nonce,omitempty"`
	Want  string `json:"want,omitempty"`
}

// Line is one line of the reply: an announcement, or a result.
type Line struct {
	// State is StateDialing before the reflector connects, and StateDone after it.
	State    string            `json:"state"`
	Protocol backends.Protocol `json:"protocol"`
	Port     uint16            `json:"port"`
	// Address is the source of the request: the address to which the reflector connects.
	Address netip.Addr `json:"address"`
	// From is the source from which it connects, in an announcement.
	From netip.AddrPort `json:"from,omitzero"`
	// Result is the result: Echoed or Silent, or Failed without an announcement. With the token of
	// the operator it is an Outcome, or Failed.
	Result Outcome `json:"result,omitempty"`
	// RTT is the time until the answer arrived, in milliseconds. It is 0 unless Result is Echoed
	// or the token was given.
	RTT float64 `json:"rtt_ms,omitempty"`
	// Error is why Result is Failed, for the operator.
	Error string `json:"error,omitempty"`
}

// The states of a Line.
const (
	StateDialing = "dialing"
	StateDone    = "done"
)

// The results that only a reflector uses.
const (
	// Silent means that no answer with the right nonce arrived. A stranger does not learn more.
	Silent Outcome = "silent"
	// Failed means that the reflector could not make the call.
	Failed Outcome = "failed"
)

// Seen is the reply to a request for AddressPath.
type Seen struct {
	// Address is the source of the request.
	Address netip.Addr `json:"address"`
}

// Refusal is the reply to a request that is not carried out. The HTTP status says why: 400 for
// an invalid request, 401 for a wrong token, 403 for an address or port to which the reflector
// does not connect, 413 for a request that is too long, 429 after too many requests, and 503 if
// the reflector is busy.
type Refusal struct {
	Error string `json:"error"`
}
