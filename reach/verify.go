package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// sampleInterval is the pause before a measurement that failed is repeated. A fault that ends
// in that time does not make a port unreachable.
const sampleInterval = 5 * time.Second

// visitAge is how old a visit may be to count as a proof.
const visitAge = 10 * time.Minute

// The methods of evidence that needs no prober.
const (
	MethodListening = "listening"
	MethodVisit     = "visit"
)

// Default returns the probers that need no helper and contact only the router.
func Default() []Prober { return []Prober{Router(), Hairpin()} }

// Verify measures how far connections to a port get, and returns the conclusion. All probers
// work at the same time. A measurement that failed is repeated after five seconds, unless
// another one proves that the port is reachable from the internet. If catcher is nil, Verify
// uses the one that Open returns. Without probers, it uses those that Default returns.
//
// Verify obeys ctx. If ctx ends early, what was not measured by then is Unknown.
func Verify(ctx context.Context, t Target, catcher Catcher, probers ...Prober) Result {
	if len(probers) == 0 {
		probers = Default()
	}
	if t.Protocol != backends.TCP && t.Protocol != backends.UDP {
		return conclude(t, OwnerNone, []Evidence{complete(Evidence{Method: MethodListening, Err: fmt.Errorf("%w: only TCP and UDP can be measured, not %v", backends.ErrUnsupported, t.Protocol)}, t)})
	}
	if catcher == nil {
		opened, err := Open(ctx, t)
		if err != nil {
			return conclude(t, OwnerNone, []Evidence{complete(Evidence{Method: MethodListening, Level: LevelListening, Err: err}, t)})
		}
		defer opened.Close()
		catcher = opened
	}
	evidence := []Evidence{measureListening(t, catcher)}
	first := probeAll(ctx, t, catcher, probers)
	var again []int
	for i, e := range first {
		if e.Verdict == Unreachable {
			again = append(again, i)
		}
	}
	if len(again) > 0 {
		err := errProven
		if !slices.ContainsFunc(first, provesInternet) {
			err = ctxsync.Sleep(ctx, sampleInterval)
		}
		if err != nil {
			for _, i := range again {
				first[i].Verdict, first[i].Err = Unknown, fmt.Errorf("measured only once: %w", err)
			}
		} else {
			var repeated []Prober
			for _, i := range again {
				repeated = append(repeated, probers[i])
			}
			for j, e := range probeAll(ctx, t, catcher, repeated) {
				first[again[j]] = e
			}
		}
	}
	evidence = append(evidence, first...)
	if visit, ok := measureVisit(t, catcher); ok {
		evidence = append(evidence, visit)
	}
	return conclude(t, catcher.Owner(), evidence)
}

// provesInternet reports whether evidence proves that the port is reachable from the internet.
func provesInternet(e Evidence) bool {
	return e.Verdict == Reachable && e.Level == LevelInternet && !e.Inferred
}

// probeAll runs probers at the same time, each once. It ends the others as soon as one proves
// that the port is reachable from the internet.
func probeAll(ctx context.Context, t Target, catcher Catcher, probers []Prober) []Evidence {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := make([]Evidence, len(probers))
	var running sync.WaitGroup
	for i, p := range probers {
		running.Go(func() {
			out[i] = probe(ctx, t, catcher, p)
			if provesInternet(out[i]) {
				cancel(errProven)
			}
		})
	}
	running.Wait()
	return out
}

var errProven = errors.New("not needed: another measurement proved that the port is reachable")

// probe runs a prober once.
func probe(ctx context.Context, t Target, catcher Catcher, p Prober) Evidence {
	if p == nil {
		return complete(Evidence{Method: "none", Err: fmt.Errorf("%w: a nil prober", backends.ErrInvalid)}, t)
	}
	blind := catcher.Observing()
	e, err := run(ctx, t, catcher, p)
	if e.Level > LevelInternet || e.Verdict > Unreachable {
		err = cmp.Or(err, fmt.Errorf("%w: the prober returned %v at %v", backends.ErrInvalid, e.Verdict, e.Level))
		e.Level = LevelNone
	}
	e.Method, e.Err = p.Name(), cmp.Or(err, e.Err)
	if e.Err != nil {
		if e.Verdict = Unknown; errors.Is(context.Cause(ctx), errProven) {
			e.Err, e.Inferred = errProven, false
		}
	}
	blind = cmp.Or(blind, catcher.Observing(), context.Cause(ctx))
	if e.Verdict == Unreachable && blind != nil { // a connection may have arrived unobserved
		e.Verdict, e.Err = Unknown, blind
	}
	return complete(e, t)
}

// run calls Probe. If it panics, run returns an error.
func run(ctx context.Context, t Target, catcher Catcher, p Prober) (e Evidence, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			e, err = Evidence{}, fmt.Errorf("the prober panicked: %v", reason)
		}
	}()
	return p.Probe(ctx, t, catcher)
}

