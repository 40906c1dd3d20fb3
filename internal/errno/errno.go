// Package errno names the socket errors that package syscall does not define on every
// system. Its functions test for an error that has several numbers on some systems.
package errno

import "errors"

// IsRefused reports whether err means that no socket listens at the address.
func IsRefused(err error) bool {
	return errors.Is(err, ECONNREFUSED) || errors.Is(err, wsaECONNREFUSED)
}

// IsReset reports whether err means that the peer reset the connection. On Windows, a UDP
// socket returns this error if no socket listened at the address of an earlier datagram.
func IsReset(err error) bool { return errors.Is(err, ECONNRESET) || errors.Is(err, wsaECONNRESET) }

// IsInUse reports whether err means that another socket has the local address and port.
func IsInUse(err error) bool {
	return errors.Is(err, EADDRINUSE) || errors.Is(err, wsaEADDRINUSE)
}

// IsFull reports whether err means that the system had no buffer space for a datagram.
func IsFull(err error) bool { return errors.Is(err, ENOBUFS) || errors.Is(err, wsaENOBUFS) }
