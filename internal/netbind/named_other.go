//go:build !linux

package netbind

import (
	"fmt"
	"net"
	"syscall"
)

// ControlNamed is Control for the interface with this name.
func ControlNamed(name string) (func(network, address string, c syscall.RawConn) error, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	return Control(ifi)
}
