package cli

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/forward"
)

// TestExactInOrder checks that mappings with --exact are requested one after another, and
// others at the same time. The requests are invalid, so that nothing is sent.
func TestExactInOrder(t *testing.T) {
	t.Parallel()
	for exact, want := range map[bool]int32{true: 0, false: 1} {
		synctest.Test(t, func(t *testing.T) {
			f, err := forward.New(&forward.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			release := make(chan struct{})
			var begun atomic.Int32
			all := enableAll(t.Context(), f, []*spec{{exact: exact}, {exact: exact}}, func(i int) []forward.Option {
				if i == 0 {
					<-release
				}
				begun.Add(1)
				return []forward.Option{nil}
			})
			synctest.Wait()
			if got := begun.Load(); got != want {
				t.Errorf("exact %v: %d other requests begun during the first, want %d", exact, got, want)
			}
			close(release)
			for _, one := range all {
				<-one.done
			}
			if got := begun.Load(); got != 2 {
				t.Errorf("exact %v: %d requests, want 2", exact, got)
			}
		})
	}
}
