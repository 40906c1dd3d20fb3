package forward_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// watchFails is a gateway in memory whose first Watch fails.
type watchFails struct {
	*memory
	watches atomic.Int32
}

func (b *watchFails) Watch(ctx context.Context, notify func(backends.Change)) error {
	if b.watches.Add(1) == 1 {
		return errors.New("too many open files")
	}
	return b.memory.Watch(ctx, notify)
}

// A Watch that failed is started again: a restart that the gateway announces later
// is noticed.
func TestWatchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway, events := &watchFails{memory: newMemory()}, &recorder{}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{gateway}, OnEvent: events.record})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := gateway.watches.Load(); n < 2 {
			t.Errorf("10 minutes after the first Watch failed, Watch was called %d time(s)", n)
		}
		gateway.restart()
		time.Sleep(30 * time.Second)
		if n := len(gateway.live()); n != 1 {
			t.Errorf("30 s after a restart that the gateway announced it has %d mappings, want 1", n)
		}
		events.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}
