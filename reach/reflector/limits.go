package reflector

import (
	"container/list"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// The limits.
const (
	maxClients        = 8192 // prefixes of which something is remembered
	requestsPerMinute = 60   // of each prefix, of any kind
	probesPerHour     = 30   // of each prefix
	requestsAtOnce    = 2    // with probes, of each prefix
	probesAtOnce      = 64   // in total
	probesPerSecond   = 10   // in total
	connsPerPeer      = 16   // connections of each prefix, except those of proxies
	maxConns          = 256  // connections in total
)

// limits counts requests and probes. An attacker with many addresses makes it forget clients, but
// the limits in total hold. Its methods do no I/O.
type limits struct {
	begun time.Time
	// free is how long a client waits until a running request has ended.
	free time.Duration

	mu       sync.Mutex
	byPrefix map[netip.Prefix]*list.Element // of *client
	recent   list.List                      // of *client: the one that sent the last request is at the front
	running  int                            // probes
	// paid is the time, after begun, until which the probes of the past use up the rate.
	paid time.Duration
}

// client is what limits remembers of a prefix. All times are durations after limits.begun.
type client struct {
	prefix   netip.Prefix
	minute   time.Duration   // the begin of the minute in which requests are counted
	requests int             // in this minute
	probes   []time.Duration // of the last hour, at most probesPerHour
	running  int             // requests with probes
}

func newLimits(free time.Duration) *limits {
	return &limits{begun: time.Now(), free: free, byPrefix: map[netip.Prefix]*list.Element{}}
}

// clientPrefix returns the prefix that counts as one client: an IPv4 address, or the 56 bits of a
// usual IPv6 site.
func clientPrefix(addr netip.Addr) netip.Prefix {
	bits := 32
	if addr.Is6() {
		bits = 56
	}
	p, _ := addr.WithZone("").Prefix(bits) // the zero Prefix for the zero Addr
	return p
}

// get returns the client of a prefix. The caller holds the lock.
func (l *limits) get(p netip.Prefix) *client {
	if e, ok := l.byPrefix[p]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(*client) //nolint:forcetypeassert // recent has no other values
	}
	c := &client{prefix: p}
	l.byPrefix[p] = l.recent.PushFront(c)
	if len(l.byPrefix) > maxClients {
		l.forget()
	}
	return c
}

// forget removes the client that has not sent a request for the longest time. Those with running
// requests stay: they are fewer than probesAtOnce.
func (l *limits) forget() {
	for e := l.recent.Back(); e != nil; e = e.Prev() {
		if c := e.Value.(*client); c.running == 0 { //nolint:forcetypeassert // recent has no other values
			l.recent.Remove(e)
			delete(l.byPrefix, c.prefix)
			return
		}
	}
}

// len returns the number of clients that are remembered.
func (l *limits) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byPrefix)
}

// visit counts a request of a prefix.
func (l *limits) visit(p netip.Prefix) error {
	now := time.Since(l.begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.get(p)
	if c.requests == 0 || now-c.minute >= time.Minute {
		c.minute, c.requests = now, 0
	}
	if c.requests >= requestsPerMinute {
		return &refusal{http.StatusTooManyRequests, "more than 60 requests in a minute", c.minute + time.Minute - now}
	}
	c.requests++
	return nil
}

// admit begins a request with n probes. The limits of the prefix do not apply to the operator. The
// caller must call release when the probes have ended.
func (l *limits) admit(p netip.Prefix, n int, operator bool) (release func(), err error) {
	now := time.Since(l.begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &client{} // counts nothing
	if !operator {
		c = l.get(p)
		for len(c.probes) > 0 && now-c.probes[0] >= time.Hour {
			c.probes = c.probes[1:]
		}
		if over := len(c.probes) + n - probesPerHour; over > 0 {
			return nil, &refusal{http.StatusTooManyRequests, "more than 30 probes in an hour", c.probes[over-1] + time.Hour - now}
		}
		if c.running >= requestsAtOnce {
			return nil, &refusal{http.StatusTooManyRequests, "more than 2 requests at once", l.free}
		}
	}
	const each, burst = time.Second / probesPerSecond, time.Second
	paid := max(l.paid, now) + time.Duration(n)*each
	switch {
	case l.running+n > probesAtOnce:
		return nil, &refusal{http.StatusServiceUnavailable, "busy: more than 64 probes at once", l.free}
	case paid-now > burst:
		return nil, &refusal{http.StatusServiceUnavailable, "busy: more than 10 probes in a second", paid - now - burst}
	}
	l.paid = paid
	l.running += n
	c.running++
	for range n {
		c.probes = append(c.probes, now)
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running -= n
		c.running--
	}, nil
}
