//go:build unix || windows

// Package netbind ties sockets to interfaces and to multicast groups, as well as
// each system can.
package netbind

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Control is for a net.Dialer or net.ListenConfig whose socket is to leave by the
// interface. If no socket of this system can be tied to one, the error wraps
// errors.ErrUnsupported.
func Control(ifi *net.Interface) (func(network, address string, c syscall.RawConn) error, error) {
	return func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd uintptr) error { return ToInterface(fd, network, ifi) })
	}, nil
}

// control runs f on the socket and returns the error of either.
func control(c syscall.RawConn, f func(fd uintptr) error) error {
	var inner error
	outer := c.Control(func(fd uintptr) { inner = f(fd) })
	return errors.Join(outer, inner)
}

func asUDP(conn net.PacketConn) (*net.UDPConn, error) {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("socket for datagrams is a %T", conn)
	}
	return udp, nil
}
