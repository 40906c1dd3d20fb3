package upnp

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
)

// TestCancelledRequestIsReset checks that a cancelled request resets its
// connection, so that no kernel delivers the rest of it after a broken link
// recovers. A request that got its response closes the connection normally.
func TestCancelledRequestIsReset(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ends := make(chan error, 2)
	s := serveRaw(t, func(conn net.Conn, n int, _ string) {
		if n == 0 {
			_, _ = conn.Write([]byte(ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "45.45.45.1")))))
		} else {
			cancel()
		}
		_, err := conn.Read(make([]byte, 1))
		ends <- err
	})
	c := s.client(t, ip1, ClientConfig{})
	if _, err := c.ExternalAddr(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ends; errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection of the completed request ended with %v", err)
	}
	if _, err := c.ExternalAddr(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ExternalAddr: %v", err)
	}
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection of the cancelled request ended with %v, want a reset", err)
	}
}
