//go:build darwin || freebsd || netbsd || openbsd

package discover

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openHints opens a routing socket (route(4)), which delivers a message for every change of
// routes, addresses and links. Each message is a hint; its contents are not used. stop closes
// the socket.
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
	go func() { // stop ends the goroutine and waits for it
		defer close(done)
		buf := make([]byte, os.Getpagesize())
		for {
			if _, err := socket.Read(buf); err != nil {
				return
			}
			sendHint(c)
		}
	}()
	return c, func() { _ = socket.Close(); <-done }, nil
}
