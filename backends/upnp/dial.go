package upnp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// dial connects to exactly that address and port, from the configured
// interface and source.
func (c ClientConfig) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if c.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Source, 0))
	}
	if c.Interface != "" {
		ifi, err := net.InterfaceByName(c.Interface)
		if err != nil {
			return nil, err
		}
		d.Control = func(network, _ string, raw syscall.RawConn) error {
			var inner error
			outer := raw.Control(func(fd uintptr) { inner = bindToInterface(fd, network, ifi) })
			return errors.Join(outer, inner)
		}
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// localAddr is this host's address on the connection.
func localAddr(conn net.Conn) netip.Addr {
	tcp, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
