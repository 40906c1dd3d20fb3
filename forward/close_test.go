package forward_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestClose checks that concurrent calls of Close delete each mapping once.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _ = f.Close() })
		}
		wg.Wait()
		if len(gw.live()) != 0 || !slices.Equal(gw.takeCalls(), []string{"map tcp 8080", "unmap tcp 8080"}) {
			t.Errorf("the gateway has %v", gw.live())
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Enable after Close: %v", err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("Close of a closed mapping: %v", err)
		}
	})
}

// TestCloseNoReply checks that a gateway that does not reply cannot delay Close, or calls
// in progress.
func TestCloseNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		for port := range uint16(100) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
				t.Fatal(err)
			}
		}
		gw.set(func() { gw.block = true })
		enabled := make(chan error, 1)
		go func() {
			_, err := f.Enable(t.Context(), forward.TCP(8080))
			enabled <- err
		}()
		synctest.Wait()
		start := time.Now()
		if err := f.Close(); !errors.Is(err, backends.ErrNoReply) || time.Since(start) != 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
		if err := <-enabled; !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Enable in progress: %v, want ErrClosed", err)
		}
	})
}

// TestShutdownReportsRefusal checks that Shutdown returns the refusal of a deletion.
func TestShutdownReportsRefusal(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	gw.set(func() {
		gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNotAuthorized }
	})
	if err := f.Shutdown(t.Context()); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestCloseContextEnded checks that Disable closes the mapping even if its context ends
// while a request is in flight. Waiting goroutines are notified, and the port can be
// enabled again with other options.
func TestCloseContextEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "renew" {
					<-release
				}
				return nil
			}
		})
		go func() { _ = m.Refresh(context.Background()) }()
		synctest.Wait() // the request is in flight
		changed := m.Changed()
		if err := f.Disable(canceledContext()); !errors.Is(err, context.Canceled) {
			t.Errorf("Disable: %v", err)
		}
		<-changed
		<-m.Changed() // also if Changed is called after Close
		close(release)
		synctest.Wait()
		if err := m.Close(); !errors.Is(err, context.Canceled) {
			t.Errorf("second Close: %v, want the error of the first", err)
		}
		again, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute))
		if err != nil {
			t.Fatalf("Enable with another lifetime: %v", err)
		}
		if err := again.Close(); err != nil || len(gw.live()) != 0 {
			t.Errorf("Close: %v, the gateway has %v", err, gw.live())
		}
	})
}

// TestCloseDuringNotifications checks that a watcher that reports changes does not delay
// Close.
func TestCloseDuringNotifications(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		for port := range uint16(100) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			for range 8 {
				gw.changes <- backends.Change{Kind: backends.Restarted}
			}
		}()
		start := time.Now()
		if err := f.Close(); err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(start))
		}
	})
}

// TestCloseDuringRequest closes a mapping before the reply that grants it. The mapping is
// deleted after the reply. If no reply arrives, Close reports that the mapping may
// remain.
func TestCloseDuringRequest(t *testing.T) {
	for name, test := range map[string]struct {
		delay time.Duration // 0: no reply
		took  time.Duration
		want  error
	}{
		"late reply": {time.Second, time.Second, nil},
		"no reply":   {0, closeTimeout, backends.ErrNoReply},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				gw.block = test.delay == 0
				gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
					if op == "map" {
						time.Sleep(test.delay)
					}
					return nil
				}
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the request is in flight
				start := time.Now()
				if err := m.Close(); !errors.Is(err, test.want) {
					t.Errorf("Close: %v, want %v", err, test.want)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("Close took %v, want %v", took, test.took)
				}
				if live := gw.live(); len(live) != 0 {
					t.Errorf("the gateway has %v", live)
				}
			})
		})
	}
}

