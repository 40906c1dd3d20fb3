package discover

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var state atomic.Value
		var calls atomic.Int32
		state.Store("a")
		done := make(chan error)
		go func() {
			done <- poll(ctx, 5*time.Second, func() string { return state.Load().(string) }, func() { calls.Add(1) })
		}()
		for i, step := range []struct {
			state string
			want  int32
		}{{"a", 0}, {"b", 1}, {"b", 1}, {"a", 2}} {
			synctest.Wait()
			state.Store(step.state)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := calls.Load(); n != step.want {
				t.Errorf("step %d: %d calls, want %d", i, n, step.want)
			}
		}
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("got %v, want the cause", err)
		}
	})
}

func TestSnapshotIsStable(t *testing.T) {
	if snapshot() == "" {
		t.Error("nothing to compare")
	}
}
