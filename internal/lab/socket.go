package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/internal/errno"
)

// The functions here open sockets of the test process in a host's namespace: a
// socket belongs to the namespace of the thread that made it, whoever uses it
// later. Addresses must be numeric, and IPv6 zones are looked up in a cache
// that knows nothing of namespaces: use Func for link-local addresses.

// Dial connects from the host, each time from a source port that the host has
// not dialled from before: connection tracking remembers the old ones and would
// let packets follow a mapping that is gone, or miss one that is new.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	for {
		d := net.Dialer{LocalAddr: localPort(network, h.newSourcePort())}
		var conn net.Conn
		err := inNetns(h.netns, func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		h.lab.log.record("%s: dial %s %s from port %s: %s", h.name, network, address, portOf(d.LocalAddr), outcome(err))
		if !errors.Is(err, errno.EADDRINUSE) {
			return conn, err
		}
	}
}

// newSourcePort counts through 20000–31999, below what Linux itself chooses
// from.
func (h *Host) newSourcePort() int {
	return 20000 + int(h.sourcePorts.Add(1)-1)%12000
}

func localPort(network string, port int) net.Addr {
	if strings.HasPrefix(network, "udp") {
		return &net.UDPAddr{Port: port}
	}
	return &net.TCPAddr{Port: port}
}

func portOf(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

// Listen is net.Listen in the host.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := inNetns(h.netns, func() (err error) {
		ln, err = net.Listen(network, address) //nolint:noctx // a numeric address does not block
		return err
	})
	h.lab.log.record("%s: listen %s %s: %s", h.name, network, address, outcome(err))
	return ln, err
}

// ListenPacket is net.ListenPacket in the host.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := inNetns(h.netns, func() (err error) {
		pc, err = net.ListenPacket(network, address) //nolint:noctx // a numeric address does not block
		return err
	})
	h.lab.log.record("%s: listen %s %s: %s", h.name, network, address, outcome(err))
	return pc, err
}

// addrPort is a socket address without the IPv6 clothes that IPv4 addresses
// wear on dual-stack sockets.
func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
