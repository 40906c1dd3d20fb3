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
func (h *holdSession) printFailure(m *forward.Mapping) error {
	next, err := m.Status().NextAttempt, m.Err()
	h.failing = err != nil
	switch {
	case err == nil:
		h.reportedReason = ""
		return nil
	case next != m.Status().NextAttempt || next.Equal(h.reportedNext):
		return nil // the next look tells, or it is told
	case (len(m.Grants()) > 0) != h.active:
		return nil // an event that says so is on the way
	case h.granted == nil && classify(err).code == exitUsage && !errors.Is(err, netbind.ErrNotHere):
		return err
	}
	ms := h.granted
	if ms == nil {
		ms = h.requested(m)
	}
	h.reportedNext = next
	h.print("error", time.Now(), ms, mappingRecord{Reason: errorText(err), Kind: classify(err).name}, next)
	return nil
}

// wanted is what is not granted yet, as far as it is known.
func (h *holdSession) requested(m *forward.Mapping) []backends.Mapping {
	var ms []backends.Mapping
	for _, p := range h.spec.protocols {
		ms = append(ms, backends.Mapping{Protocol: p, Internal: m.Internal(), Lifetime: backends.Forever})
	}
	return ms
}

// tell tells of an event, and has done what is to be done about it.
func (h *holdSession) handleEvent(e forward.Event) {
	first, previous := h.granted == nil, netip.AddrPort{}
	if !first {
		previous = h.granted[0].External
	}
	if h.active = len(e.Grants) > 0; h.active {
		h.granted = e.Grants
	}
	if h.granted == nil {
		return
	}
	r := mappingRecord{Reason: trimPackage(e.Reason)}
	if external := h.granted[0].External; external != previous {
		r.Previous = jsonEndpointOf(previous)
	}
	var next time.Time
	if !h.active {
		next = h.attemptAfterLoss(e)
	}
	h.print(e.Kind.String(), e.Time, h.granted, r, next)
	if !h.active {
		return
	}
	if !h.app.settings.json {
		h.app.resultf("%s\n", endpointText(h.granted[0].External))
	}
	if first {
		h.app.messagef("By %s. Kept alive until Ctrl-C.\n", backendText(h.granted[0]))
		h.app.printRemarks(h.spec, h.granted)
	}
	for _, errand := range h.hooks {
		errand.post(h.granted)
	}
}

// nextAfter is when a mapping is asked for again that was lost: where that is not
// what an attempt came to, at once.
func (h *holdSession) attemptAfterLoss(e forward.Event) time.Time {
	next, err := e.Mapping.Status().NextAttempt, e.Mapping.Err()
	if err == nil || err.Error() != e.Reason {
		return e.Time
	}
	h.reportedNext = next
	return next
}

// say is something that happened, for people and, with --json, for programs. The
// next attempt is the zero Time where nothing failed.
func (h *holdSession) print(kind string, at time.Time, ms []backends.Mapping, r mappingRecord, next time.Time) {
	reason := oneLine(r.Reason)
	if reason != "" && reason == h.reportedReason {
		reason = "as before"
	} else if !next.IsZero() {
		h.reportedReason = reason
	}
	h.printLine(at, kind, ms, reason+nextAttemptText(next))
	if h.app.settings.json {
		r.Time, r.Next = jsonTime(at), jsonTime(next)
		h.app.printRecords(kind, ms, r)
	}
}

// line is an event for people.
func (h *holdSession) printLine(at time.Time, kind string, ms []backends.Mapping, reason string) {
	what := protocolsText(ms) + " port " + strconv.Itoa(int(ms[0].Internal.Port()))
	if ms[0].External != (netip.AddrPort{}) {
		what = mappingText(ms)
	}
	text := fmt.Sprintf("%s %s %s", clockText(at), kind, what)
	if reason != "" {
		text += " (" + reason + ")"
	}
	h.app.messagef("%s\n", text)
}
