package gatewaytest

import (
	"slices"
	"sync"
	"time"
)

// maxDuplicates bounds Fault.Duplicate.
const maxDuplicates = 100

// Fault makes the gateway fail at the requests that match. Its functions
// are called without a lock held, possibly at once; they may use the gateway
// but not close it.
type Fault struct {
	// Match picks the requests. Nil: all.
	Match func(Request) bool
	// Times is for how many requests. Zero: until removed.
	Times int

	// Drop loses the request: nothing is done and nothing answered. An HTTP
	// connection is closed, with Hold or Delay as long after.
	Drop bool
	// DropReply does what was asked and loses the answer.
	DropReply bool
	// Result refuses with this result code of the request's protocol. In SOAP it is
	// a fault, in other HTTP the status; in SSDP it does nothing. Zero: no refusal.
	Result int
	// Reply answers instead of the gateway, which does nothing: each element is
	// a datagram, or one after the other what is written to an HTTP connection.
	// If it returns no element, nothing is sent.
	Reply func(request []byte) [][]byte
	// Corrupt changes each answer, of HTTP with its headers. Nil from it loses the answer.
	Corrupt func(reply []byte) []byte
	// Duplicate is how many more copies of the answer are sent, at most 100. In
	// HTTP, none.
	Duplicate int
	// Delay sends the answer that much later, in real time. Later requests
	// overtake it.
	Delay time.Duration
	// Hold sends the answer when the channel is closed, or receives.
	Hold <-chan struct{}
	// HoldRequest handles the request when the channel is closed, or receives. Later
	// requests wait too, and are handled in the order of their arrival.
	HoldRequest <-chan struct{}
	// Repeat is how many more times the request is handled and answered, as if
	// copies of it arrived at once, at most 100. In HTTP, none.
	Repeat int
}

// injected is a fault in force.
type activeFault struct {
	Fault
	remaining int // 0: no limit
}

// faults are the faults in force, the oldest first. A new list replaces the
// old one at each change, so that matching needs no lock.
type faults struct {
	mu     sync.Mutex
	active []*activeFault
	tail   <-chan struct{} // closed when the last request that waited was handled; nil: none ever waited
}

// Inject adds a fault, and returns a function that removes it and may be called twice.
// If several faults match a request, only the oldest applies.
func (g *Gateway) Inject(f Fault) (remove func()) {
	in := &activeFault{Fault: f, remaining: f.Times}
	g.faults.mu.Lock()
	defer g.faults.mu.Unlock()
	g.faults.active = append(slices.Clip(g.faults.active), in)
	return func() { g.faults.remove(in) }
}

func (f *faults) remove(in *activeFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = slices.DeleteFunc(slices.Clone(f.active), func(other *activeFault) bool { return other == in })
}

// take returns the fault that the request has coming, or nil, and counts it.
func (f *faults) match(q Request) *Fault {
	f.mu.Lock()
	list := f.active
	f.mu.Unlock()
	for _, in := range list {
		if (in.Match == nil || in.Match(q)) && f.consume(in) {
			return &in.Fault
		}
	}
	return nil
}

// use counts one use of the fault, and reports whether it was still in force.
func (f *faults) consume(in *activeFault) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.active, in)
	if i < 0 {
		return false
	}
	if in.remaining == 1 {
		f.active = slices.Delete(slices.Clone(f.active), i, i+1)
	}
	in.remaining--
	return true
}

// enter waits until a request may be handled. It returns a function to call after
// that, and reports whether the gateway still runs.
func (f *faults) enterQueue(hold <-chan struct{}, closed <-chan struct{}) (done func(), ok bool) {
	f.mu.Lock()
	before := f.tail
	if before == nil && hold == nil {
		f.mu.Unlock()
		return func() {}, true
	}
	handled := make(chan struct{})
	f.tail = handled
	f.mu.Unlock()
	done = func() { close(handled) }
	for _, c := range []<-chan struct{}{before, hold} {
		if c == nil {
			continue
		}
		select {
		case <-c:
		case <-closed:
			return done, false
		}
	}
	return done, true
}

// spoil applies the fault to an answer.
func (f *Fault) corrupt(replies [][]byte) [][]byte {
	if f.DropReply {
		return nil
	}
	var out [][]byte
	for _, b := range replies {
		if f.Corrupt != nil {
			b = f.Corrupt(b)
		}
		for range 1 + min(max(f.Duplicate, 0), maxDuplicates) {
			if b != nil {
				out = append(out, b)
			}
		}
	}
	return out
}
