package upnp_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/defect"
)

// Close may be called in a loop over List: it does not wait for the loop. If the loop
// needs the device again, it ends with net.ErrClosed.
func TestCloseInList(t *testing.T) {
	defect.Known(t, "Close waits for a loop over List, so that a loop that calls Close blocks forever")
	for name, router := range map[string]gatewaytest.UPnP{
		"by index":  {},
		"by ranges": {Listing: gatewaytest.UPnPListing{IndexFails: 401}},
	} {
		t.Run(name, func(t *testing.T) {
			gw, b := open(t, router)
			fill(t, gw, 3)
			closed := make(chan error, 1)
			rows := 0
			for _, err := range b.List(t.Context()) {
				if err != nil {
					if rows == 0 || !errors.Is(err, net.ErrClosed) {
						t.Errorf("after %d rows: %v, want %v", rows, err, net.ErrClosed)
					}
					break
				}
				if rows++; rows > 1 {
					continue
				}
				// On another goroutine, so that the test can leave a loop that Close waits for.
				go func() { closed <- b.Close() }()
				if !arrives(t, closed) {
					t.Errorf("Close, called in a loop over List, has not returned after %v, want it to return at once", patience)
					break
				}
			}
			if rows == 0 {
				t.Fatal("no row was listed")
			}
			if err := b.Close(); err != nil {
				t.Errorf("Close after the loop: %v", err)
			}
		})
	}
}

// patience bounds the wait for a Close that may block.
const patience = 5 * time.Second

// arrives waits for the result of a call, within patience. An error is reported.
func arrives(t *testing.T, result <-chan error) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case err := <-result:
		if err != nil {
			t.Errorf("Close: %v", err)
		}
		return true
	case <-ctx.Done():
		return false
	}
}
