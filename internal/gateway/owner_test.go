package gateway

import (
	"log/slog"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// A client that joins while the last one leaves answers for what that one could not delete.
func TestJoinWhileLastLeaves(t *testing.T) {
	var (
		r       = NewRegistry(Jitter)
		configs = []BackendConfig{{Ready: &named{name: "ready-made"}}}
		join    = func() *Client {
			c, err := r.Join(Key{}, configs, &quiet{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	)
	last := join()
	o := last.owner
	var e *entry
	o.loop.Do(func() {
		s := &Spec{Lifetime: time.Hour}
		e = o.groupOf(s).add(&entry{backend: o.backends[0], Member: Member{Protocol: backends.TCP}, spec: s})
		e.noReply()
		e.end = &ending{client: last}
		o.pend(e, backends.ErrNoReply)
		o.part(last)
	})
	next := join()
	r.leave(t.Context(), last)
	o.loop.Do(func() {
		if e.end.client != next {
			t.Error("nobody answers for the deletion")
		}
	})
	next.Abandon()
}

// quiet is a Sink that tells nobody.
type quiet struct{ Sink }

func (*quiet) RecordsChanged()       {}
func (*quiet) Handler() slog.Handler { return slog.DiscardHandler }
