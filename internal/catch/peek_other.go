//go:build !unix && !windows

package catch

import (
	"errors"
	"net"
)

// Supported reports whether Conn can examine connections on this system. If not, Conn leaves
// every connection to the program.
const Supported = false

// peek fails: these systems cannot examine a connection without reading from it.
func peek(*net.TCPConn, func([]byte) bool) error { return errors.ErrUnsupported }
