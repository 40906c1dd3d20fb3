package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestOneRestart checks that one restart is reported once, although the epochs of both
// protocols show it, and that a later restart is reported too.
func TestOneRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		s := &Session{conn: conn}
		observe := func(observe func(time.Duration, Reply), epoch time.Duration) {
			observe(epoch, Reply{Sent: time.Now(), Received: time.Now()})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var notified []Hint
		done := make(chan error)
		go func() {
			done <- s.Watch(ctx, WatchHandler{
				WatchConfig:  WatchConfig{Announce: netip.MustParseAddrPort("192.0.2.9:5350")},
				ListenFailed: func(error) {},
				Probe:        func(context.Context) error { return nil },
				Notify:       func(h Hint) { notified = append(notified, h) },
			})
		}()
		observe(s.ObserveNATPMP, time.Hour)
		observe(s.ObservePCP, time.Hour)
		for restarts := range 3 {
			time.Sleep(time.Minute)
			observe(s.ObserveNATPMP, 500*time.Millisecond)
			time.Sleep(200 * time.Millisecond)
			observe(s.ObservePCP, 0)
			time.Sleep(30 * time.Second)
			observe(s.ObserveNATPMP, 30*time.Second) // otherwise the epochs would stand still
			observe(s.ObservePCP, 30*time.Second)
			time.Sleep(30 * time.Second)
			synctest.Wait()
			if len(notified) != restarts+1 || !notified[restarts].Restarted {
				t.Errorf("after restart %d: %+v", restarts, notified)
			}
		}
		notified = nil
		observe(s.ObserveNATPMP, 0)
		time.Sleep(time.Minute)
		conn.mu.Lock()
		conn.notifyWatchers(Hint{Reason: "the gateway announced a restart"})
		conn.mu.Unlock()
		time.Sleep(time.Minute)
		observe(s.ObservePCP, 2*time.Minute-time.Second)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(notified) != 2 || !notified[0].Restarted || notified[1].Restarted {
			t.Errorf("after a restart and an announcement: %+v", notified)
		}
		cancel()
		<-done
	})
}

// TestHintChange checks the kind of a change.
func TestHintChange(t *testing.T) {
	a, b, now := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.2"), time.Now()
	for _, tt := range []struct {
		hint              Hint
		previous, current netip.Addr
		want              backends.Change
	}{
		{Hint{Reason: "r"}, netip.Addr{}, a, backends.Change{Kind: backends.Announced, External: a, Reason: "r"}},
		{Hint{Reason: "r"}, a, netip.Addr{}, backends.Change{Kind: backends.Announced, Reason: "r"}},
		{Hint{Reason: "r", Restarted: true, Since: now}, a, a, backends.Change{Kind: backends.Restarted, External: a, Reason: "r", Since: now}},
		{Hint{Reason: "r", Restarted: true, Since: now}, a, b, backends.Change{
			Kind: backends.AddressChanged, External: b, Reason: "the external address was 45.45.45.1 and is 45.45.45.2",
		}},
	} {
		if got := tt.hint.Change(tt.previous, tt.current); got != tt.want {
			t.Errorf("%+v from %v to %v: %+v, want %+v", tt.hint, tt.previous, tt.current, got, tt.want)
		}
	}
}

// TestCloseInNotify checks that Notify may call Close: Close does not wait for
// Notify, and Watch then returns.
func TestCloseInNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, conn := newConn(t, "192.0.2.1:5351")
		s := &Session{conn: conn}
		notified := 0
		err := s.Watch(t.Context(), WatchHandler{
			WatchConfig: WatchConfig{Announce: netip.MustParseAddrPort("192.0.2.9:5350")}, // not an address of this host
			ListenFailed: func(error) {
				conn.mu.Lock()
				defer conn.mu.Unlock()
				conn.notifyWatchers(Hint{Reason: "a test"})
			},
			Probe: func(context.Context) error { return nil },
			Notify: func(Hint) {
				notified++
				s.Close()
				if !conn.isClosed() {
					t.Error("the Conn is open after Close")
				}
			},
		})
		if notified != 1 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%d notifications, and Watch returned %v; want one and %v", notified, err, net.ErrClosed)
		}
	})
}

// TestCheckWait checks that a request with the schedule of a Checker is sent twice, a second apart,
// and that it fails after another second.
func TestCheckWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		began := time.Now()
		var sent []time.Duration
		gw.onWrite = func(*fakeSocket, []byte) error {
			sent = append(sent, time.Since(began))
			return nil
		}
		_, err := conn.Do(t.Context(), Transaction{Match: func([]byte) Match { return None }, Wait: CheckWait})
		if !errors.Is(err, backends.ErrNoReply) || time.Since(began) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if !slices.Equal(sent, []time.Duration{0, time.Second}) {
			t.Errorf("sent at %v", sent)
		}
	})
}
