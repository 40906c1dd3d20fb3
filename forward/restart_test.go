package forward_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestRestart checks that mappings are renewed at once after an announced restart.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.Both(8080))
		if err != nil {
			t.Fatal(err)
		}
		events.want(t, "mapped 8080")
		start := time.Now()
		if s := m.Status(); !s.Since.Equal(start) || s.Reason != "enabled" {
			t.Errorf("since %v, reason %q", s.Since, s.Reason)
		}
		time.Sleep(time.Minute)
		gw.takeCalls()
		gw.restart()
		synctest.Wait() // no time passes
		if s := m.Status(); !s.Since.Equal(start.Add(time.Minute)) || s.Reason != "test" {
			t.Errorf("since %v, reason %q", s.Since, s.Reason)
		}
		if len(gw.live()) != 2 {
			t.Errorf("the gateway has %v", gw.live())
		}
		events.want(t, "lost 0", "restored 8080")
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}

		// After an announcement the mappings are checked, but nothing has changed.
		gw.changes <- backends.Change{Kind: backends.Announced}
		time.Sleep(10 * time.Second)
		if n := len(gw.takeCalls()); n != 2 {
			t.Errorf("%d requests after an announcement", n)
		}
		events.want(t)

		// Many restarts in a short time cause one round of renewals in five seconds.
		for range 50 {
			gw.changes <- backends.Change{Kind: backends.Restarted}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		if n := len(gw.takeCalls()); n < 4 || n > 8 {
			t.Errorf("%d requests after many announced restarts", n)
		}
	})
}

// TestGatewayRestart checks that the mapping is restored after a restart that the gateway
// announces.
func TestGatewayRestart(t *testing.T) {
	gw, f := gatewayWithAnnouncements(t)
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	gw.Advance(time.Hour)
	if _, err := f.ExternalIP(t.Context()); err != nil { // the Forwarder receives an epoch of one hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	awaitRemapped(t, gw)
	if err := m.Wait(testContext(t)); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Wait: %v; the gateway has %v", err, gw.Table())
	}
}

// TestRetryAfterFailedCheck checks that a mapping is checked again soon if the check
// after an announcement was refused. The connection of the gateway may be up a moment
// later.
func TestRetryAfterFailedCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNetworkFailure }
			gw.table = map[fakeKey]backends.Mapping{}
		})
		gw.changes <- backends.Change{Kind: backends.Announced}
		time.Sleep(3 * time.Second)
		gw.set(func() { gw.fail = nil })
		time.Sleep(5 * time.Second)
		if len(gw.live()) != 1 || m.Err() != nil {
			t.Errorf("the gateway has %v, error %v", gw.live(), m.Err())
		}
	})
}

// TestAnnouncementEndsBackoff checks that an announcement ends the pause of a mapping in
// the background that was refused from the start.
func TestAnnouncementEndsBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNotAuthorized }
		})
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // by now the pauses are long
		gw.set(func() { gw.fail = nil })
		gw.changes <- backends.Change{Kind: backends.Announced}
		synctest.Wait() // no time passes
		if len(gw.live()) != 1 || m.Err() != nil {
			t.Errorf("the gateway has %v, error %v", gw.live(), m.Err())
		}
	})
}

// TestRestartAfterExpiry checks that an announced restart also ends the pause of an
// expired mapping.
func TestRestartAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute)); err != nil {
			t.Fatal(err)
		}
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNoReply }
		})
		time.Sleep(time.Hour)
		events.want(t, "mapped 8080", "failed 8080", "lost 0", "failed 0")
		gw.set(func() { gw.fail = nil })
		gw.restart()
		events.want(t, "restored 8080") // no time passes
	})
}