// TestCloseRepeated checks that a second Close waits for the first, and that every later
// Close returns the same error.
func TestCloseRepeated(t *testing.T) {
	for name, c := range map[string]struct {
		method  func(*forward.Forwarder, *forward.Mapping) func() error
		refusal error // of the deletion
	}{
		"Mapping":            {mappingClose, nil},
		"Mapping, refused":   {mappingClose, backends.ErrNotAuthorized},
		"Forwarder":          {forwarderClose, nil},
		"Forwarder, refused": {forwarderClose, backends.ErrNotAuthorized},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newSlowGateway(t, map[string]time.Duration{"unmap tcp": time.Second})
				m := enable8080(t, f)
				d.refuseDeletions(c.refusal, 0)
				closeFunc, start := c.method(f, m), time.Now()
				first := make(chan error, 1)
				go func() { first <- closeFunc() }()
				time.Sleep(100 * time.Millisecond) // the deletion is in flight
				errs := []error{closeFunc()}
				if took := time.Since(start); took < time.Second {
					t.Errorf("the second call returned %v after %v, want it to wait for the deletion, which takes %v", errs[0], took, time.Second)
				}
				errs = append(errs, closeFunc(), <-first, closeFunc())
				for i, err := range errs {
					if fmt.Sprint(err) != fmt.Sprint(errs[2]) {
						t.Errorf("call %d returned %v, want the error of the first call: %v", i+2, err, errs[2])
					}
				}
				if !errors.Is(errs[2], c.refusal) {
					t.Errorf("the first call returned %v, want the error %q", errs[2], c.refusal)
				}
			})
		})
	}
}

// mappingClose returns the method Close of the mapping.
func mappingClose(_ *forward.Forwarder, m *forward.Mapping) func() error { return m.Close }

// forwarderClose returns the method Close of the Forwarder.
func forwarderClose(f *forward.Forwarder, _ *forward.Mapping) func() error { return f.Close }

// TestShutdownWhileClosing checks that the context of a second Shutdown limits its wait,
// and does not end the first one.
func TestShutdownWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.block = true })
		closed := make(chan error, 2)
		go func() { closed <- f.Close() }()
		synctest.Wait()
		for name, shutdown := range map[string]func(context.Context) error{"Forwarder": f.Shutdown, "Mapping": m.Shutdown} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
			start := time.Now()
			if err := shutdown(ctx); err == nil || time.Since(start) > time.Second/4 {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
			cancel()
		}
		if err := <-closed; !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close: %v", err)
		}
	})
}

const (
	// closeTimeout limits Close if the gateway does not reply.
	closeTimeout = 2 * time.Second
	// maxCloseTime limits Close while the gateway replies.
	maxCloseTime = 15 * time.Second
)

// TestCloseBoundNoReply checks that Close takes two seconds at most on a gateway that
// does not reply, and that its error names the mapping that remains. This also holds if
// the backend ignores its context.
func TestCloseBoundNoReply(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *forward.Forwarder) (closeFunc func() error, port uint16){
		"Mapping": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			return enable8080(t, f).Close, 8080
		},
		"Forwarder": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			enable8080(t, f)
			return f.Close, 8080
		},
		"Listener": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			ln := listenMapped(t, f, "tcp4")
			return ln.Close, ln.External().Port()
		},
		"PacketConn": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			pc, err := f.ListenPacket(t.Context(), "udp4", ":0")
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the mapping is granted
			return pc.Close, pc.External().Port()
		},
	} {
		for suffix, ignore := range map[string]bool{"": false, ", the backend ignores contexts": true} {
			t.Run(name+suffix, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d, f := newSlowGateway(t, nil)
					closeFunc, port := open(t, f)
					d.set(func() { d.unmapReplies, d.ignoreContext = 0, ignore })
					start := time.Now()
					err := closeFunc()
					if took := time.Since(start); took > closeTimeout {
						t.Errorf("Close took %v, want at most %v", took, closeTimeout)
					}
					if err == nil || !strings.Contains(err.Error(), strconv.Itoa(int(port))) {
						t.Errorf("Close: %v, want an error that names port %d, because its mapping remains", err, port)
					}
				})
			})
		}
	}
}

