package ctxsync_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/internal/ctxsync"
)

var errClosed = errors.New("closed")

// TestClose checks that Close ends the calls in progress, waits for them, and lets no new
// call begin.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls ctxsync.Calls
		const n = 3
		end := make(chan struct{})
		for range n {
			ctx, done, err := calls.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), errClosed) {
					t.Errorf("ended by %v, want %v", context.Cause(ctx), errClosed)
				}
				<-end
				done()
			}()
		}
		closed := make(chan bool, n)
		for range n {
			go func() { closed <- calls.Close(errClosed) }()
		}
		synctest.Wait()
		if len(closed) != 0 {
			t.Error("Close did not wait for the calls")
		}
		if _, _, err := calls.Begin(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("Begin after Close: %v, want %v", err, errClosed)
		}
		close(end)
		synctest.Wait()
		firsts := 0
		for range n {
			if <-closed {
				firsts++
			}
		}
		if firsts != 1 {
			t.Errorf("%d calls of Close returned true, want 1", firsts)
		}
	})
}

// TestCallEnds checks that the context of a call ends with the call and with the caller's
// context.
func TestCallEnds(t *testing.T) {
	var calls ctxsync.Calls
	ctx, end, err := calls.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end()
	if ctx.Err() == nil {
		t.Error("the call ended, but its context did not")
	}
	caller, cancel := context.WithCancelCause(t.Context())
	ctx, end, err = calls.Begin(caller)
	if err != nil {
		t.Fatal(err)
	}
	if cancel(errors.ErrUnsupported); !errors.Is(context.Cause(ctx), errors.ErrUnsupported) {
		t.Errorf("ended by %v, want %v", context.Cause(ctx), errors.ErrUnsupported)
	}
	end()
	calls.Close(errClosed)
}

// TestCallback checks that a callback may call Close, and that Close does not wait for the
// callback. When the callback returns or exits, the call continues with a context that has
// ended.
func TestCallback(t *testing.T) {
	for name, exit := range map[string]func(){"returns": func() {}, "exits": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls ctxsync.Calls
				ctx, end, err := calls.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				release, called := make(chan struct{}), make(chan struct{})
				go func() {
					defer end()
					defer func() {
						close(called)
						<-release
					}()
					calls.Callback(func() {
						defer exit()
						if !calls.Close(errClosed) || !errors.Is(context.Cause(ctx), errClosed) {
							t.Errorf("Close in a callback: the context ended by %v, want %v", context.Cause(ctx), errClosed)
						}
					})
				}()
				<-called
				closed := make(chan bool, 1)
				go func() { closed <- calls.Close(errClosed) }()
				synctest.Wait()
				if len(closed) != 0 {
					t.Error("Close did not wait for the call after its callback")
				}
				close(release)
				if <-closed {
					t.Error("the second Close returned true")
				}
			})
		})
	}
}
