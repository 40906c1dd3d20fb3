package upnp

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
)

// A request that is given up is reset, so that no kernel delivers what is left of
// it when the line is up again; one that is answered ends in peace.
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
		t.Errorf("what was answered ended with %v", err)
	}
	if _, err := c.ExternalAddr(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ExternalAddr: %v", err)
	}
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what was given up ended with %v, want a reset", err)
	}
}
