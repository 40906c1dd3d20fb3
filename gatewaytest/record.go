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

// minStoredRequests is the minimum number of recent requests that the gateway keeps.
const minStoredRequests = 4096

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
	opSubscribe    = "subscribe"
	opUnsubscribe  = "unsubscribe"
	opOther        = "other"
)

// Request is a request that the gateway received.
type Request struct {
	// Time is the time of arrival on the gateway's clock.
	Time time.Time
	// Service is the protocol of the request: "natpmp"; "pcp" for any other version on
	// that port; "ssdp" for searches; and "upnp" for HTTP.
	Service string
	// Op is the operation that is requested, independent of the protocol:
	//
	//   - "map" creates or renews a mapping or a pinhole.
	//   - "unmap" deletes one mapping. With NAT-PMP, it can be all mappings of the client;
	//     with UPnP, it can be those of a range.
	//   - "external address" requests the external address (NAT-PMP and UPnP).
	//   - "peer" and "announce" are the PCP operations of these names.
	//   - "search" is an SSDP search.
	//   - "describe" is the GET request for the device description.
	//   - "status" requests the status of the connection, the firewall or a pinhole (UPnP).
	//   - "look up" requests one mapping (UPnP).
	//   - "list" requests mappings by index or range (UPnP).
	//   - "subscribe" begins or renews a subscription to events; "unsubscribe" ends it
	//     (UPnP).
	//   - "other" is any other request, including one that cannot be parsed.
	Op string
	// Action is the name of the SOAP action, or empty if the request is not a SOAP
	// action.
	Action string
	// Protocol is the protocol to map. It is zero if Op is not "map", "unmap" or "peer",
	// and for mappings of all protocols.
	Protocol backends.Protocol
	// Source is the address from which the request came.
	Source netip.AddrPort
	// Raw is the datagram, or the HTTP request. Do not change it.
	Raw []byte
	// Answered reports whether the gateway had a response to the request. It is set in
	// the requests that Requests and AwaitRequests return.
	Answered bool
}

// Name returns the name under which Stats counts the request, for example "natpmp
// external address", "natpmp map tcp" or "pcp announce".
func (r Request) Name() string {
	if r.Protocol == 0 {
		return r.Service + " " + r.Op
	}
	return r.Service + " " + r.Op + " " + r.Protocol.String()
}

// Stats counts the events since Start or ResetStats.
type Stats struct {
	// Requests counts the requests by Request.Name. It includes the requests that
	// Ignored counts.
	Requests map[string]int
	// Replies is the number of datagrams and HTTP responses that were sent in response
	// to requests.
	Replies int
	// Ignored is the number of requests that the gateway did not answer: the client was
	// not admitted, or the packet was too short, was a response, or was dropped by a
	// fault.
	Ignored int
	// Announcements is the number of announcement packets that were sent. Notifications
	// is the number of SSDP notifications.
	Announcements, Notifications int
	// MappingUpdates is the number of unsolicited packets that informed clients of
	// changed mappings.
	MappingUpdates int
	// Connections is the number of TCP connections from outside that were established.
	// Refused is the number of those that failed.
	Connections, Refused int
	// Datagrams is the number of UDP datagrams from outside that were forwarded. Lost is
	// the number of those that were dropped.
	Datagrams, Lost int
	// BytesIn and BytesOut count the payload bytes that were relayed to and from the
	// inside.
	BytesIn, BytesOut int64
	// Epoch is the time since the gateway's table was last empty, on the gateway's
	// clock. ResetStats does not change it.
	Epoch time.Duration
}

// recorder stores the recent requests and the counters.
type recorder struct {
	mu       sync.Mutex
	requests []Request
	stats    Stats
	changed  chan struct{} // closed at the next request
}

// newRecorder returns a recorder without requests.
func newRecorder() *recorder {
	return &recorder{stats: Stats{Requests: make(map[string]int)}, changed: make(chan struct{})}
}

// add records a request and wakes the goroutines that wait for one.
func (r *recorder) add(q Request, ignored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Requests[q.Name()]++
	if q.Answered = !ignored; ignored {
		r.stats.Ignored++
	}
	if len(r.requests) >= 2*minStoredRequests {
		r.requests = slices.Clone(r.requests[minStoredRequests:])
	}
	r.requests = append(r.requests, q)
	close(r.changed)
	r.changed = make(chan struct{})
}

// count calls f to change the counters, with the lock held.
func (r *recorder) count(f func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

// matching returns the stored requests that match, and a channel that is closed when the
// next request arrives.
func (r *recorder) matching(match func(Request) bool) ([]Request, <-chan struct{}) {
	r.mu.Lock()
	all, changed := slices.Clone(r.requests), r.changed
	r.mu.Unlock()
	if match != nil {
		all = slices.DeleteFunc(all, func(q Request) bool { return !match(q) })
	}
	return all, changed
}

// Requests returns the requests since Start or ResetStats, oldest first. If there were
// more than four thousand, the oldest may be missing. A request is recorded before its
// response is sent.
func (g *Gateway) Requests() []Request {
	all, _ := g.record.matching(nil)
	return all
}

// AwaitRequests waits until at least n of the requests that Requests returns match, and
// returns all that match. If match is nil, all requests match. It fails with the
// context's error if the context ends, and with net.ErrClosed if the gateway is closed.
// In these cases it also returns the requests that match so far.
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

// Stats returns a copy of the counters.
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

// ResetStats deletes the recorded requests and sets the counters to zero.
func (g *Gateway) ResetStats() {
	g.record.mu.Lock()
	defer g.record.mu.Unlock()
	g.record.requests = nil
	g.record.stats = Stats{Requests: make(map[string]int)}
}
