package forward

import (
	"fmt"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// EventKind is what happened to a mapping.
type EventKind uint8

// The kinds of Event.
const (
	// Mapped: granted for the first time.
	Mapped EventKind = iota + 1
	// Changed: granted again with another external address or port, or on
	// another internal port or gateway.
	Changed
	// Lost: the gateway has it no more, as far as we know. It is asked for again.
	Lost
	// Restored: granted again after Lost, possibly with another external address
	// or port.
	Restored
)

// String names the kind in lower case.
func (k EventKind) String() string {
	switch k {
	case Mapped:
		return "mapped"
	case Changed:
		return "changed"
	case Lost:
		return "lost"
	case Restored:
		return "restored"
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event tells that something happened to a mapping.
type Event struct {
	Kind    EventKind
	Mapping *Mapping
	// State and Previous are what was granted after and before: two for Both,
	// none where there was none.
	State, Previous []backends.Mapping
	// Reason says how it came.
	Reason string
	// Time is when.
	Time time.Time
}

// The events that wait for a slow OnEvent are bounded: by a number, or by a few
// for each mapping where that is more, since a gateway that restarts makes two of
// each at once. The state that Mapping's methods tell is right whatever is lost
// here.
const (
	maxEvents     = 1024
	eventsForEach = 4
)

// events hands events to OnEvent, one after another.
type events struct {
	mu    sync.Mutex
	queue []Event
	wake  chan struct{}
}

// emit logs an event and queues it for OnEvent. It never blocks.
func (f *Forwarder) emit(e Event) {
	f.log.Info("mapping "+e.Kind.String(), "mapping", e.Mapping, "reason", e.Reason)
	if f.config.OnEvent == nil {
		return
	}
	f.mu.Lock()
	most := max(maxEvents, eventsForEach*len(f.held))
	f.mu.Unlock()
	f.events.mu.Lock()
	if len(f.events.queue) >= most {
		f.log.Warn("OnEvent is too slow: an event is dropped", "mapping", f.events.queue[0].Mapping)
		f.events.queue = f.events.queue[1:]
	}
	f.events.queue = append(f.events.queue, e)
	f.events.mu.Unlock()
	nudge(f.events.wake)
}

// dispatch calls OnEvent until the Forwarder is closed.
func (f *Forwarder) dispatch() {
	for {
		f.events.mu.Lock()
		queue := f.events.queue
		f.events.queue = nil
		f.events.mu.Unlock()
		for _, e := range queue {
			if f.ctx.Err() != nil {
				return
			}
			f.call(e)
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-f.events.wake:
		case <-f.ctx.Done():
			return
		}
	}
}

// call survives what OnEvent does.
func (f *Forwarder) call(e Event) {
	defer func() {
		if p := recover(); p != nil {
			f.log.Error("OnEvent panicked", "event", e.Kind, "panic", p)
		}
	}()
	f.config.OnEvent(e)
}

// nudge wakes whoever waits on a channel of capacity 1, now or later.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
