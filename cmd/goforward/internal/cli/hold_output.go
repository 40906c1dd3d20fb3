package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/netbind"
	"github.com/natforward/goforward/reach"
)

// printFailure prints the failure of an attempt, once per attempt. It returns the error if the
// request is invalid, since further attempts cannot succeed.
func (h *heldMapping) printFailure(m *forward.Mapping) error {
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
		ms = h.spec.requested()
	}
	h.reportedNext = next
	h.print("error", time.Now(), ms, mappingRecord{Reason: h.session.app.errorText(err), Kind: classify(err).name}, next)
	return nil
}

// handleEvent prints an event, such as the loss of a mapping, and passes a new endpoint to the
// hooks.
func (h *heldMapping) handleEvent(e forward.Event) {
	if e.Kind == forward.EventVerified || e.Kind == forward.EventUnreachable {
		h.printResult(e)
		return
	}
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
	r := mappingRecord{Reason: libraryText(e.Reason)}
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
	h.session.printEndpoint(h)
	h.session.recordGrant(h)
	for _, hook := range h.hooks {
		hook.post(h.granted)
	}
}

// printResult prints the result of a measurement in the background.
func (h *heldMapping) printResult(e forward.Event) {
	h.printLine(e.Time, e.Kind.String(), e.Grants, oneLine(libraryText(e.Result.Reason)))
	if h.session.app.settings.json {
		for _, m := range e.Grants {
			h.session.app.printJSON(verified(e.Kind.String(), m, e.Result))
		}
	}
}

// printFirstResult prints the first result of --verify if it proves nothing: there is no event for
// that.
func (h *heldMapping) printFirstResult() {
	if h.measured || !h.session.flags.verify.ofMap {
		return
	}
	r := h.mapping.Status().Reach
	if h.measured = !r.At.IsZero(); h.measured && r.Verdict == reach.Unknown {
		h.printLine(r.At, "not proven", h.granted, oneLine(libraryText(r.Reason)))
	}
}

// attemptAfterLoss returns the time of the next attempt for a lost mapping. If the event does
// not report a failed attempt, the next attempt follows at once.
func (h *heldMapping) attemptAfterLoss(e forward.Event) time.Time {
	next, err := e.Mapping.Status().NextAttempt, e.Mapping.Err()
	if err == nil || err.Error() != e.Reason {
		return e.Time
	}
	h.reportedNext = next
	return next
}

// print prints an event as a line for people and, with --json, as objects for programs. next
// is the time of the next attempt, or the zero Time if nothing failed.
func (h *heldMapping) print(kind string, at time.Time, ms []backends.Mapping, r mappingRecord, next time.Time) {
	reason := oneLine(r.Reason)
	if reason != "" && reason == h.reportedReason {
		reason = "as before"
	} else if !next.IsZero() {
		h.reportedReason = reason
	}
	h.printLine(at, kind, ms, reason+nextAttemptText(next))
	if h.session.app.settings.json {
		r.Time, r.Next = jsonTime(at), jsonTime(next)
		h.session.app.printRecords(kind, ms, r)
	}
}

// printLine prints an event as a line for people.
func (h *heldMapping) printLine(at time.Time, kind string, ms []backends.Mapping, reason string) {
	what := portText(ms)
	switch {
	case h.granted != nil:
		what = mappingText(ms)
	case ms[0].Internal.Port() == 0:
		what = h.spec.name()
	}
	text := fmt.Sprintf("%s %s %s", clockText(at), kind, what)
	if reason != "" {
		text += " (" + reason + ")"
	}
	if kind == "lost" || kind == "error" || kind == "unreachable" {
		h.session.app.failuref("%s\n", text)
	} else {
		h.session.app.messagef("%s\n", text)
	}
}

// printUnmapped prints that the mappings are deleted, if they were ever granted, or which other
// program keeps them.
func (h *heldMapping) printUnmapped() {
	now := time.Now()
	var deleted []backends.Mapping
	for _, m := range h.granted {
		m.Lifetime, m.Granted = 0, time.Time{}
		if reason := h.session.app.keptBy(m); reason != "" {
			h.printEnd(now, "kept", []backends.Mapping{m}, reason)
			continue
		}
		deleted = append(deleted, m)
	}
	if len(deleted) > 0 {
		h.printEnd(now, "unmapped", deleted, "")
	}
}

// printEnd prints the last event of mappings.
func (h *heldMapping) printEnd(at time.Time, event string, ms []backends.Mapping, reason string) {
	h.printLine(at, event, ms, reason)
	if h.session.app.settings.json {
		h.session.app.printRecords(event, ms, mappingRecord{Time: jsonTime(at), Reason: reason})
	}
}

// printEndpoint prints the external endpoint of a mapping as a result.
func (s *holdSession) printEndpoint(h *heldMapping) {
	if !s.app.settings.json && !s.flags.forChild {
		s.app.resultf("%s\n", externalText(h.granted))
	}
}

// printAllGranted prints that the mappings are kept, and the remarks about them.
func (s *holdSession) printAllGranted(granted [][]backends.Mapping) {
	until := "Ctrl-C"
	if s.flags.forChild {
		until = "the command ends"
	}
	s.app.messagef("Mapped by %s. Kept alive until %s.\n", backendText(granted[0][0]), until)
	var all []grantedMapping
	for i, h := range s.mappings {
		all = append(all, grantedMapping{h.spec, granted[i]})
	}
	s.app.printRemarks(all, remarkOptions{running: !s.flags.forChild})
}

// printInterrupted prints what happens after an interrupt during the first request.
func (a *app) printInterrupted() {
	a.messagef("interrupted; deleting what the gateway may have granted; press Ctrl-C again to exit at once\n")
}

// printDeleting prints that an interrupt ended the session.
func (s *holdSession) printDeleting() {
	what, them := "the mapping", "it"
	if len(s.mappings) > 1 {
		what, them = "the mappings", "them"
	}
	s.app.messagef("deleting %s; press Ctrl-C again to leave %s on the gateway\n", what, them)
}
