package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/gateway"
)

// TestPendingDelete checks that a deletion without a reply is retried until the gateway
// replies. It is not retried while the mapping is enabled again, or after the end of its
// lifetime.
func TestPendingDelete(t *testing.T) {
	errSilent := backends.ErrNoReply
	for name, c := range map[string]struct {
		err       error
		action    func(t *testing.T, f *forward.Forwarder, gw *fakeGateway)
		want      []string
		remaining int
	}{
		"no reply for some time": {
			err: errSilent,
			action: func(_ *testing.T, _ *forward.Forwarder, gw *fakeGateway) {
				time.Sleep(10 * time.Second)
				gw.refuseDeletions(nil, 0)
				time.Sleep(10 * time.Second)
			},
			want: []string{"unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080"},
		},
		"closed before the next attempt": {
			err: errSilent,
			action: func(t *testing.T, f *forward.Forwarder, gw *fakeGateway) {
				gw.refuseDeletions(nil, 0)
				if err := f.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			},
			want: []string{"unmap tcp 8080", "unmap tcp 8080"},
		},
		"closed without a reply": {
			err: errSilent,
			action: func(t *testing.T, f *forward.Forwarder, _ *fakeGateway) {
				if err := f.Shutdown(t.Context()); !errors.Is(err, errSilent) {
					t.Errorf("Shutdown: %v", err)
				}
			},
			want:      []string{"unmap tcp 8080", "unmap tcp 8080"},
			remaining: 1,
		},
		"refused": {
			err:       backends.ErrNotAuthorized,
			action:    func(*testing.T, *forward.Forwarder, *fakeGateway) { time.Sleep(10 * time.Minute) },
			want:      []string{"unmap tcp 8080", "unmap tcp 8080"},
			remaining: 1,
		},
		"enabled again": {
			err: errSilent,
			action: func(t *testing.T, f *forward.Forwarder, gw *fakeGateway) {
				gw.refuseDeletions(nil, 0)
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
			},
			want:      []string{"unmap tcp 8080", "map tcp 8080"},
			remaining: 1,
		},
		"expired": {
			err: errSilent,
			action: func(_ *testing.T, _ *forward.Forwarder, gw *fakeGateway) {
				time.Sleep(forward.DefaultLifetime)
				gw.refuseDeletions(nil, 0)
				gw.takeCalls()
				time.Sleep(24 * time.Hour)
			},
			want: nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				mapping, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				gw.takeCalls()
				gw.refuseDeletions(c.err, 0)
				if err := mapping.Close(); !errors.Is(err, c.err) {
					t.Errorf("Close: %v", err)
				}
				c.action(t, f, gw)
				synctest.Wait()
				if diff := cmp.Diff(c.want, gw.takeCalls()); diff != "" {
					t.Error(diff)
				}
				if n := len(gw.live()); n != c.remaining {
					t.Errorf("the gateway has %d mappings, want %d", n, c.remaining)
				}
				gw.refuseDeletions(nil, 0)
			})
		})
	}
}

// TestPendingDeletesOneAtATime checks that a gateway that does not reply gets one pending
// deletion at a time. When a deletion succeeds, the mappings that it may have broken are
// renewed.
func TestPendingDeletesOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		var mappings []*forward.Mapping
		for _, opt := range []forward.Option{forward.TCP(8080), forward.TCP(8081), forward.TCP(8082), forward.UDP(8082)} {
			m, err := f.Enable(t.Context(), opt)
			if err != nil {
				t.Fatal(err)
			}
			mappings = append(mappings, m)
		}
		gw.refuseDeletions(backends.ErrNoReply, 0)
		for _, m := range mappings[:3] {
			if err := m.Close(); err == nil {
				t.Error("Close returned nil, but the gateway does not reply")
			}
		}
		synctest.Wait()
		gw.takeCalls()
		time.Sleep(1500 * time.Millisecond)
		if diff := cmp.Diff([]string{"unmap tcp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		gw.refuseDeletions(nil, 0)
		time.Sleep(10 * time.Second)
		want := []string{"unmap tcp 8081", "unmap tcp 8082", "renew udp 8082", "unmap tcp 8080"} // in rotation
		calls := gw.takeCalls()
		slices.Sort(calls[min(2, len(calls)):]) // two ports at the same time, in any order
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Error(diff)
		}
	})
}

