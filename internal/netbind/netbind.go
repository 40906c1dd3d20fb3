//go:build unix || windows

// Package netbind binds sockets to interfaces and to multicast groups, as far as each
// system supports it.
package netbind

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Control returns the Control function for a net.Dialer or net.ListenConfig whose socket
// sends through the interface, as far as ToInterface can achieve that. On systems other than
// Unix and Windows, Control fails with an error that wraps errors.ErrUnsupported.
func Control(ifi *net.Interface) (func(network, address string, c syscall.RawConn) error, error) {
	return func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd uintptr) error { return ToInterface(fd, network, ifi) })
	}, nil
}

// ControlTTL returns the Control function for a net.Dialer whose packets pass at most this number
// of hops: the TTL of IPv4, the hop limit of IPv6. On systems other than Unix and Windows, it fails
// with an error that wraps errors.ErrUnsupported.
func ControlTTL(hops int) (func(network, address string, c syscall.RawConn) error, error) {
	return func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd uintptr) error { return setTTL(fd, network, hops) })
	}, nil
}

// control calls f with the descriptor of the socket, and returns the errors of both calls.
func control(c syscall.RawConn, f func(fd uintptr) error) error {
	var fErr error
	controlErr := c.Control(func(fd uintptr) { fErr = f(fd) })
	return errors.Join(controlErr, fErr)
}

func asUDP(conn net.PacketConn) (*net.UDPConn, error) {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("unexpected type of UDP socket: %T", conn)
	}
	return udp, nil
}
