package upnp

import (
	"errors"
	"net"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
)

// TestTruncatedResponse checks that a truncated response is never mistaken for a
// complete one.
func TestTruncatedResponse(t *testing.T) {
	whole := ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "203.0.113.7")))
	s := serveRaw(t, func(conn net.Conn, n int, _ string) { _, _ = conn.Write([]byte(whole[:n])) })
	c := s.client(t, ip1, ClientConfig{})
	for n := range len(whole) {
		read := false
		err := c.config.exchange(t.Context(), c.urls[0], request{limit: 1 << 20, root: "Envelope"}, func(resp lenient.Response) error {
			read = true
			out, err := readOutput("GetExternalIPAddress", resp)
			if err == nil && out.Value("NewExternalIPAddress") != "203.0.113.7" || err != nil && !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%d bytes: %+v, %v", n, out, err)
			}
			if out, err := readOutput("AddPortMapping", resp); err == nil {
				t.Errorf("%d bytes count as a success: %+v", n, out)
			}
			return nil
		})
		if !read && !errors.Is(err, backends.ErrNoReply) && !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
