package gateway

import (
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// unfinishedDelete is a deletion that an owner did not finish.
type unfinishedDelete struct {
	config BackendConfig
	entry  entry
}

// unfinishedDeletes returns the unfinished deletions, grouped by the key of their owner.
func (o *Owner) unfinishedDeletes() (out []endedOwner) {
	unfinished := o.unassigned
	for _, e := range o.allEntries() {
		if e.deletion != nil && e.state != restored {
			old := entry{
				Member: e.Member, spec: e.spec, requestedExternal: e.requestedExternal, unconfirmed: e.unconfirmed, unconfirmedUntil: e.unconfirmedUntil, granted: e.granted,
				deletion: &deletion{lastHolder: e.deletion.lastHolder},
			}
			if e.state == creating { // the request may be in flight
				old.recordNoReply()
			}
			unfinished = append(unfinished, unfinishedDelete{e.backend.config, old})
		}
	}
	for _, r := range unfinished {
		key := o.key.of(r.config)
		i := slices.IndexFunc(out, func(e endedOwner) bool { return e.key == key })
		if i < 0 {
			i, out = len(out), append(out, endedOwner{key: key})
		}
		out[i].deletes = append(out[i].deletes, r)
	}
	return out
}

// takeOver adds a deletion of an ended owner. It returns false if the client has no backend
// for it.
func (c *Client) takeOver(r unfinishedDelete) bool {
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.config == r.config })
	if i < 0 {
		return false
	}
	e, g := r.entry, c.owner.groupOf(r.entry.spec)
	e.group, e.backend, e.deletion.client = g, c.backends[i], c
	c.owner.portsVary = c.owner.portsVary || e.spec.portsVary()
	others := g.entries
	if c.owner.portsVary {
		others = c.owner.allEntries()
	}
	for _, other := range others {
		if other.isSameMapping(&e) { // by the gateway's own criteria
			other.mergeUnconfirmed(&e)
			g.deleteIfEmpty()
			return true
		}
	}
	e.superseded = g.entry(e.backend.name, e.Member) != nil
	c.owner.addPendingDelete(g.add(&e), backends.ErrNoReply)
	return true
}

// mergeUnconfirmed merges a deletion of an ended owner into an entry for the same mapping. It
// has no effect on an active entry, because the grant has replaced the old mapping.
func (e *entry) mergeUnconfirmed(old *entry) {
	if e.state == active {
		return
	}
	e.unconfirmed = e.unconfirmed || old.unconfirmed || e.state == creating
	if old.unconfirmedUntil.After(e.unconfirmedUntil) {
		e.unconfirmedUntil = old.unconfirmedUntil
	}
	if m := old.granted; m != nil && (e.granted == nil || m.Granted.After(e.granted.Granted)) {
		e.granted = m
	}
}

// Restore adds a mapping of an earlier run. The first request for the same mapping takes it
// over. If there is none within the grace period, the mapping is deleted. If two files record
// the same mapping, the newer grant wins. Restore returns false if the client has no backend
// for it.
func (c *Client) Restore(r state.Record, grace time.Duration) (ok bool) {
	c.owner.loop.Do(func() { ok = c.restore(r, grace) })
	return ok
}

func (c *Client) restore(r state.Record, grace time.Duration) bool {
	o, m := c.owner, &r.Mapping
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.name == m.Backend })
	if i < 0 {
		return false
	}
	internal := netip.AddrPortFrom(m.Internal.Addr(), r.Port)
	if !o.key.Local.IsValid() { // then it is unknown whether the address is another host's
		internal = netip.AddrPortFrom(netip.Addr{}, r.Port)
	}
	s := &Spec{Internal: internal, Count: r.Count, External: m.External.Port(), Remote: m.Remote, Lifetime: m.Lifetime}
	member := Member{Protocol: m.Protocol}
	if r.Count > 1 {
		member.Offset = m.Internal.Port() - r.Port
	}
	g := o.groupOf(s)
	e := g.entry(m.Backend, member)
	switch {
	case e != nil && (e.state != restored || !m.Granted.After(e.granted.Granted)):
		if e.deletion != nil && e.deletion.client == nil {
			e.deletion.client = c
		}
		return true
	case e == nil:
		e = g.add(&entry{backend: c.backends[i], Member: member})
		o.pendingDeletes = append(o.pendingDeletes, e)
	}
	o.portsVary = o.portsVary || m.Internal.Port() != r.Port || s.portsVary()
	e.state, e.granted, e.requestedExternal, e.spec = restored, m, s.External, s
	now := time.Now()
	e.deletion = &deletion{client: c, nextAttempt: now.Add(grace), pause: firstDeleteBackoff}
	o.armRetryTimer()
	return true
}
