package reach

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxStunFlows is the number of flows that are remembered, at most.
	maxStunFlows = 4096
	// confirmWithin is how long after a missing answer another one may confirm it.
	confirmWithin = 6 * sampleInterval
)

// sharedStunFlows has the flows of all probers of this process: gateways do not distinguish them.
var sharedStunFlows stunFlows

// stunFlows remembers the flows from STUN servers to external endpoints for natMemory. A flow is
// an endpoint of a server with an external endpoint: both ports are fixed, so the gateway may
// remember it. The zero value is empty.
type stunFlows struct {
	mu  sync.Mutex
	all map[stunFlowKey]stunFlowUse
}

type stunFlowKey struct{ source, external netip.AddrPort }

// stunFlowUse is the last use of a flow.
type stunFlowUse struct {
	at       time.Time
	end      stunFlowEnd
	internal netip.AddrPort
}

// stunFlowEnd says how a measurement ended.
type stunFlowEnd uint8

const (
	flowTaken   stunFlowEnd = iota // it has not ended, or has no result
	flowArrived                    // the answer arrived
	flowMissed                     // it did not
)

// stunFlow is a flow that one measurement uses.
type stunFlow struct {
	stunFlowKey
	internal netip.AddrPort
	// confirms means that the gateway may remember an arrival through the flow, at the same internal
	// endpoint. Then only a missing answer shows anything.
	confirms bool
	before   stunFlowUse // zero: it was not used
}

// take returns a flow from one of these sources. A flow that the gateway has forgotten is preferred. If
// an answer through another flow was missing a moment ago, a flow through which one had arrived will do:
// if it is missing there too, then neither the mapping nor the gateway's memory lets it in.
// Without such a flow, take fails.
func (f *stunFlows) take(external, internal netip.AddrPort, sources ...netip.AddrPort) (stunFlow, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	var rested, confirming *stunFlow
	var last stunFlowUse
	wait := natMemory
	for _, source := range sources {
		flow := &stunFlow{stunFlowKey: stunFlowKey{source, external}, internal: internal}
		flow.before = f.all[flow.stunFlowKey]
		age := now.Sub(flow.before.at)
		switch {
		case flow.before.at.IsZero() || age >= natMemory:
			if rested == nil || flow.before.at.Before(rested.before.at) {
				rested = flow
			}
		case flow.before.end == flowArrived && flow.before.internal == internal:
			confirming = flow
		}
		if flow.before.at.After(last.at) {
			last = flow.before
		}
		wait = min(wait, natMemory-age)
	}
	flow := rested
	if flow == nil && confirming != nil && last.end == flowMissed && now.Sub(last.at) < confirmWithin {
		flow = confirming
		flow.confirms = true
	}
	if flow == nil {
		wait = wait.Truncate(time.Second) + time.Second
		return stunFlow{}, fmt.Errorf("both of its other endpoints were used a short time ago, so the router may remember them: it can measure %v again in %v", external, wait)
	}
	if _, ok := f.all[flow.stunFlowKey]; !ok && len(f.all) >= maxStunFlows && !f.prune(now) {
		return stunFlow{}, fmt.Errorf("%d measurements were made a short time ago: it can measure again in %v", len(f.all), natMemory)
	}
	f.set(flow.stunFlowKey, stunFlowUse{at: now, internal: internal})
	return *flow, nil
}

// used records the end of a measurement.
func (f *stunFlows) used(flow stunFlow, end stunFlowEnd) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(flow.stunFlowKey, stunFlowUse{at: time.Now(), end: end, internal: flow.internal})
}

// undo records that nothing was sent through the flow.
func (f *stunFlows) undo(flow stunFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if flow.before.at.IsZero() {
		delete(f.all, flow.stunFlowKey)
		return
	}
	f.set(flow.stunFlowKey, flow.before)
}

func (f *stunFlows) set(key stunFlowKey, use stunFlowUse) {
	if f.all == nil {
		f.all = map[stunFlowKey]stunFlowUse{}
	}
	f.all[key] = use
}

// prune forgets what the gateways have forgotten. It returns false if nothing was.
func (f *stunFlows) prune(now time.Time) bool {
	before := len(f.all)
	for key, use := range f.all {
		if now.Sub(use.at) >= natMemory {
			delete(f.all, key)
		}
	}
	return len(f.all) < before
}
