package pcp

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// How long a refusal is taken to last: what the server says, but no less and no
// more than this (RFC 6887, section 8.3). Common servers say 0 where they mean
// long.
const (
	leastShort = 30 * time.Second
	leastLong  = 5 * time.Minute
	mostHold   = 30 * time.Minute
)

// hold is a refusal that still lasts.
type hold struct {
	until time.Time
	err   error
}

// holdKey is what makes requests the same.
type holdKey struct {
	protocol backends.Protocol
	internal netip.AddrPort
	external netip.AddrPort
	exact    bool
	remote   netip.AddrPort
}

func keyOf(r backends.Request) holdKey {
	return holdKey{r.Protocol, r.Internal, r.External, r.Exact, r.Remote}
}

// maxHolds bounds the refusals that are remembered.
const maxHolds = 1024

// holds are the refusals that last. The same request is not sent again in their
// time.
type holds struct {
	mu    sync.Mutex
	byKey map[holdKey]hold
}

// check returns the refusal of a request, while it lasts.
func (h *holds) check(r backends.Request, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := keyOf(r)
	held, ok := h.byKey[key]
	switch {
	case !ok:
		return nil
	case !now.Before(held.until):
		delete(h.byKey, key)
		return nil
	}
	return fmt.Errorf("%w (refused a while ago; not asked again for %v)", held.err, held.until.Sub(now).Round(time.Second))
}

// add remembers a refusal.
func (h *holds) add(r backends.Request, refusal *ResultError, err error, now time.Time) {
	least := leastShort
	if refusal.Code.long() {
		least = leastLong
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byKey == nil || len(h.byKey) >= maxHolds {
		h.byKey = map[holdKey]hold{}
	}
	h.byKey[keyOf(r)] = hold{now.Add(min(max(refusal.Lifetime, least), mostHold)), err}
}

// forget drops all refusals: the server has changed.
func (h *holds) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byKey = nil
}

// long reports whether the standard has the code last long (RFC 6887, section 7.4).
func (c ResultCode) long() bool {
	switch c {
	case NetworkFailure, NoResources, UserExceededQuota, CannotProvideExternal:
		return false
	}
	return true
}
