package port5351

import (
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
		request := echoes("q", Foreground, time.Second)
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
