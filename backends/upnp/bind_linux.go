package upnp

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// bindToInterface makes the socket leave by the interface. Kernels before 5.7
// let only root do so: there the route decides.
func bindToInterface(fd uintptr, _ string, ifi *net.Interface) error {
	err := unix.BindToDevice(int(fd), ifi.Name)
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}
