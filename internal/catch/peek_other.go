//go:build !unix && !windows

package catch

import (
	"errors"
	"net"
)

var errNotSupported = errors.ErrUnsupported

// peek fails: these systems cannot examine a connection without reading from it.
func peek(*net.TCPConn, func([]byte) bool) error { return errNotSupported }
