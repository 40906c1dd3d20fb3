package gateway

import (
	"log/slog"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestJoinWhileLastLeaves checks that a client that joins while the last one leaves becomes
// responsible for the unfinished deletions.
func TestJoinWhileLastLeaves(t *testing.T) {
	var (
		r       = NewRegistry(Jitter)
		configs = []BackendConfig{{Ready: &fakeBackend{name: "ready-made"}}}
		join    = func() *Client {
			c, err := r.Join(Key{}, configs, &recordsSink{})
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
		e.recordNoReply()
		e.deletion = &deletion{client: last}
		o.addPendingDelete(e, backends.ErrNoReply)
		o.removeClient(last)
	})
	next := join()
	r.release(t.Context(), last)
	o.loop.Do(func() {
		if e.deletion.client != next {
			t.Error("no client is responsible for the deletion")
		}
	})
	next.Discard()
}

// recordsSink is a Sink that ignores RecordsChanged.
type recordsSink struct{ Sink }

func (*recordsSink) RecordsChanged()       {}
func (*recordsSink) Handler() slog.Handler { return slog.DiscardHandler }
