//go:build !windows

package upnp

import (
	"errors"
	"syscall"
)

// isRefused reports that nothing listens at the address.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
