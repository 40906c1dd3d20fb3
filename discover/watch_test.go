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
			done <- poll(ctx, 5*time.Second, nil, func() string { return state.Load().(string) }, func() { calls.Add(1) })
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

// A hint has the snapshot taken at once, less a moment in which more may change.
func TestPollHinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var state atomic.Value
		var calls atomic.Int32
		state.Store("a")
		hints := make(chan struct{}, 1)
		done := make(chan error)
		go func() {
			done <- poll(ctx, time.Hour, hints, func() string { return state.Load().(string) }, func() { calls.Add(1) })
		}()
		synctest.Wait()
		for i, step := range []struct {
			state string
			want  int32
		}{{"a", 0}, {"b", 1}, {"b", 1}, {"c", 2}} {
			begin := time.Now()
			for range 3 {
				hints <- struct{}{}
				state.Store(step.state)
				time.Sleep(settle / 4)
			}
			time.Sleep(settle)
			synctest.Wait()
			if n := calls.Load(); n != step.want {
				t.Errorf("step %d: %d calls after %v, want %d", i, n, time.Since(begin), step.want)
			}
		}
		cancel()
		<-done
	})
}

func TestSnapshotIsStable(t *testing.T) {
	if snapshot() == "" {
		t.Error("nothing to compare")
	}
}
