package reach

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/catch"
)

// Level says how far connections to a port are proven to get. A higher level includes the
// lower ones.
type Level uint8

// The levels.
const (
	// LevelNone means that nothing is proven.
	LevelNone Level = iota
	// LevelListening means that a socket of this host waits for connections or datagrams at
	// the internal port.
	LevelListening
	// LevelLAN means that a connection from the local network arrived at the internal port, so
	// the firewall of this host admits it. The firewall may still block the internet.
	LevelLAN
	// LevelRouter means that a connection to the external port arrived, so the router forwards
	// the port. The provider may still block it.
	LevelRouter
	// LevelInternet means that a connection from the internet arrived.
	LevelInternet
)

// String returns the name of the level in lower case.
func (l Level) String() string {
	if l > LevelInternet {
		return fmt.Sprintf("level %d", uint8(l))
	}
	return [...]string{"none", "listening", "lan", "router", "internet"}[l]
}

// MarshalText returns the name of the level.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Verdict is what a measurement shows.
type Verdict uint8

// The verdicts.
const (
	// Unknown means that the measurement shows neither. It is no sign of a fault.
	Unknown Verdict = iota
	// Reachable means that a connection arrived.
	Reachable
	// Unreachable means that a connection should have arrived and did not, twice.
	Unreachable
)

// String returns the name of the verdict in lower case.
func (v Verdict) String() string {
	if v > Unreachable {
		return fmt.Sprintf("verdict %d", uint8(v))
	}
	return [...]string{"unknown", "reachable", "unreachable"}[v]
}

// MarshalText returns the name of the verdict.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Evidence is what one measurement shows.
type Evidence struct {
	// Method is the name of the prober, such as "router" or "path:wwan0", or "listening" or
	// "visit".
	Method string
	// Protocol and External are the port that was measured. The address is the one of the Target.
	// But if a helper reached the port, and the gateway's address is not public or not known, it
	// is the one that the helper saw.
	Protocol backends.Protocol
	External netip.AddrPort
	// Verdict is Reachable if something arrived, Unreachable if it did not arrive although it
	// should have, and otherwise Unknown.
	Verdict Verdict
	// Level is the level that the measurement proves if Verdict is Reachable, and tests
	// otherwise.
	Level Level
	// Inferred means that the measurement used another port of this host than the internal
	// one, because another program has that. Such evidence neither proves the level nor makes
	// a Result Unreachable.
	Inferred bool
	// From and To are the source of what arrived, and the address and port at which it
	// arrived. They are zero values if nothing arrived.
	From, To netip.AddrPort
	// At is the time at which the measurement ended, or at which the visit took place.
	At time.Time
	// RTT is the time from the request to the arrival, or 0.
	RTT time.Duration
	// Detail is one sentence for people, without a full stop.
	Detail string
	// Err is why Verdict is Unknown, or nil.
	Err error
}

// Result is the conclusion from all evidence about a port.
type Result struct {
	// Verdict is Reachable if a connection from the internet was observed by this host, and
	// Unreachable if no connection can get in: either a measurement failed twice, or no
	// program listens. Otherwise it is Unknown.
	Verdict Verdict
	// Proven is the highest level that is proven. If no program listens on the port, a socket
	// of this package took its place: Verdict is then Unreachable, and Proven says how far the
	// path to it works.
	Proven Level
	// External is the endpoint at which the port was reached if Verdict is Reachable, and otherwise
	// the one of the Target.
	External netip.AddrPort
	// Reason is one sentence for people that explains the verdict, without a full stop.
	Reason string
	// Evidence has what each measurement shows, in the order of the probers.
	Evidence []Evidence
	// At is the time at which the last measurement ended. It is the zero Time for the zero
	// Result, which means that nothing was measured.
	At time.Time
}

// Target is a port that is to be reachable, and what is known about the way to it.
type Target struct {
	// Protocol is backends.TCP or backends.UDP. For other protocols every verdict is Unknown.
	Protocol backends.Protocol
	// External is the endpoint that the internet is to reach. Its address is the zero Addr if
	// the gateway hides it.
	External netip.AddrPort
	// Internal is the endpoint to which the gateway forwards. It has an address. For a pinhole
	// and for a host with a public address, it equals External.
	Internal netip.AddrPort
	// Gateway is the address of the router, with a zone if it is link-local. The zero Addr
	// means that there is no router that could be asked.
	Gateway netip.Addr
	// Interface is the interface toward the gateway, or empty.
	Interface string
	// UPnPURL is the URL of the root description of the gateway's UPnP device. If it is empty,
	// the device is searched for.
	UPnPURL string
	// SSDP is the address to which searches from the internal port are sent. The zero value
	// means the multicast group of the family. It is for tests.
	SSDP netip.AddrPort
}

// A Prober measures how far connections to a port get.
type Prober interface {
	// Name returns the name of the prober, for Evidence.Method.
	Name() string
	// Probe makes one measurement. What arrives at the internal port is seen by the catcher.
	// An error means that the measurement was not possible: its Verdict counts as Unknown. The
	// prober sets Verdict, Level, From and To, and External if that is not the one of the Target;
	// the caller completes the Evidence.
	//
	// A prober may report Reachable at LevelInternet only if the catcher delivered a nonce that
	// the prober chose, or a connection whose source it knew beforehand, and if
	// Target.IsFromInternet is true for its source.
	Probe(context.Context, Target, Catcher) (Evidence, error)
}

// Expectation describes what a prober waits for.
type Expectation = catch.Expectation

// Arrival is what the catcher saw.
type Arrival = catch.Arrival

// Owner says whose socket is at the internal port.
type Owner uint8

// The owners.
const (
	// OwnerNone means that this package cannot observe the port: it may not open it, or the
	// internal address belongs to another host.
	OwnerNone Owner = iota
	// OwnerProgram means that the program has a socket that reports to the catcher.
	OwnerProgram
	// OwnerTemporary means that the port was free, and the catcher has opened it for the time
	// of the measurement.
	OwnerTemporary
	// OwnerOther means that another socket has the port. Only the table of sockets of the
	// system shows its connections.
	OwnerOther
)

// Catcher observes what arrives at the internal port of a Target.
type Catcher interface {
	// Owner says whose socket is at the internal port.
	Owner() Owner
	// Expect begins to wait for a connection or datagram. The channel receives at most one
	// arrival. The caller must call stop when it no longer waits.
	Expect(Expectation) (arrivals <-chan Arrival, stop func())
	// Observing returns nil if everything that arrives now is observed. Otherwise it says why
	// not: a missing arrival then proves nothing.
	Observing() error
	// Send sends a datagram from the internal port. It fails for other protocols than UDP and
	// for sockets of other programs.
	Send(b []byte, to netip.AddrPort) error
	// Visited returns the time and the source of the last connection from the internet to the
	// internal endpoint that the program accepted, or zero values.
	Visited() (at time.Time, from netip.AddrPort)
}

// NewNonce returns a random text of 22 characters for Expectation.First. It has 128 bits, and the
// characters are valid in a URL.
func NewNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}
