//go:build !linux

package cli

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// dialTimeout bounds each connection to this host itself.
const dialTimeout = 200 * time.Millisecond

// systemListeners connects to the port of this host, by its loopback address and by the internal
// address. It knows nothing about protocols other than TCP.
func systemListeners(p backends.Protocol, internal netip.AddrPort) (out []netip.Addr, err error) {
	if p != backends.TCP {
		return nil, errors.ErrUnsupported
	}
	d := net.Dialer{Timeout: dialTimeout}
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), internal.Addr()} {
		conn, err := d.DialContext(context.Background(), "tcp", netip.AddrPortFrom(addr, internal.Port()).String())
		if err == nil {
			_ = conn.Close()
			out = append(out, addr)
		} else if !errors.Is(err, errno.ECONNREFUSED) && addr == internal.Addr() {
			return nil, err
		}
	}
	return out, nil
}
