package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/netbind"
)

// tellFailure tells of an attempt that failed, once. A wish that makes no sense
// is not tried for ever.
func (h *holding) tellFailure(m *forward.Mapping) error {
	next, err := m.Status().NextAttempt, m.Err()
	h.failing = err != nil
	switch {
	case err == nil:
		h.failure = ""
		return nil
	case next != m.Status().NextAttempt || next.Equal(h.seen):
		return nil // the next look tells, or it is told
	case (len(m.Grants()) > 0) != h.standing:
		return nil // an event that says so is on the way
	case h.last == nil && classify(err).code == exitUsage && !errors.Is(err, netbind.ErrNotHere):
		return err
	}
	ms := h.last
	if ms == nil {
		ms = h.wanted(m)
	}
	h.seen = next
	h.say("error", time.Now(), ms, record{Reason: errorText(err), Kind: classify(err).name}, next)
	return nil
}

// wanted is what is not granted yet, as far as it is known.
func (h *holding) wanted(m *forward.Mapping) []backends.Mapping {
	var ms []backends.Mapping
	for _, p := range h.wish.protocols {
		ms = append(ms, backends.Mapping{Protocol: p, Internal: m.Internal(), Lifetime: backends.Forever})
	}
	return ms
}

// tell tells of an event, and has done what is to be done about it.
func (h *holding) tell(e forward.Event) {
	first, previous := h.last == nil, netip.AddrPort{}
	if !first {
		previous = h.last[0].External
	}
	if h.standing = len(e.Grants) > 0; h.standing {
		h.last = e.Grants
	}
	if h.last == nil {
		return
	}
	r := record{Reason: plain(e.Reason)}
	if external := h.last[0].External; external != previous {
		r.Previous = endpointOf(previous)
	}
	var next time.Time
	if !h.standing {
		next = h.nextAfter(e)
	}
	h.say(e.Kind.String(), e.Time, h.last, r, next)
	if !h.standing {
		return
	}
	if !h.app.settings.json {
		h.app.printf("%s\n", endpointText(h.last[0].External))
	}
	if first {
		h.app.sayf("By %s. Kept alive until Ctrl-C.\n", grantor(h.last[0]))
		h.app.remark(h.wish, h.last)
	}
	for _, errand := range h.errands {
		errand.post(h.last)
	}
}

// nextAfter is when a mapping is asked for again that was lost: where that is not
// what an attempt came to, at once.
func (h *holding) nextAfter(e forward.Event) time.Time {
	next, err := e.Mapping.Status().NextAttempt, e.Mapping.Err()
	if err == nil || err.Error() != e.Reason {
		return e.Time
	}
	h.seen = next
	return next
}

// say is something that happened, for people and, with --json, for programs. The
// next attempt is the zero Time where nothing failed.
func (h *holding) say(kind string, at time.Time, ms []backends.Mapping, r record, next time.Time) {
	reason := oneLine(r.Reason)
	if reason != "" && reason == h.failure {
		reason = "as before"
	} else if !next.IsZero() {
		h.failure = reason
	}
	h.line(at, kind, ms, reason+nextText(next))
	if h.app.settings.json {
		r.Time, r.Next = stamp(at), stamp(next)
		h.app.records(kind, ms, r)
	}
}

// line is an event for people.
func (h *holding) line(at time.Time, kind string, ms []backends.Mapping, reason string) {
	what := protocolsText(ms) + " port " + strconv.Itoa(int(ms[0].Internal.Port()))
	if ms[0].External != (netip.AddrPort{}) {
		what = arrow(ms)
	}
	text := fmt.Sprintf("%s %s %s", clock(at), kind, what)
	if reason != "" {
		text += " (" + reason + ")"
	}
	h.app.sayf("%s\n", text)
}
