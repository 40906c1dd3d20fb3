package gateway

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Key identifies an Owner: there is one per gateway, as one of this host's addresses
// sees it, or per ready-made backend.
type Key struct {
	Gateway netip.AddrPort // with the port that was named, or the protocols' own
	Local   netip.Addr     // the effective source; the zero Addr: not known
}

// Registry holds the owners of a process. A gateway cannot tell two Forwarders of one
// host apart, so they share its owner.
type Registry struct {
	jitter func(time.Duration) time.Duration

	mu     sync.Mutex
	owners map[any]*Owner // by Key, and by ready-made backend
	ended  []ended        // owners, the oldest first
}

// ended is an owner that ended with deletions that it could not finish.
type ended struct {
	key  any
	left []remains
}

// maxEnded is for how many ended owners their pending deletions are kept.
const maxEnded = 16

// NewRegistry returns an empty registry. Jitter returns a duration from 0 to its
// argument, by which renewals and retries are spread.
func NewRegistry(jitter func(time.Duration) time.Duration) *Registry {
	return &Registry{jitter: jitter, owners: map[any]*Owner{}}
}

// keys are what an owner is known by: for ready-made backends, each of them.
func keys(key Key, specs []Spec) (out []any) {
	for _, s := range specs {
		if s.Ready != nil && key == (Key{}) {
			out = append(out, s.Ready)
		}
	}
	if len(out) == 0 {
		return []any{key}
	}
	return out
}

// Join returns a client of the owner of a gateway, which is started if it does not
// run. Specs are the backends that the client uses, the preferred first. It does no
// network I/O.
func (r *Registry) Join(key Key, specs []Spec, sink Sink) (*Client, error) {
	ks := keys(key, specs)
	r.mu.Lock()
	var o *Owner
	for _, k := range ks {
		if o == nil {
			o = r.owners[k]
		}
	}
	if o == nil {
		o = newOwner(r, key)
	}
	for _, k := range ks {
		if r.owners[k] == nil {
			r.owners[k] = o
		}
		if i := slices.IndexFunc(r.ended, func(e ended) bool { return e.key == k }); i >= 0 {
			left := r.ended[i].left
			r.ended = slices.Delete(r.ended, i, i+1)
			o.loop.Post(func() { o.inherited = append(o.inherited, left...) })
		}
	}
	o.clients++
	r.mu.Unlock()
	c := &Client{owner: o, sink: sink}
	var err error
	o.loop.Do(func() { err = o.join(c, specs) })
	if err != nil {
		c.Abandon()
		return nil, err
	}
	return c, nil
}

// leave is the inverse of Join: the last client ends the owner, and waits for that.
func (r *Registry) leave(ctx context.Context, c *Client) {
	o := c.owner
	o.loop.Do(func() { o.part(c) })
	r.mu.Lock()
	o.clients--
	last := o.clients == 0
	var key any
	for k, other := range r.owners {
		if last && other == o {
			key = k
			delete(r.owners, k)
		}
	}
	r.mu.Unlock()
	if !last {
		return
	}
	if left := o.stop(ctx); len(left) > 0 {
		r.mu.Lock()
		r.ended = append(r.ended, ended{key, left})
		r.ended = r.ended[max(0, len(r.ended)-maxEnded):]
		r.mu.Unlock()
	}
}
