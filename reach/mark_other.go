//go:build !linux

package reach

import (
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// mark does nothing: these systems have no mark that ends with its process.
func mark(backends.Protocol, netip.AddrPort) (release func(), err error) { return func() {}, nil }

// isMarked returns false.
func isMarked(backends.Protocol, netip.AddrPort) bool { return false }
