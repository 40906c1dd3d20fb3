package discover

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPoll checks that notify is called once for each change of the snapshot.
func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("cause")
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

// TestPollHint checks that a snapshot is taken settleTime after a hint.
func TestPollHint(t *testing.T) {
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
			start := time.Now()
			for range 3 {
				hints <- struct{}{}
				state.Store(step.state)
				time.Sleep(settleTime / 4)
			}
			time.Sleep(settleTime)
			synctest.Wait()
			if n := calls.Load(); n != step.want {
				t.Errorf("step %d: %d calls after %v, want %d", i, n, time.Since(start), step.want)
			}
		}
		cancel()
		<-done
	})
}

func TestSnapshot(t *testing.T) {
	if snapshot() == "" {
		t.Error("the snapshot is empty")
	}
}