// TestCloseBoundPending checks that Close takes no longer if the first request has not
// got a reply yet.
func TestCloseBoundPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := newSlowGateway(t, map[string]time.Duration{"map tcp": dropRequest})
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the request is in flight
		start := time.Now()
		err = m.Close()
		if took := time.Since(start); took > closeTimeout {
			t.Errorf("Close: %v after %v, want it to take at most %v", err, took, closeTimeout)
		}
	})
}

// TestDeletionRetriedAfterClose checks that a deletion without a reply is retried after
// Mapping.Close.
func TestDeletionRetriedAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newSlowGateway(t, nil)
		m := enable8080(t, f)
		d.set(func() { d.unmapReplies = 0 })
		start := time.Now()
		if err := m.Close(); err == nil {
			t.Error("Close: nil, but the mapping remains")
		}
		d.set(func() { d.unmapReplies = -1 })
		if took := time.Since(start); took > closeTimeout {
			t.Errorf("Close took %v, want at most %v", took, closeTimeout)
		}
		time.Sleep(2 * time.Minute)
		if live := d.live(); len(live) > 0 {
			t.Errorf("two minutes after the gateway replies again it has %v, want no mappings", live)
		}
	})
}

// TestCloseBoundSlowGateway checks that Close of a Forwarder continues while the gateway
// replies, for fifteen seconds at most, and returns an error if a mapping remains.
func TestCloseBoundSlowGateway(t *testing.T) {
	const perDeletion = 60 * time.Millisecond
	for name, c := range map[string]struct {
		mappings, replies int
		maxDuration       time.Duration
		remaining         int // mappings at most
	}{
		"all deleted":      {50, -1, 3 * 50 * perDeletion, 0},
		"the replies stop": {50, 10, 10*perDeletion + closeTimeout, 40},
		"not enough time":  {400, -1, maxCloseTime, 400 - 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newSlowGateway(t, map[string]time.Duration{"unmap tcp": perDeletion})
				for i := range c.mappings {
					if _, err := f.Enable(t.Context(), forward.TCP(uint16(1024+i))); err != nil {
						t.Fatal(err)
					}
				}
				d.set(func() { d.unmapReplies = c.replies })
				start := time.Now()
				err := f.Close()
				took, remaining := time.Since(start), len(d.live())
				if remaining > c.remaining || took > c.maxDuration {
					t.Errorf("after Close, which took %v, the gateway has %d of %d mappings, want at most %d after at most %v",
						took, remaining, c.mappings, c.remaining, c.maxDuration)
				}
				if (err != nil) != (remaining > 0) {
					t.Errorf("Close: %v, but the gateway has %d mappings", err, remaining)
				}
			})
		})
	}
}

// TestCloseOfManyMappings checks that Close deletes fifty mappings from a gateway that needs
// 60 ms for each reply, and that it leaves the mapping of another host.
func TestCloseOfManyMappings(t *testing.T) {
	t.Parallel()
	const count, perReply = 50, 60 * time.Millisecond
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			gw, f := gatewayWithUPnP(t, forward.Config{Protocols: []string{protocol}}, gatewaytest.Config{Protocols: []string{protocol}})
			foreign := gatewaytest.Entry{
				Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 1023),
				Internal: netip.MustParseAddrPort("192.0.2.33:80"), Remaining: time.Hour,
			}
			if err := gw.AddMapping(foreign); err != nil {
				t.Fatal(err)
			}
			for i := range uint16(count) {
				if _, err := f.Enable(t.Context(), forward.TCP(1024+i)); err != nil {
					t.Fatal(err)
				}
			}
			defer gw.Inject(gatewaytest.Fault{Delay: perReply})()
			gw.ResetStats()
			start := time.Now()
			if err := f.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			t.Logf("Close took %v, with these requests: %v", time.Since(start), gw.Stats().Requests)
			if table := gw.Table(); len(table) != 1 || table[0].External != foreign.External {
				t.Errorf("the table has %d entries, want only the one of the other host: %v", len(table), table)
			}
		})
	}
}

