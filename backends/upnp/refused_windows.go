package upnp

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isRefused reports that nothing listens at the address.
func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
