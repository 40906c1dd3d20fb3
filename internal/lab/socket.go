package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/internal/errno"
)

// The methods in this file open sockets of the test process in a host's namespace. A
// socket belongs to the namespace of the thread that created it, and other threads may
// use it later. Addresses must be numeric. Package net looks up IPv6 zones in a cache
// that ignores namespaces, so use Func for link-local addresses.

// Dial connects from the host, each time from a source port that the host has not used
// before. Connection tracking remembers earlier connections. With an old source port,
// packets could follow a mapping that was deleted, or miss a new one.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return h.DialFrom(ctx, network, netip.Addr{}, address)
}

// DialFrom is Dial with a source address. For the zero Addr, the kernel chooses it.
func (h *Host) DialFrom(ctx context.Context, network string, source netip.Addr, address string) (net.Conn, error) {
	for {
		d := net.Dialer{LocalAddr: localEndpoint(network, source, h.newSourcePort())}
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

// newSourcePort returns the next port from 20000 to 31999, which is below the range from
// which Linux chooses ports.
func (h *Host) newSourcePort() int {
	return 20000 + int(h.sourcePorts.Add(1)-1)%12000
}

func localEndpoint(network string, source netip.Addr, port int) net.Addr {
	if strings.HasPrefix(network, "udp") {
		return &net.UDPAddr{IP: source.AsSlice(), Port: port}
	}
	return &net.TCPAddr{IP: source.AsSlice(), Port: port}
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

// addrPort returns a as an AddrPort. It converts the IPv4-mapped IPv6 addresses of
// dual-stack sockets to IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
