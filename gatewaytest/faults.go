package gatewaytest

import (
	"slices"
	"sync"
	"time"
)

// maxDuplicates is the maximum of Fault.Duplicate and Fault.Repeat.
const maxDuplicates = 100

// Fault makes the gateway fail at the requests that match. The gateway calls the
// functions of a Fault without holding a lock, possibly concurrently. They may use the
// gateway but must not close it.
type Fault struct {
	// Match selects the requests. Nil matches all requests.
	Match func(Request) bool
	// Times is the number of requests to which the fault applies. Zero means that it
	// applies until it is removed.
	Times int

	// Drop discards the request: the gateway neither handles it nor responds to it. An
	// HTTP connection is closed, after Hold and Delay if these are set.
	Drop bool
	// DropReply handles the request and discards the response.
	DropReply bool
	// Result refuses the request with this result code of its protocol. For a SOAP
	// action it is the fault code, for other HTTP requests it is the status; for SSDP it
	// has no effect. Zero means no refusal.
	Result int
	// Reply returns the response in place of the gateway, which does not handle the
	// request. Each element is a datagram. On an HTTP connection, the elements are
	// written one after the other. If Reply returns no element, nothing is sent.
	Reply func(request []byte) [][]byte
	// Corrupt changes each response, for HTTP including its headers. If it returns nil,
	// the response is discarded.
	Corrupt func(reply []byte) []byte
	// Duplicate is the number of additional copies of the response that are sent, at
	// most 100. It has no effect on HTTP.
	Duplicate int
	// Delay sends the response that much later, in real time. Responses to later
	// requests can be sent before it.
	Delay time.Duration
	// Hold sends the response when the channel is closed or delivers a value.
	Hold <-chan struct{}
	// HoldRequest handles the request when the channel is closed or delivers a value.
	// Later requests wait too, and are handled in the order of their arrival.
	HoldRequest <-chan struct{}
	// Repeat is the number of additional times that the request is handled and answered,
	// as if copies of it had arrived at the same time. It is at most 100. It has no
	// effect on HTTP.
	Repeat int
}

// activeFault is a fault that has been injected and not been removed.
type activeFault struct {
	Fault
	remaining int // number of requests to which it still applies; 0: no limit
}

// faults holds the active faults, oldest first. Each change replaces the list, so that a
// request can be matched without holding the lock.
type faults struct {
	mu     sync.Mutex
	active []*activeFault
	tail   <-chan struct{} // closed when the last request in the queue has been handled; nil if no request has ever waited
}

// Inject activates a fault and returns a function that removes it. That function may be
// called more than once. If several faults match a request, only the oldest applies.
func (g *Gateway) Inject(f Fault) (remove func()) {
	in := &activeFault{Fault: f, remaining: f.Times}
	g.faults.mu.Lock()
	defer g.faults.mu.Unlock()
	g.faults.active = append(slices.Clip(g.faults.active), in)
	return func() { g.faults.remove(in) }
}

// remove removes a fault, if it is still active.
func (f *faults) remove(in *activeFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = slices.DeleteFunc(slices.Clone(f.active), func(other *activeFault) bool { return other == in })
}

// match returns the fault that applies to the request, or nil, and counts the use.
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

// consume counts one use of the fault, and reports whether the fault was still active.
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

// enterQueue waits until the request may be handled. The caller must call done after it
// has handled the request. ok is false if the gateway was closed meanwhile.
func (f *faults) enterQueue(hold <-chan struct{}, closed <-chan struct{}) (done func(), ok bool) {
	f.mu.Lock()
	previous := f.tail
	if previous == nil && hold == nil {
		f.mu.Unlock()
		return func() {}, true
	}
	handled := make(chan struct{})
	f.tail = handled
	f.mu.Unlock()
	done = func() { close(handled) }
	for _, c := range []<-chan struct{}{previous, hold} {
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

// corrupt applies DropReply, Corrupt and Duplicate to the responses.
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
