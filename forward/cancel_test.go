package forward_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// If the context of Enable is cancelled while a request is in flight, the gateway
// may still create the mapping. The Forwarder deletes it when the answer arrives.
// Shutdown waits for that.
func TestEnableCancelled(t *testing.T) {
	for name, c := range map[string]struct {
		enable forward.Option
		slow   string // the request that is in flight when the context is cancelled
		wait   time.Duration
	}{
		"deleted when the answer arrives":       {forward.TCP(8080), "map tcp", time.Minute},
		"deleted by Shutdown":                   {forward.TCP(8080), "map tcp", 0},
		"the second protocol of Both":           {forward.Both(8080), "map udp", time.Minute},
		"the second protocol of Both, Shutdown": {forward.Both(8080), "map udp", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newDelayed(t, map[string]time.Duration{c.slow: 300 * time.Millisecond})
				ctx, cancel := context.WithCancel(t.Context())
				enabled := make(chan error, 1)
				go func() {
					_, err := f.Enable(ctx, c.enable)
					enabled <- err
				}()
				synctest.Wait() // the request is in flight
				if len(d.live()) == 0 {
					t.Fatal("the gateway has no mapping before the context is cancelled")
				}
				cancel()
				if err := <-enabled; !errors.Is(err, context.Canceled) {
					t.Fatalf("Enable: %v, want %v", err, context.Canceled)
				}
				if c.wait > 0 {
					time.Sleep(c.wait)
					if live := d.live(); len(live) > 0 {
						t.Errorf("%v after the cancelled Enable the gateway has %v, want nothing", c.wait, live)
					}
				}
				if err := f.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if live := d.live(); len(live) > 0 {
					t.Errorf("after Shutdown the gateway has %v, want nothing", live)
				}
			})
		})
	}
}

// The same over each protocol: the router creates the mapping, and its answer
// arrives after the context of Enable was cancelled.
func TestEnableCancelledByProtocol(t *testing.T) {
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			gw, f := startIGD(t, forward.Config{Protocols: []string{protocol}}, gatewaytest.Config{})
			cancelWhileHeld(t, gw, func(ctx context.Context) {
				if _, err := f.Enable(ctx, forward.TCP(8080)); !errors.Is(err, context.Canceled) {
					t.Errorf("Enable: %v, want %v", err, context.Canceled)
				}
			})
			wantNothingAfterShutdown(t, gw, f)
		})
	}
}

// PCP has no request for the external address: ExternalIP creates a mapping for a
// moment. The Forwarder deletes it also if the context is cancelled meanwhile.
func TestExternalIPCancelled(t *testing.T) {
	t.Run("while the mapping is requested", func(t *testing.T) {
		gw, f := start(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
		cancelWhileHeld(t, gw, func(ctx context.Context) {
			if ip, err := f.ExternalIP(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("ExternalIP: %v, %v, want %v", ip, err, context.Canceled)
			}
		})
		wantNothingAfterShutdown(t, gw, f)
	})
	t.Run("while the mapping is deleted", func(t *testing.T) {
		isUnmap := func(r gatewaytest.Request) bool { return r.Op == "unmap" }
		gw, f := start(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
		remove := gw.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			_, _ = f.ExternalIP(ctx) // the address is known already, so that it may succeed
		}()
		if _, err := gw.AwaitRequests(waiting(t), 1, isUnmap); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-returned
		remove()
		wantNothingAfterShutdown(t, gw, f)
	})
}

// cancelWhileHeld calls do and cancels its context after the router created a
// mapping. The router's answer is sent when do has returned.
func cancelWhileHeld(t *testing.T, gw *gatewaytest.Gateway, do func(context.Context)) {
	t.Helper()
	hold, created := make(chan struct{}), make(chan struct{}, 1)
	remove := gw.Inject(gatewaytest.Fault{
		Match: func(r gatewaytest.Request) bool { return r.Op == "map" },
		Hold:  hold,
		Corrupt: func(reply []byte) []byte { // called when the router made its answer
			select {
			case created <- struct{}{}:
			default:
			}
			return reply
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		do(ctx)
	}()
	select {
	case <-created:
	case <-waiting(t).Done():
		t.Error("no mapping was requested")
	}
	cancel()
	<-returned
	remove()
	close(hold)
}

// wantNothingAfterShutdown closes the Forwarder and checks the router's table.
func wantNothingAfterShutdown(t *testing.T, gw *gatewaytest.Gateway, f *forward.Forwarder) {
	t.Helper()
	if err := f.Shutdown(waiting(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if table := gw.Table(); len(table) > 0 {
		t.Errorf("after Shutdown the router has %v, want nothing", table)
	}
}
