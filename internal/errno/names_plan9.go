package errno

import "syscall"

// Errors of Plan 9 are texts. The kernel returns the one of ECONNREFUSED, also when a
// connection is reset; the others are those of Unix, and not known to be returned.
const (
	EADDRINUSE    = syscall.ErrorString("address already in use")
	EADDRNOTAVAIL = syscall.ErrorString("cannot assign requested address")
	ECONNREFUSED  = syscall.ErrorString("connection refused")
	ECONNRESET    = syscall.ErrorString("connection reset by peer")
	EHOSTUNREACH  = syscall.ErrorString("no route to host")
	ENETDOWN      = syscall.ErrorString("network is down")
	ENETUNREACH   = syscall.ErrorString("network is unreachable")
	ENOBUFS       = syscall.ErrorString("no buffer space available")
	EPIPE         = syscall.ErrorString("broken pipe")
)

const (
	wsaECONNRESET   = ECONNRESET
	wsaENOBUFS      = ENOBUFS
	wsaECONNREFUSED = ECONNREFUSED
)
