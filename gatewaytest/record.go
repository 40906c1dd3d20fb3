package gatewaytest

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// maxRequests is how many requests the gateway remembers, at least.
const maxRequests = 4096

// The values of Request.Op.
const (
	opExternalAddr = "external address"
	opMap          = "map"
	opUnmap        = "unmap"
	opPeer         = "peer"
	opAnnounce     = "announce"
	opSearch       = "search"
	opDescribe     = "describe"
	opStatus       = "status"
	opLookup       = "look up"
	opList         = "list"
	opOther        = "other"
)

// Request is a request as it arrived.
type Request struct {
	// Time is when, on the gateway's clock.
	Time time.Time
	// Service is the protocol spoken: "natpmp", or "pcp" for any other version;
	// "ssdp" for searches, and "upnp" for HTTP.
	Service string
	// Op is what the request asks for, whatever the protocol: "map", also of pinholes;
	// "unmap", of one mapping, with NAT-PMP of all of the client's, with UPnP of a range;
	// "external address", of NAT-PMP and UPnP; "peer" and "announce", of PCP; "search", of
	// SSDP; "describe", the GET of the device description; and of UPnP "status", of the
	// connection, the firewall or a pinhole, "look up", of one mapping, and "list", by
	// index or range. "other" is anything else, also what cannot be read.
	Op string
	// Action is the name of the SOAP action, if it is one.
	Action string
	// Protocol is what to map; zero if Op is not "map", "unmap" or "peer",
	// and for all protocols.
	Protocol backends.Protocol
	Source   netip.AddrPort
	// Raw is the datagram, or the HTTP request. Do not change it.
	Raw []byte
	// Answered says that the gateway had an answer, of those that it remembers.
	Answered bool
}

// Name is how Stats counts the request: "natpmp external address",
// "natpmp map tcp", "pcp announce".
func (r Request) Name() string {
	if r.Protocol == 0 {
		return r.Service + " " + r.Op
	}
	return r.Service + " " + r.Op + " " + r.Protocol.String()
}

// Stats counts what happened since Start or ResetStats.
type Stats struct {
	// Requests counts by Request.Name, those that Ignored counts included.
	Requests map[string]int
	// Replies is how many datagrams and HTTP responses were sent in answer.
	Replies int
	// Ignored is how many requests the gateway did not answer: not admitted, too
	// short, a response, or dropped by a fault.
	Ignored int
	// Announcements is how many packets of announcements were sent, and
	// Notifications how many of SSDP.
	Announcements, Notifications int
	// MappingUpdates is how many packets told clients of changes, unasked.
	MappingUpdates int
	// Connections is how many TCP connections came in; Refused, how many did not.
	Connections, Refused int
	// Datagrams is how many UDP datagrams came in; Lost, how many did not.
	Datagrams, Lost int
	// BytesIn and BytesOut are the payload relayed to and from the inside.
	BytesIn, BytesOut int64
	// Epoch is the time since the gateway's table was last empty, on its clock. ResetStats
	// leaves it.
	Epoch time.Duration
}

// recorder keeps requests and counts.
type recorder struct {
	mu       sync.Mutex
	requests []Request
	stats    Stats
	changed  chan struct{} // closed at the next request
}

func newRecorder() *recorder {
	return &recorder{stats: Stats{Requests: make(map[string]int)}, changed: make(chan struct{})}
}

// add records a request and wakes who waits for it.
func (r *recorder) add(q Request, ignored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Requests[q.Name()]++
	if q.Answered = !ignored; ignored {
		r.stats.Ignored++
	}
	if len(r.requests) >= 2*maxRequests {
		r.requests = slices.Clone(r.requests[maxRequests:])
	}
	r.requests = append(r.requests, q)
	close(r.changed)
	r.changed = make(chan struct{})
}

// count changes the counters.
func (r *recorder) count(f func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

// matching returns the remembered requests that match, and a channel that is
// closed when there are more.
func (r *recorder) matching(match func(Request) bool) ([]Request, <-chan struct{}) {
	r.mu.Lock()
	all, changed := slices.Clone(r.requests), r.changed
	r.mu.Unlock()
	if match != nil {
		all = slices.DeleteFunc(all, func(q Request) bool { return !match(q) })
	}
	return all, changed
}

// Requests returns the requests since Start or ResetStats, oldest first. Of more than four
// thousand it may have only the last. It has each request that was answered.
func (g *Gateway) Requests() []Request {
	all, _ := g.record.matching(nil)
	return all
}

// AwaitRequests waits until n of the requests that Requests returns match, and returns all
// that do. If match is nil, all match. It fails with the context's error when that ends,
// and with net.ErrClosed when the gateway is closed; it returns those that match then too.
func (g *Gateway) AwaitRequests(ctx context.Context, n int, match func(Request) bool) ([]Request, error) {
	for {
		got, changed := g.record.matching(match)
		if len(got) >= n {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return got, ctx.Err()
		case <-g.done:
			return got, net.ErrClosed
		}
	}
}

// Stats returns the counters.
func (g *Gateway) Stats() Stats {
	epoch := g.epoch()
	g.record.mu.Lock()
	defer g.record.mu.Unlock()
	s := g.record.stats
	s.Epoch = epoch
	s.Requests = make(map[string]int, len(s.Requests))
	maps.Copy(s.Requests, g.record.stats.Requests)
	return s
}

// ResetStats forgets the requests and sets the counters to zero.
func (g *Gateway) ResetStats() {
	g.record.mu.Lock()
	defer g.record.mu.Unlock()
	g.record.requests = nil
	g.record.stats = Stats{Requests: make(map[string]int)}
}
