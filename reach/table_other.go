//go:build !linux && !windows

package reach

import (
	"errors"
	"fmt"

	"github.com/natforward/goforward/backends"
)

// readTable fails: there is no table of sockets that this package can read.
func readTable(backends.Protocol, uint16) ([]socket, error) {
	return nil, fmt.Errorf("%w: it cannot be read on this system", errors.ErrUnsupported)
}
