package forward_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
)

// Run returns when its mapping is closed, although its context goes on.
func TestRunMappingClosed(t *testing.T) {
	for name, disable := range map[string]func(context.Context, *forward.Forwarder) error{
		"Disable": func(ctx context.Context, f *forward.Forwarder) error { return f.Disable(ctx) },
		"Disable with a selector": func(ctx context.Context, f *forward.Forwarder) error {
			return f.Disable(ctx, forward.TCP(8080))
		},
		"DisableAll": func(ctx context.Context, f *forward.Forwarder) error {
			_, err := f.DisableAll(ctx)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				returned := make(chan error, 1)
				go func() { returned <- f.Run(ctx, forward.TCP(8080)) }()
				synctest.Wait()
				if len(m.live()) != 1 {
					t.Fatalf("the gateway has %v, want the mapping of Run", m.live())
				}
				if err := disable(t.Context(), f); err != nil || len(m.live()) != 0 {
					t.Fatalf("%s: %v, the gateway has %v", name, err, m.live())
				}
				time.Sleep(time.Minute)
				select {
				case <-returned:
				default:
					t.Errorf("Run still blocks a minute after %s removed its mapping, want it to return", name)
					cancel()
					<-returned
				}
			})
		})
	}
}
