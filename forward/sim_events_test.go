package forward_test

import (
	"fmt"
	"slices"
	"sync"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// chronicle checks that the events of each mapping make sense one after
// another.
type chronicle struct {
	mu    sync.Mutex
	last  map[*forward.Mapping]forward.Event
	count map[forward.EventKind]int
	wrong []string
}

func newChronicle() *chronicle {
	return &chronicle{last: map[*forward.Mapping]forward.Event{}, count: map[forward.EventKind]int{}}
}

func (c *chronicle) record(e forward.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[e.Kind]++
	before := c.last[e.Mapping]
	if e.Kind != forward.EventFailed { // which changes nothing
		c.last[e.Mapping] = e
	}
	if why := follows(before, e); why != "" {
		c.wrong = append(c.wrong, fmt.Sprintf("%v: %v after %v: %s", e.Mapping, e.Kind, before.Kind, why))
	}
}

// follows says why one event cannot follow another, or nothing. Before the
// first is the zero Event.
func follows(before, e forward.Event) string {
	if e.Kind == forward.EventFailed {
		switch {
		case e.Reason == "":
			return "no reason"
		case !sameGrants(before.Grants, e.Grants):
			return fmt.Sprintf("Grants is %v, it was %v", e.Grants, before.Grants)
		}
		return ""
	}
	granted := before.Kind != 0 && before.Kind != forward.EventLost
	var fits bool
	switch e.Kind {
	case forward.EventMapped:
		fits = before.Kind == 0
	case forward.EventRestored:
		fits = before.Kind == forward.EventLost
	case forward.EventChanged, forward.EventLost:
		fits = granted
	}
	switch {
	case !fits:
		return "out of turn"
	case e.Time.Before(before.Time):
		return "it came earlier"
	case !sameGrants(before.Grants, e.Previous):
		return fmt.Sprintf("Previous is %v, it was %v", e.Previous, before.Grants)
	case e.Kind == forward.EventChanged && sameGrants(e.Grants, e.Previous):
		return "nothing changed"
	case (len(e.Grants) == 0) != (e.Kind == forward.EventLost):
		return fmt.Sprintf("State is %v", e.Grants)
	case len(e.Grants) == 2 && e.Grants[0].External.Port() != e.Grants[1].External.Port():
		return fmt.Sprintf("two ports for one unit: %v", e.Grants)
	}
	return ""
}

func sameGrants(a, b []backends.Mapping) bool {
	return slices.EqualFunc(a, b, func(a, b backends.Mapping) bool {
		return a.External == b.External && a.Internal == b.Internal && a.Protocol == b.Protocol
	})
}

// compare checks that the last event tells what the mapping itself tells.
func (c *chronicle) compare(ms []*forward.Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range ms {
		if state := m.Grants(); !sameGrants(c.last[m].Grants, state) {
			c.wrong = append(c.wrong, fmt.Sprintf("%v: the last event, %v, tells %v, State %v", m, c.last[m].Kind, c.last[m].Grants, state))
		}
	}
}
