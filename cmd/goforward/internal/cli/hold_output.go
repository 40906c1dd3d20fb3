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

// printFailure prints the failure of an attempt, once per attempt. It returns the error if the
// request is invalid, since further attempts cannot succeed.
func (h *holdSession) printFailure(m *forward.Mapping) error {
	next, err := m.Status().NextAttempt, m.Err()
	h.failing = err != nil
	switch {
	case err == nil:
		h.reportedReason = ""
		return nil
	case next != m.Status().NextAttempt || next.Equal(h.reportedNext):
		return nil // the next check reports it, or it is already reported
	case (len(m.Grants()) > 0) != h.active:
		return nil // the event of this change has not arrived yet
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

// requested returns the mappings that are not granted yet, as far as they are known.
func (h *holdSession) requested(m *forward.Mapping) []backends.Mapping {
	var ms []backends.Mapping
	for _, p := range h.spec.protocols {
		ms = append(ms, backends.Mapping{Protocol: p, Internal: m.Internal(), Lifetime: backends.Forever})
	}
	return ms
}

// handleEvent prints an event, such as the loss of a mapping, and passes a new endpoint to the
// hooks.
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
		h.app.messagef("Mapped by %s. Kept alive until Ctrl-C.\n", backendText(h.granted[0]))
		h.app.printRemarks(h.spec, h.granted)
	}
	for _, hook := range h.hooks {
		hook.post(h.granted)
	}
}

// attemptAfterLoss returns the time of the next attempt for a lost mapping. If the event does
// not report a failed attempt, the next attempt follows at once.
func (h *holdSession) attemptAfterLoss(e forward.Event) time.Time {
	next, err := e.Mapping.Status().NextAttempt, e.Mapping.Err()
	if err == nil || err.Error() != e.Reason {
		return e.Time
	}
	h.reportedNext = next
	return next
}

// print prints an event as a line for people and, with --json, as objects for programs. next
// is the time of the next attempt, or the zero Time if nothing failed.
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

// printLine prints an event as a line for people.
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
