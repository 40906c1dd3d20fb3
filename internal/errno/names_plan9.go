package errno

import "syscall"

// Errors of Plan 9 are texts. The kernel returns the text of ECONNREFUSED, also if a
// connection is reset. The other texts are those of Unix; the kernel is not known to return
// them.
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
	wsaEADDRINUSE   = EADDRINUSE
	wsaECONNRESET   = ECONNRESET
	wsaENOBUFS      = ENOBUFS
	wsaECONNREFUSED = ECONNREFUSED
)
