package ssdp

import (
	"net/netip"
	"sync"
)

// How many distinct answers are believed to be real: from one address, and from
// all those together that were not asked by their own address.
const (
	maxPerAddr   = 64
	maxStrangers = 256
)

// inbox holds the answers that wait for the loop, and knows those it had.
type inbox struct {
	// answers has room for all that the bounds let in, so that a stranger cannot
	// crowd out an answer while the loop is slow, and sending never blocks.
	answers chan Response

	mu        sync.Mutex
	seen      map[answerKey]struct{}
	perAddr   map[netip.Addr]int
	asked     map[netip.Addr]bool
	strangers int
}

// answerKey is what makes answers distinct: a device answers for each target and
// each repetition.
type answerKey struct {
	from          netip.Addr
	location, udn string
}

func newInbox(to []netip.AddrPort) *inbox {
	in := &inbox{
		seen:    map[answerKey]struct{}{},
		perAddr: map[netip.Addr]int{},
		asked:   map[netip.Addr]bool{},
	}
	for _, d := range to {
		if !d.Addr().IsMulticast() {
			in.asked[d.Addr()] = true
		}
	}
	in.answers = make(chan Response, maxStrangers+maxPerAddr*len(in.asked))
	return in
}

// take keeps a datagram if it is an answer, a new one, and within the bounds.
func (in *inbox) take(datagram []byte, from netip.AddrPort) {
	a, err := ParseResponse(datagram)
	if err != nil {
		return
	}
	a.From = from
	addr := from.Addr()
	key := answerKey{addr, a.Location, a.UDN()}

	in.mu.Lock()
	defer in.mu.Unlock()
	_, known := in.seen[key]
	stranger := !in.asked[addr]
	if known || in.perAddr[addr] == maxPerAddr || stranger && in.strangers == maxStrangers {
		return
	}
	in.seen[key] = struct{}{}
	in.perAddr[addr]++
	if stranger {
		in.strangers++
	}
	in.answers <- a
}
