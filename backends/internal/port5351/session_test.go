package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
)

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
