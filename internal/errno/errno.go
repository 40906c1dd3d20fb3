// Package errno has the errors of sockets that package syscall does not name on every
// system, and tells them where a system has several of one meaning.
package errno

import "errors"

// IsRefused reports that nothing listens at the address.
func IsRefused(err error) bool {
	return errors.Is(err, ECONNREFUSED) || errors.Is(err, wsaECONNREFUSED)
}

// IsReset reports that the peer reset the connection. Windows reports so of a UDP
// socket that nothing listens at the address of an earlier datagram.
func IsReset(err error) bool { return errors.Is(err, ECONNRESET) || errors.Is(err, wsaECONNRESET) }

// IsFull reports that the system had no space for a datagram.
func IsFull(err error) bool { return errors.Is(err, ENOBUFS) || errors.Is(err, wsaENOBUFS) }
