package reach

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// mark marks an endpoint as opened by this package, so that other measurements do not take its
// socket for a program. It fails if the endpoint is marked already. The mark is an abstract Unix
// socket: the kernel removes it if the process ends, and it belongs to a network namespace, like
// the endpoint. Another user of this host can set marks too, which makes verdicts Unknown.
func mark(p backends.Protocol, at netip.AddrPort) (release func(), err error) {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(context.Background(), "unixgram", fmt.Sprintf("@goforward/reach/%v/%v", p, at))
	if err != nil {
		return nil, err
	}
	return func() { _ = conn.Close() }, nil
}

// isMarked reports whether an endpoint is opened by a measurement, in this process or another.
func isMarked(p backends.Protocol, at netip.AddrPort) bool {
	release, err := mark(p, at)
	if err != nil {
		return errno.IsInUse(err)
	}
	release()
	return false
}
