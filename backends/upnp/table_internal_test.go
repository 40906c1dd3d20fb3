package upnp

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/backends"
)

// TestNotSent checks that a request that was not sent, because others came first, does not
// count as one without a reply.
func TestNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const action = "GetExternalIPAddress"
		c, err := NewClient(Service{Type: "urn:schemas-upnp-org:service:WANIPConnection:1", ControlURL: "http://192.0.2.1:5000/"}, ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(Config{Gateway: netip.MustParseAddr("192.0.2.1")})
		if err != nil {
			t.Fatal(err)
		}
		leave, err := enterQueue(t.Context(), &requestQueues, c.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		for range 3 {
			err := b.ask(t.Context(), c, action, func(ctx context.Context) error {
				_, err := c.ExternalAddr(ctx)
				return err
			})
			if !errors.Is(err, backends.ErrNoReply) || b.quirksOf(c).remembers(action) {
				t.Errorf("%v, remembered: %v", err, b.quirksOf(c).remembers(action))
			}
		}
	})
}
