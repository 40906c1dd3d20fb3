package port5351

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Two requests in flight are equal, and their answers come one right after the
// other. Each request gets one of them.
func TestEqualRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		request := echoes("q", time.Second)
		request.Probe = true // both are in flight at once
		first := make(chan error, 1)
		go func() {
			_, err := l.Do(t.Context(), request)
			first <- err
		}()
		synctest.Wait()
		w.mu.Lock()
		w.onWrite = func(s *sock, b []byte) error {
			s.say(slices.Clone(b))
			s.say(slices.Clone(b))
			synctest.Wait() // both are read before the second request's caller goes on
			return nil
		}
		w.mu.Unlock()
		if _, err := l.Do(t.Context(), request); err != nil {
			t.Errorf("second request: %v", err)
		}
		if err := <-first; err != nil {
			t.Errorf("first request, after two answers: %v", err)
		}
	})
}

// A request that has ended takes no more datagrams: what comes late is for the
// watchers.
func TestEndedRequest(t *testing.T) {
	w, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	late := make(chan string, 1)
	watch, err := l.Watch(WatchConfig{
		Announce:    netip.MustParseAddrPort("127.0.0.1:0"),
		Unsolicited: func(b []byte) string { late <- string(b); return "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	ctx, cancel := context.WithCancel(t.Context())
	w.onWrite = func(s *sock, b []byte) error {
		if string(b) == "ended" {
			cancel()
			return nil
		}
		s.say([]byte("ended"))
		s.say(slices.Clone(b))
		return nil
	}
	if _, err := l.Do(ctx, echoes("ended", time.Minute)); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first request: %v, want context.Canceled", err)
	}
	if _, err := l.Do(t.Context(), echoes("next", time.Minute)); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	if len(late) != 1 || <-late != "ended" {
		t.Error("the late answer did not reach the watcher")
	}
}