// TestPendingDeletesIndependent checks that an old pending deletion does not delay new
// ones, and that deletions are retried again after a time without any.
func TestPendingDeletesIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		failToDelete := func(port uint16) {
			t.Helper()
			mapping, err := f.Enable(t.Context(), forward.TCP(port))
			if err != nil {
				t.Fatal(err)
			}
			gw.refuseDeletions(backends.ErrNoReply, 0)
			if err := mapping.Close(); err == nil {
				t.Error("Close returned nil, but the gateway does not reply")
			}
		}
		failToDelete(8080)
		time.Sleep(10 * time.Minute) // by now the pause between attempts is one minute
		failToDelete(8081)
		gw.refuseDeletions(backends.ErrNoReply, 8081)
		time.Sleep(2 * time.Second)
		if n := len(gw.live()); n != 1 {
			t.Errorf("%d mappings, want only the one without a reply", n)
		}
		gw.refuseDeletions(nil, 0)
		time.Sleep(2 * time.Minute)
		failToDelete(8082)
		gw.refuseDeletions(nil, 0)
		time.Sleep(2 * time.Second)
		if n := len(gw.live()); n != 0 {
			t.Errorf("%d mappings, want none", n)
		}
		failToDelete(8083)
		failToDelete(8083)
		gw.refuseDeletions(nil, 0)
		gw.takeCalls()
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff([]string{"unmap tcp 8083"}, gw.takeCalls()); diff != "" {
			t.Errorf("deletion pending twice: %s", diff)
		}
	})
}

// TestRollbackRetried checks that mappings that a failed attempt created are deleted when
// the gateway replies again.
func TestRollbackRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		gw.set(func() {
			gw.fail = func(op string, p backends.Protocol, _ uint16) error {
				switch {
				case op == "unmap":
					return backends.ErrNoReply
				case p == backends.UDP:
					return backends.ErrNotAuthorized
				}
				return nil
			}
		})
		if _, err := f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrNotAuthorized) {
			t.Fatal(err)
		}
		if n := len(gw.live()); n != 1 {
			t.Fatalf("the gateway has %d mappings, want 1", n)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(2 * time.Second)
		if n := len(gw.live()); n != 0 {
			t.Errorf("the gateway still has %d mappings", n)
		}
	})
}

// TestGrantAfterNoReply checks that a mapping whose request got no reply is not deleted
// if a later request for it is granted.
func TestGrantAfterNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		respond := func(first, others error) {
			gw.set(func() {
				gw.fail = func(op string, _ backends.Protocol, suggested uint16) error {
					switch {
					case op == "unmap":
						return nil
					case suggested == 8080:
						return first
					}
					return others
				}
			})
		}
		respond(backends.ErrNoReply, nil)
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.UDP(8080), forward.SamePort(), forward.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		respond(backends.ErrConflict, backends.ErrNoReply)
		time.Sleep(2 * time.Second)
		respond(nil, backends.ErrNoReply)
		time.Sleep(time.Second)
		live := gw.live()
		_ = gw.takeCalls()
		if len(live) != 1 || live[0].External.Port() != 8080 {
			t.Fatalf("the gateway has %v, want port 8080", live)
		}
		time.Sleep(10 * time.Minute)
		for _, call := range gw.takeCalls() {
			if strings.HasPrefix(call, "unmap") && strings.Contains(call, "8080") {
				t.Errorf("the mapping was deleted after it was granted: %s", call)
			}
		}
	})
}

// TestCloseReportsRefusals checks that Close reports a refused deletion, even if an
// earlier Close got no reply.
func TestCloseReportsRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		mapping := enable8080(t, f)
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		if err := mapping.Close(); !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close of the mapping: %v", err)
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNotAuthorized) })
		time.Sleep(time.Minute)
		if err := f.Close(); !errors.Is(err, backends.ErrNotAuthorized) {
			t.Errorf("Close returned %v, and the gateway has %v", err, gw.live())
		}
	})
}

// TestDeletionRefusedOnce checks that a refused deletion is attempted a second time, and
// that Close returns nil if this succeeds.
func TestDeletionRefusedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		enable8080(t, f)
		refusals := 0
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error {
				if refusals++; refusals == 1 {
					return backends.ErrNotAuthorized
				}
				return nil
			}
		})
		if err := f.Close(); err != nil || len(gw.live()) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", err, gw.live())
		}
	})
}

