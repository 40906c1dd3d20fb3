package netbind

import (
	"net"
	"syscall"
)

// ControlNamed is Control for the interface with this name. The kernel looks up the name.
func ControlNamed(name string) (func(network, address string, c syscall.RawConn) error, error) {
	return Control(&net.Interface{Name: name})
}
