package forward_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// A second Close waits for the first and returns the same error, and so does each
// later one.
func TestCloseAgain(t *testing.T) {
	for name, c := range map[string]struct {
		closes  func(*forward.Forwarder, *forward.Mapping) func() error
		refusal error // of the deletion
	}{
		"Mapping":            {mappingClose, nil},
		"Mapping, refused":   {mappingClose, backends.ErrNotAuthorized},
		"Forwarder":          {forwarderClose, nil}, // holds already
		"Forwarder, refused": {forwarderClose, backends.ErrNotAuthorized},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newDelayed(t, map[string]time.Duration{"unmap tcp": time.Second})
				m := enable8080(t, f)
				d.refuse(c.refusal, 0)
				closeIt, begin := c.closes(f, m), time.Now()
				first := make(chan error, 1)
				go func() { first <- closeIt() }()
				time.Sleep(100 * time.Millisecond) // the deletion is in flight
				errs := []error{closeIt()}
				if took := time.Since(begin); took < time.Second {
					t.Errorf("the second call returned %v after %v, want it to wait for the deletion, which takes %v", errs[0], took, time.Second)
				}
				errs = append(errs, closeIt(), <-first, closeIt())
				for i, err := range errs {
					if fmt.Sprint(err) != fmt.Sprint(errs[2]) {
						t.Errorf("call %d returned %v, want what the first returned: %v", i+2, err, errs[2])
					}
				}
				if !errors.Is(errs[2], c.refusal) {
					t.Errorf("the first call returned %v, want the error %q", errs[2], c.refusal)
				}
			})
		})
	}
}

func mappingClose(_ *forward.Forwarder, m *forward.Mapping) func() error   { return m.Close }
func forwarderClose(f *forward.Forwarder, _ *forward.Mapping) func() error { return f.Close }

// A second Shutdown waits no longer than its own context, and ends nothing.
func TestShutdownWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.block = true })
		closed := make(chan error, 2)
		go func() { closed <- f.Close() }()
		synctest.Wait()
		for name, shutdown := range map[string]func(context.Context) error{"Forwarder": f.Shutdown, "Mapping": got.Shutdown} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
			begun := time.Now()
			if err := shutdown(ctx); err == nil || time.Since(begun) > time.Second/4 {
				t.Errorf("%s: %v after %v", name, err, time.Since(begun))
			}
			cancel()
		}
		if err := <-closed; !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close: %v", err)
		}
	})
}
