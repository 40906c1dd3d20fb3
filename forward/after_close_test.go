package forward_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// After Close, every method that returns an error fails with ErrClosed.
func TestAfterClose(t *testing.T) {
	for name, end := range map[string]func(*forward.Forwarder, *forward.Mapping) error{
		"the mapping is closed":   func(_ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		"the mapping is disabled": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Disable(context.Background()) },
		"the Forwarder is closed": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := forwarder(t, forward.Config{}, newMemory())
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				if err := end(f, m); err != nil {
					t.Fatal(err)
				}
				ctx := t.Context()
				wantClosed(t, map[string]error{
					"Mapping.Refresh":              m.Refresh(ctx),
					"Mapping.Refresh with options": m.Refresh(ctx, forward.External(9090)),
					"Mapping.Wait":                 m.Wait(ctx),
				})
			})
		})
	}
	t.Run("methods of the Forwarder", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := forwarder(t, forward.Config{}, newMemory())
			if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			wantClosed(t, forwarderErrors(t.Context(), f))
		})
	})
}

// forwarderErrors calls the methods of a Forwarder.
func forwarderErrors(ctx context.Context, f *forward.Forwarder) map[string]error {
	only := func(_ any, err error) error { return err }
	return map[string]error{
		"Enable":                  only(f.Enable(ctx, forward.TCP(8080))),
		"Disable":                 f.Disable(ctx),
		"Disable with a selector": f.Disable(ctx, forward.TCP(8080)),
		"DisableAll":              only(f.DisableAll(ctx)),
		"Refresh":                 f.Refresh(ctx),
		"Refresh with a selector": f.Refresh(ctx, forward.TCP(8080)),
		"ExternalIP":              only(f.ExternalIP(ctx)),
		"LocalIP":                 only(f.LocalIP(ctx)),
		"OpenExternalPort":        only(f.OpenExternalPort(ctx, backends.TCP)),
		"Mappings":                only(f.Mappings(ctx)),
		"MappingAt":               only(f.MappingAt(ctx, 0)),
		"Gateway":                 only(f.Gateway(ctx)),
		"Listen":                  only(f.Listen(ctx, "tcp", ":0")),
		"ListenPacket":            only(f.ListenPacket(ctx, "udp", ":0")),
		"Run":                     f.Run(ctx, forward.TCP(8080)),
	}
}

// wantClosed checks that every error is ErrClosed.
func wantClosed(t *testing.T, errs map[string]error) {
	t.Helper()
	for method, err := range errs {
		if !errors.Is(err, forward.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", method, err)
		}
	}
}
