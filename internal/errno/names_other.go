//go:build !plan9

package errno

import "syscall"

// The errors of the same names in package syscall.
const (
	EADDRINUSE    = syscall.EADDRINUSE
	EADDRNOTAVAIL = syscall.EADDRNOTAVAIL
	ECONNREFUSED  = syscall.ECONNREFUSED
	ECONNRESET    = syscall.ECONNRESET
	EHOSTUNREACH  = syscall.EHOSTUNREACH
	ENETDOWN      = syscall.ENETDOWN
	ENETUNREACH   = syscall.ENETUNREACH
	ENOBUFS       = syscall.ENOBUFS
	EPIPE         = syscall.EPIPE
)

// The numbers that Windows returns. On Windows, package syscall uses invented numbers for
// the constants above. Other systems have no errors with these numbers.
const (
	wsaEADDRINUSE   = syscall.Errno(10048)
	wsaECONNRESET   = syscall.Errno(10054)
	wsaENOBUFS      = syscall.Errno(10055)
	wsaECONNREFUSED = syscall.Errno(10061)
)
