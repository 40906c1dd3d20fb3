//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !windows

package discover

import "errors"

// openHints: there are none.
func openHints() (hints <-chan struct{}, stop func(), err error) {
	return nil, nil, errors.ErrUnsupported
}
