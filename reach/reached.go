package reach

import (
	"net/netip"
	"sync"

	"github.com/natforward/goforward/backends"
)

// maxReached is the number of endpoints that a prober remembers, at most.
const maxReached = 4096

// reached remembers the external endpoints that a prober has reached. A prober whose connection
// never arrived may be unable to connect at all, so its failure proves nothing. The zero value is
// empty.
type reached struct {
	mu  sync.Mutex
	all map[reachedKey]bool
}

type reachedKey struct {
	protocol backends.Protocol
	external netip.AddrPort
}

// add records that an endpoint was reached.
func (r *reached) add(p backends.Protocol, external netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil || len(r.all) >= maxReached {
		r.all = map[reachedKey]bool{}
	}
	r.all[reachedKey{p, external}] = true
}

func (r *reached) has(p backends.Protocol, external netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[reachedKey{p, external}]
}