// TestCloseTimeout checks that Config.CloseTimeout limits each Close if the gateway does
// not reply. A longer timeout than the default one gives the deletion more time.
func TestCloseTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{100 * time.Millisecond, 20 * time.Second} {
		for name, closeFunc := range map[string]func(*forward.Forwarder, *forward.Mapping) error{
			"Forwarder": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
			"Mapping":   func(_ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		} {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{CloseTimeout: timeout}, gw)
				m, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				gw.set(func() { gw.block = true })
				start := time.Now()
				err = closeFunc(f, m)
				if took := time.Since(start); !errors.Is(err, backends.ErrNoReply) || took > timeout || took < min(timeout, forward.DefaultCloseTimeout+time.Second) {
					t.Errorf("%s: %v after %v, with a timeout of %v", name, err, took, timeout)
				}
				gw.set(func() { gw.block = false })
				_ = f.Close()
			})
		}
	}
}

// TestAfterClose checks that every method that returns an error fails with ErrClosed
// after Close.
func TestAfterClose(t *testing.T) {
	for name, closeFunc := range map[string]func(*forward.Forwarder, *forward.Mapping) error{
		"the mapping is closed":   func(_ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		"the mapping is disabled": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Disable(context.Background()) },
		"the Forwarder is closed": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newForwarder(t, forward.Config{}, newFakeGateway())
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				if err := closeFunc(f, m); err != nil {
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
			f := newForwarder(t, forward.Config{}, newFakeGateway())
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

// forwarderErrors calls the methods of a Forwarder, and returns their errors.
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

// TestShutdownAwaitsClose checks that Shutdown waits for every Mapping.Close in progress:
// if it returns nil, the gateway has no mapping.
func TestShutdownAwaitsClose(t *testing.T) {
	// With more threads than processors, each may be preempted at any point.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const (
		duration = 4 * time.Second
		mappings = 4
	)
	rounds := 0
	for start := time.Now(); time.Since(start) < duration; rounds++ {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		var held []*forward.Mapping
		for port := range uint16(mappings) {
			m, err := f.Enable(t.Context(), forward.TCP(8080+port))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, m)
		}
		var closing sync.WaitGroup
		start := make(chan struct{})
		for _, m := range held {
			closing.Go(func() {
				<-start
				if err := m.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		close(start)
		err := f.Shutdown(t.Context())
		remaining := gw.live()
		closing.Wait()
		if err != nil {
			t.Fatalf("Shutdown: %v", err)
		}
		if len(remaining) > 0 {
			t.Fatalf("round %d: Shutdown returned nil, but the gateway still has %d mappings, the first at %v", rounds, len(remaining), remaining[0].External)
		}
	}
	t.Logf("%d rounds", rounds)
}

// TestCloseAfterRouteChange checks that Close does not report a mapping that remains at
// the gateway of an earlier default route. This also holds if the deletion is in flight,
// or has just failed. Such a mapping is logged.
func TestCloseAfterRouteChange(t *testing.T) {
	for name, delay := range map[string]time.Duration{"failed": 0, "in flight": time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				oldGateway, newGateway := newFakeGateway(), newFakeGateway()
				f, err := forward.New(nil)
				if err != nil {
					t.Fatal(err)
				}
				gateway := netip.MustParseAddr("192.0.2.1")
				f.SetRoute(gateway, localAddr, oldGateway)
				mapping := enable8080(t, f)
				oldGateway.set(func() {
					oldGateway.fail = func(string, backends.Protocol, uint16) error {
						time.Sleep(delay)
						return backends.ErrNoReply
					}
				})
				f.SetRoute(gateway, netip.MustParseAddr("192.0.2.11"), newGateway)
				f.NetworkChanged()
				for mapping.Err() != nil || len(newGateway.live()) == 0 || !mapping.External().IsValid() {
					<-mapping.Changed()
				}
				if err := f.Close(); err != nil {
					t.Error("Close:", err)
				}
				if live := newGateway.live(); len(live) > 0 {
					t.Errorf("the gateway has %v", live)
				}
				time.Sleep(2 * time.Minute)
			})
		})
	}
}
