//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !windows

package discover

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

func lookup(netip.Addr) (Gateway, error) {
	return Gateway{}, fmt.Errorf("discover: routes on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func defaultRoutes() ([]row, error) {
	return nil, fmt.Errorf("discover: routes on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