// complete sets the fields that are the same for all evidence.
func complete(e Evidence, t Target) Evidence {
	e.Protocol = t.Protocol
	if e.Verdict != Reachable || !e.External.IsValid() {
		e.External = t.External
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if e.Detail == "" && e.Err != nil {
		e.Detail = e.Err.Error()
	}
	return e
}

// measureVisit returns evidence if a connection from the internet was accepted recently.
func measureVisit(t Target, catcher Catcher) (Evidence, bool) {
	at, from := catcher.Visited()
	if at.IsZero() || time.Since(at) > visitAge || !t.IsFromInternet(from.Addr()) {
		return Evidence{}, false
	}
	level := LevelInternet
	if backends.ScopeOf(t.External.Addr()) != backends.ScopePublic { // the visitor may be on the way, as a router in front that forwards connections of its own network
		level = LevelRouter
	}
	return complete(Evidence{
		Method: MethodVisit, Verdict: Reachable, Level: level, From: from, To: t.Internal, At: at,
		Detail: fmt.Sprintf("a connection from %v was accepted", from),
	}, t), true
}

// conclude makes a Result of all evidence.
func conclude(t Target, owner Owner, evidence []Evidence) Result {
	r := Result{External: t.External, Evidence: evidence}
	var failed, notListening *Evidence
	for i, e := range evidence {
		if e.At.After(r.At) && e.Method != MethodVisit {
			r.At = e.At
		}
		switch {
		case e.Inferred || e.Verdict != Unreachable:
		case e.Method == MethodListening:
			notListening = &evidence[i]
		case failed == nil || e.At.After(failed.At):
			failed = &evidence[i]
		}
	}
	for _, e := range evidence {
		if e.Inferred || e.Verdict != Reachable || e.Method == MethodVisit && failed != nil && !e.At.After(failed.At) {
			continue // a visit proves nothing about the time after it
		}
		if r.Proven = max(r.Proven, e.Level); e.Level == LevelInternet && r.Reason == "" {
			r.Verdict, r.External = Reachable, e.External
			r.Reason = fmt.Sprintf("reachable from the internet at %v: %s", backends.Endpoint{AddrPort: e.External}, e.Detail)
		}
	}
	isAnswered := func(e Evidence) bool { return errors.Is(e.Err, errAnswered) }
	isDiverted := func(e Evidence) bool { return errors.Is(e.Err, errDiverted) }
	switch {
	case notListening != nil && slices.ContainsFunc(evidence, isAnswered):
		r.Verdict, r.Reason = Unknown, notListening.Detail+", but a connection to the external port was accepted: this host may forward the port to a container or to another port, or another device has it"
	case notListening != nil && slices.ContainsFunc(evidence, isDiverted):
		r.Verdict, r.Reason = Unknown, notListening.Detail+", and the router's connection did not arrive at a socket in its place: this host's firewall drops or rejects it, or this host forwards the port to a container or to another port"
	case notListening != nil:
		r.Verdict, r.Reason = Unreachable, notListening.Detail
		if r.Proven > LevelListening {
			r.Reason += "; with a socket in its place, " + arrivedText[r.Proven]
		}
	case r.Verdict == Reachable:
	case failed != nil:
		r.Verdict, r.Reason = Unreachable, failed.Detail
	case owner == OwnerNone && len(evidence) > 0 && evidence[0].Err != nil:
		r.Reason = evidence[0].Err.Error()
	default:
		r.Reason = provenText[r.Proven]
		for _, e := range evidence { // the first prober that measured from the internet says why not
			if e.Level == LevelInternet && e.Err != nil {
				r.Reason += ": " + e.Detail
				break
			}
		}
	}
	return r
}

// provenText says what is proven at each level.
var provenText = [...]string{
	LevelNone:      "nothing is proven",
	LevelListening: "a program listens; whether connections arrive was not proven",
	LevelLAN:       "the router can connect to this host; whether the internet can was not proven",
	LevelRouter:    "the router forwards the port; whether the internet reaches the router was not proven",
	LevelInternet:  "a connection from the internet arrived",
}

// arrivedText says what arrived at each level.
var arrivedText = [...]string{
	LevelLAN:      "packets of the router arrived",
	LevelRouter:   "a connection to the external port arrived",
	LevelInternet: "a connection from the internet arrived",
}

// FailsHere reports whether a port is unreachable because of this host: no program listens, or the
// firewall drops the router's connection. Another mapping would not help.
func (r Result) FailsHere() bool {
	return slices.ContainsFunc(r.Evidence, func(e Evidence) bool {
		return e.Verdict == Unreachable && e.Level <= LevelLAN && !e.Inferred
	})
}

// Combine makes one Result of the results of several ports that belong together: the verdict is
// Reachable only if all of them are reachable, and Unreachable if one of them is. Without
// results, it returns the zero Result.
func Combine(results ...Result) Result {
	if len(results) == 0 {
		return Result{}
	}
	out := results[0]
	out.Evidence = slices.Clone(out.Evidence)
	for _, r := range results[1:] {
		out.Evidence = append(out.Evidence, r.Evidence...)
		out.Proven = min(out.Proven, r.Proven)
		if r.At.After(out.At) {
			out.At = r.At
		}
		if severity(r.Verdict) > severity(out.Verdict) {
			out.Verdict, out.Reason, out.External = r.Verdict, r.Reason, r.External
		}
	}
	return out
}

func severity(v Verdict) int {
	return [...]int{Unknown: 1, Reachable: 0, Unreachable: 2}[v]
}
