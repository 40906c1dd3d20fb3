// Package catch recognizes the connections and datagrams of probers among all that arrive at
// a port. Each prober chooses a secret text with a nonce. What begins with that text and
// comes from an expected source is caught; everything else is left to the program.
package catch

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MaxFirst is the maximum length of Expectation.First.
const MaxFirst = 64

// Expectation describes what a prober waits for.
type Expectation struct {
	// First is what the connection or datagram begins with, after the bytes that Skip counts. Both
	// together are at most MaxFirst bytes. For a connection, First must contain a nonce.
	First string
	// Skip is the number of bytes before First. They may have any value.
	Skip int
	// From reports whether connections or datagrams from this address are examined. All
	// others are left to the program. Nil means every address.
	From func(netip.Addr) bool
	// Source reports whether a connection from this endpoint is the expected one. With it, a
	// connection to a socket of another program can be recognized in the table of sockets. It is
	// called again for a connection as long as that is open, and may be called by several
	// goroutines at once. Nil means that the table does not help.
	Source func(netip.AddrPort) bool
	// Before has connections in the table of sockets that are older than the expectation. They do
	// not count.
	Before []netip.AddrPort
	// Answer is sent to the source of what is caught. It may be empty.
	Answer []byte
}

// Arrival is a connection or datagram that was caught.
type Arrival struct {
	// From is its source.
	From netip.AddrPort
	// At is the time at which it was caught.
	At time.Time
	// InTable reports that the connection belongs to another program and was only seen in the
	// table of sockets.
	InTable bool
}

// Queue has the expectations for one port. Its methods may be called by several goroutines
// at once. The zero Queue is valid.
type Queue struct {
	count   atomic.Int32 // the number of pending expectations
	mu      sync.Mutex
	pending []*pending
	// Timeout is how long a connection from an expected source may take to send its first bytes.
	// Zero means 300 ms.
	Timeout time.Duration
}

type pending struct {
	Expectation
	arrived chan Arrival // receives one value
}

// Expect adds an expectation. The channel receives at most one arrival. The caller must call
// remove when it no longer waits.
func (q *Queue) Expect(e Expectation) (arrivals <-chan Arrival, remove func()) {
	p := &pending{Expectation: e, arrived: make(chan Arrival, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.set(append(q.pending, p))
	return p.arrived, func() { q.take(p) }
}

// take removes an expectation. It returns false if it was removed before.
func (q *Queue) take(p *pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.pending, p)
	if i < 0 {
		return false
	}
	q.set(slices.Concat(q.pending[:i], q.pending[i+1:])) // a new array: all may have returned the old one
	return true
}

// set replaces the pending expectations. The caller holds the lock.
func (q *Queue) set(all []*pending) {
	q.pending = all
	q.count.Store(int32(len(all))) //nolint:gosec // a few
}

// all returns the pending expectations. Their functions are called without the lock.
func (q *Queue) all() []*pending {
	if q.IsEmpty() {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pending
}

// IsEmpty reports whether nothing is expected. It is fast.
func (q *Queue) IsEmpty() bool { return q.count.Load() == 0 }

// Examines reports whether a connection or datagram from an address must be examined.
func (q *Queue) Examines(from netip.Addr) bool {
	return slices.ContainsFunc(q.all(), func(p *pending) bool { return p.examines(from) })
}

func (p *pending) examines(from netip.Addr) bool { return p.From == nil || p.From(from.Unmap()) }

// Match compares the first bytes from a source with the expectations. If they begin with an
// expected text, Match removes the expectation, delivers the arrival, and returns true and
// the answer. Otherwise mayMatch reports whether more bytes could still make a match.
func (q *Queue) Match(first []byte, from netip.AddrPort) (answer []byte, matches, mayMatch bool) {
	for _, p := range q.all() {
		rest := first[min(len(first), max(p.Skip, 0)):]
		n := min(len(rest), len(p.First))
		if p.First == "" || string(rest[:n]) != p.First[:n] || !p.examines(from.Addr()) {
			continue
		}
		if n < len(p.First) {
			mayMatch = true
		} else if q.take(p) { // a nonce counts once
			p.deliver(Arrival{From: from, At: time.Now()})
			return p.Answer, true, false
		}
	}
	return nil, false, mayMatch
}

// Seen reports a connection in the table of sockets. If its source is expected, Seen removes
// the expectation and delivers the arrival.
func (q *Queue) Seen(from netip.AddrPort) {
	for _, p := range q.all() {
		isExpected := p.Source != nil && !slices.Contains(p.Before, from) && p.examines(from.Addr()) && p.Source(from)
		if isExpected && q.take(p) {
			p.deliver(Arrival{From: from, At: time.Now(), InTable: true})
			return
		}
	}
}

func (p *pending) deliver(a Arrival) {
	a.From = netip.AddrPortFrom(a.From.Addr().Unmap(), a.From.Port())
	p.arrived <- a // it has room, and each expectation is delivered once
}