// TestGrantAfterRestartNotRenewed checks that a mapping that was granted after the
// gateway lost its state is not requested again.
func TestGrantAfterRestartNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		restarted := time.Now()
		time.Sleep(time.Second)
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		gw.takeCalls()
		time.Sleep(time.Second)
		gw.changes <- backends.Change{Kind: backends.Restarted, Since: restarted}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil { // it was granted before UDP
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestRestartBetweenGrants checks that a restart between the grants of the two protocols
// of a mapping reverses their order permanently.
func TestRestartBetweenGrants(t *testing.T) {
	for name, afterEnable := range map[string]bool{"announced during Enable": false, "announced after Enable": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				enableSequentially(t, f, forward.TCP(9)) // starts the watch of the gateway
				gw.set(func() {
					gw.sendsLate = true
					gw.fail = func(_ string, p backends.Protocol, _ uint16) error {
						if p == backends.UDP {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				enabled := make(chan error, 1)
				go func() {
					_, err := f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(time.Hour))
					enabled <- err
				}()
				time.Sleep(time.Second)
				restarted := time.Now()
				if afterEnable {
					if err := <-enabled; err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				gw.takeCalls()
				gw.changes <- backends.Change{Kind: backends.Restarted, Since: restarted}
				if !afterEnable {
					if err := <-enabled; err != nil {
						t.Fatal(err)
					}
				}
				for _, after := range []time.Duration{10 * time.Second, time.Hour} {
					time.Sleep(after)
					var order []string
					for _, call := range gw.takeCalls() {
						if strings.HasSuffix(call, " 8080") {
							order = append(order, call)
						}
					}
					if len(order) < 2 || len(order)%2 != 0 {
						t.Fatalf("requests %q", order)
					}
					for i, call := range order {
						if want := []string{"renew udp 8080", "renew tcp 8080"}[i%2]; call != want {
							t.Errorf("call %d of %q, want %q", i, order, want)
						}
					}
				}
			})
		})
	}
}

// TestPortGroupAfterRestart checks that the protocols of one internal port are renewed at
// once after a restart, one after the other.
func TestPortGroupAfterRestart(t *testing.T) {
	for name, timeKnown := range map[string]bool{"with time": true, "without time": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				enableSequentially(t, f, forward.UDP(8080), forward.TCP(8080))
				gw.takeCalls()
				change := backends.Change{Kind: backends.Restarted}
				if timeKnown {
					change.Since = time.Now()
				}
				time.Sleep(time.Second)
				gw.changes <- change
				synctest.Wait()
				if diff := cmp.Diff([]string{"renew udp 8080", "renew tcp 8080"}, gw.takeCalls()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestGrantOrderAfterRestart checks the order of renewals on one internal port after a
// restart. A mapping that was granted after the restart, but before the restart was
// noticed, precedes the mappings that are requested afterwards. The time of its reply
// does not matter.
func TestGrantOrderAfterRestart(t *testing.T) {
	for name, c := range map[string]struct{ slowRenewal, both, sendsLate bool }{
		"reply before announcement":        {},
		"reply after announcement":         {slowRenewal: true},
		"sent after announcement":          {slowRenewal: true, sendsLate: true},
		"both replies before announcement": {both: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				enableSequentially(t, f, forward.TCP(8080), forward.UDP(8080))
				gw.set(func() {
					gw.sendsLate = c.sendsLate
					gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
						if c.slowRenewal && op == "renew" {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				refreshed := make(chan error, 1)
				restarted := time.Now()
				go func() { refreshed <- f.Refresh(t.Context(), forward.UDP(8080)) }()
				time.Sleep(time.Second)
				if c.both {
					if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				gw.changes <- backends.Change{Kind: backends.Restarted, Since: restarted}
				if err := <-refreshed; err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // the mappings of one port wait for each other
				gw.set(func() { gw.fail = nil })
				gw.takeCalls()
				if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew tcp 8080"}, gw.takeCalls()); diff != "" {
					t.Errorf("UDP was granted before TCP, so only TCP is renewed: %s", diff)
				}
				if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew udp 8080", "renew tcp 8080"}, gw.takeCalls()); diff != "" {
					t.Errorf("TCP was granted after UDP, so both are renewed: %s", diff)
				}
			})
		})
	}
}

// TestGrantBeforeRestart checks that a mapping that was granted before a restart counts
// as lost, even if the reply arrives after the announcement.
func TestGrantBeforeRestart(t *testing.T) {
	for name, firstRequest := range map[string]bool{"Enable": true, "Refresh": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{CloseTimeout: 10 * time.Second}, gw) // more than the deletion takes
				defer f.Close()
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				request := func() error {
					_, err := f.Enable(t.Context(), forward.UDP(8080))
					return err
				}
				if !firstRequest {
					if err := request(); err != nil {
						t.Fatal(err)
					}
					request = func() error { return f.Refresh(t.Context(), forward.UDP(8080)) }
				}
				time.Sleep(time.Second)
				gw.set(func() {
					gw.fail = func(_ string, p backends.Protocol, _ uint16) error {
						if p == backends.UDP {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				done := make(chan error, 1)
				go func() { done <- request() }()
				time.Sleep(time.Second)
				gw.changes <- backends.Change{Kind: backends.Restarted, Since: time.Now()}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // the mappings of one port wait for each other
				gw.takeCalls()
				if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew udp 8080"}, gw.takeCalls()); diff != "" {
					t.Errorf("TCP was granted before UDP, so only UDP is renewed: %s", diff)
				}
			})
		})
	}
}

// failingWatchGateway is a fakeGateway whose first Watch fails.
type failingWatchGateway struct {
	*fakeGateway
	watches atomic.Int32
}

func (b *failingWatchGateway) Watch(ctx context.Context, notify func(backends.Change)) error {
	if b.watches.Add(1) == 1 {
		return errors.New("too many open files")
	}
	return b.fakeGateway.Watch(ctx, notify)
}

// TestWatchRestarted checks that a failed Watch is started again, so that a restart that
// the gateway announces later is noticed.
func TestWatchRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := &failingWatchGateway{fakeGateway: newFakeGateway()}, &eventRecorder{}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{gw}, OnEvent: events.record})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if n := gw.watches.Load(); n < 2 {
			t.Errorf("10 minutes after the first Watch failed, Watch was called %d time(s)", n)
		}
		gw.restart()
		time.Sleep(30 * time.Second)
		if n := len(gw.live()); n != 1 {
			t.Errorf("30 s after an announced restart the gateway has %d mappings, want 1", n)
		}
		events.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}
