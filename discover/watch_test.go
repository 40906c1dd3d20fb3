package discover

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// TestPollHints checks the interval with and without hints, and that the hints are stopped.
func TestPollHints(t *testing.T) {
	for name, test := range map[string]struct {
		openErr error
		every   time.Duration
	}{"hints": {nil, pollWithHints}, "no hints": {errMissing, pollEvery}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				stopped := false
				open := func() (<-chan struct{}, func(), error) {
					return make(chan struct{}), func() { stopped = true }, test.openErr
				}
				var state atomic.Int32
				changed := make(chan time.Time, 1)
				done := make(chan error)
				go func() {
					done <- pollHints(ctx, open, func() string { return fmt.Sprint(state.Load()) }, func() { changed <- time.Now() })
				}()
				start := time.Now()
				synctest.Wait()
				state.Store(1)
				if took := (<-changed).Sub(start); took != test.every {
					t.Errorf("the change was noticed after %v, want %v", took, test.every)
				}
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if stopped != (test.openErr == nil) {
					t.Errorf("hints stopped: %v", stopped)
				}
			})
		})
	}
}

// TestNotifier checks registrations that fail, or succeed without a handle as under Wine.
func TestNotifier(t *testing.T) {
	type result struct {
		handle uintptr
		err    error
	}
	for name, test := range map[string]struct {
		results  []result
		canceled []uintptr // by start if it fails, else by stop
		err      error
	}{
		"all succeed":        {[]result{{7, nil}, {8, nil}, {9, nil}}, []uintptr{7, 8, 9}, nil},
		"none exists":        {[]result{{0, errMissing}, {8, nil}}, nil, errMissing},
		"the last is absent": {[]result{{7, nil}, {8, nil}, {0, errMissing}}, []uintptr{7, 8}, errMissing},
		"no handle":          {[]result{{7, nil}, {0, nil}}, []uintptr{7}, errMissing},
	} {
		var canceled []uintptr
		n := notifier{cancel: func(h uintptr) error {
			canceled = append(canceled, h)
			return errMissing // is ignored
		}}
		for _, r := range test.results {
			n.register = append(n.register, func() (uintptr, error) { return r.handle, r.err })
		}
		stop, err := n.start()
		if !errors.Is(err, test.err) || (stop == nil) != (test.err != nil) {
			t.Errorf("%s: %v, want %v", name, err, test.err)
		}
		if stop != nil {
			if canceled != nil {
				t.Errorf("%s: canceled %v before the end", name, canceled)
			}
			stop()
		}
		if !slices.Equal(canceled, test.canceled) {
			t.Errorf("%s: canceled %v, want %v", name, canceled, test.canceled)
		}
	}
}
