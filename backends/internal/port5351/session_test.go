package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
)

// Close may be called by Tell: it does not wait for it, and Follow then ends.
func TestCloseInTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l := newLink(t, "192.0.2.1:5351")
		s := &Session{link: l}
		told := 0
		err := s.Follow(t.Context(), Follower{
			WatchConfig: WatchConfig{Announce: netip.MustParseAddrPort("192.0.2.9:5350")}, // which this host has not
			Failed: func(error) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.signal(Hint{Reason: "a test"})
			},
			Ask: func(context.Context) error { return nil },
			Tell: func(Hint) {
				told++
				s.Close()
				if !l.isClosed() {
					t.Error("the link is open after Close")
				}
			},
		})
		if told != 1 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("told %d times, and Follow returned %v, want one signal and %v", told, err, net.ErrClosed)
		}
	})
}
