package reach

import (
	"net/netip"
	"sync"
	"time"
)

// natMemory is how long a gateway may remember packets of a flow. Linux keeps UDP flows for 30
// seconds, or for 120 (180 before Linux 4.20) if both sides have sent. RFC 4787 REQ-5 requires two
// minutes, and recommends five.
const natMemory = 5 * time.Minute

// maxContacts is the number of addresses that are remembered, at most.
const maxContacts = 1024

// contacted are the addresses to which the helpers' probers have sent. A gateway may filter by address:
// what arrives from one of them does not show that others are admitted.
var contacted contacts

// contacts remembers addresses for natMemory. The zero value is empty.
type contacts struct {
	mu  sync.Mutex
	all map[netip.Addr]time.Time // the last contact
}

func (c *contacts) add(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.all == nil {
		c.all = map[netip.Addr]time.Time{}
	}
	if len(c.all) >= maxContacts {
		var oldest netip.Addr
		for a, at := range c.all {
			if now.Sub(at) >= natMemory {
				delete(c.all, a)
			} else if !oldest.IsValid() || at.Before(c.all[oldest]) {
				oldest = a
			}
		}
		if len(c.all) >= maxContacts {
			delete(c.all, oldest)
		}
	}
	c.all[addr.Unmap().WithZone("")] = now
}

func (c *contacts) has(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.all[addr.Unmap().WithZone("")]
	return ok && time.Since(at) < natMemory
}
