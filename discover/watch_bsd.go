//go:build darwin || freebsd || netbsd || openbsd

package discover

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openHints listens to the routing socket (route(4)): every change of routes,
// addresses and links is a message there. What it says does not matter.
func openHints() (hints <-chan struct{}, stop func(), err error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return nil, nil, fmt.Errorf("discover: routing socket: %w", err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, nil, fmt.Errorf("discover: routing socket: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "route")
	c, done := make(chan struct{}, 1), make(chan struct{})
	go func() { // ended and waited for by stop
		defer close(done)
		buf := make([]byte, os.Getpagesize())
		for {
			if _, err := socket.Read(buf); err != nil {
				return
			}
			hint(c)
		}
	}()
	return c, func() { _ = socket.Close(); <-done }, nil
}