// TestNoReplyKeepsLongerLifetime checks that a request for a short lifetime does not
// shorten the retries for an earlier mapping whose request got no reply.
func TestNoReplyKeepsLongerLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		b := &lossyGateway{fakeGateway: gw}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		enable := func(opts ...forward.Option) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := f.Enable(ctx, append(opts, forward.TCP(8080))...); err == nil {
				t.Fatal("Enable succeeded")
			}
		}
		enable(forward.Lifetime(time.Hour)) // the gateway grants it, but the reply is lost
		if len(gw.live()) == 0 {
			t.Fatal("the gateway did not grant the mapping")
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		enable(forward.Lifetime(2 * time.Minute))
		gw.set(func() { gw.fail = failAll(backends.ErrConflict) })
		enable(forward.Lifetime(3 * time.Minute))
		time.Sleep(20 * time.Minute)
		b.delivers.Store(true)
		gw.set(func() { gw.fail = nil })
		time.Sleep(2 * time.Minute)
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}

// TestRetriesTakeTurns checks that a deletion that never gets a reply does not prevent
// the retries of other deletions.
func TestRetriesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		first := enable8080(t, f)
		second, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		for _, mapping := range []*forward.Mapping{first, second} {
			if err := mapping.Close(); err == nil {
				t.Error("Close returned nil")
			}
		}
		gw.set(func() { gw.fail = noReplyFor(8080) })
		time.Sleep(5 * time.Minute)
		if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestRefusalBackoff checks that there is a pause between the retries of a refused
// deletion, even if the mapping may last longer than its granted lifetime.
func TestRefusalBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		short, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		_ = short.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour)); err == nil {
			t.Fatal("Enable succeeded")
		}
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				time.Sleep(time.Millisecond)
				return backends.ErrNotAuthorized
			}
		})
		time.Sleep(3 * time.Minute)
		gw.takeCalls()
		time.Sleep(10 * time.Minute)
		if n := len(gw.takeCalls()); n > 40 {
			t.Errorf("%d requests in ten minutes", n)
		}
	})
}

// TestCloseReportsExpiredWithoutReply checks that Close reports a mapping that expired
// after renewals without a reply, because the gateway may still have it.
func TestCloseReportsExpiredWithoutReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		enable8080(t, f)
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		time.Sleep(forward.DefaultLifetime + time.Minute)
		if err := f.Close(); !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close: %v", err)
		}
	})
}

// TestDeletionAfterRenewalWithoutReply checks that a deletion is retried as long as a
// renewal without a reply may have extended the mapping.
func TestDeletionAfterRenewalWithoutReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		b := &lossyGateway{fakeGateway: gw}
		b.delivers.Store(true)
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		start := time.Now()
		mapping, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		b.delivers.Store(false)
		time.Sleep(115 * time.Second)
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		var remains *gateway.RemainsError
		if err := mapping.Close(); !errors.As(err, &remains) {
			t.Fatal("Close:", err)
		}
		live := gw.live()
		if len(live) != 1 || remains.Until.Before(live[0].Expires()) {
			t.Fatalf("Close reported %v, and the gateway has %v", remains, live)
		}
		time.Sleep(time.Until(start.Add(2*time.Minute + 10*time.Second)))
		gw.set(func() { gw.fail = nil })
		time.Sleep(30 * time.Second)
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}

// TestRefusedDeletionRetriedAfterNoReply checks that a deletion that was refused twice is
// retried soon if a later request got no reply.
func TestRefusedDeletionRetriedAfterNoReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		b := &lossyGateway{fakeGateway: gw}
		b.delivers.Store(true)
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mapping := enable8080(t, f)
		gw.set(func() { gw.fail = failAll(backends.ErrNotAuthorized) })
		if err := mapping.Close(); err == nil {
			t.Fatal("Close returned nil")
		}
		time.Sleep(time.Minute)
		gw.set(func() { gw.fail = nil })
		b.delivers.Store(false)
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Fatal("Enable succeeded")
		}
		b.delivers.Store(true)
		time.Sleep(time.Minute)
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}

// TestDeletionAddsNothing checks a gateway that records another host for each entry and
// does not delete it. The retries of the deletion do not create entries on other ports.
func TestDeletionAddsNothing(t *testing.T) {
	t.Parallel()
	gw, f := gatewayWithUPnP(t, forward.Config{Protocols: []string{"upnp"}}, gatewaytest.Config{
		Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{ListedClient: netip.MustParseAddr("192.168.77.9")}}},
	})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrNoResources) {
		t.Errorf("Enable: %v", err)
	}
	_ = f.Close() // attempts the deletion again
	if table := gw.Table(); len(table) != 1 {
		t.Errorf("the gateway has %v", table)
	}
}
