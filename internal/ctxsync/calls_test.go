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

// Close ends the calls under way, waits for them, and lets no other begin.
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
			t.Errorf("%d first calls of Close, want 1", firsts)
		}
	})
}

// A call that ends leaves nothing, and its context ends with it and with the caller's.
func TestEnd(t *testing.T) {
	var calls ctxsync.Calls
	ctx, end, err := calls.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end()
	if ctx.Err() == nil {
		t.Error("the context of a call that ended has not")
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

// Close does not wait for a callback, which may call it. When the callback returns, or
// ends in another way, the call goes on, with a context that has ended.
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
					t.Error("the second Close is the first")
				}
			})
		})
	}
}
