//go:build !linux && !windows

package reach

import (
	"errors"
	"fmt"

	"github.com/natforward/goforward/backends"
)

// readTable fails: there is no table of sockets that this package can read. On macOS and the
// BSDs, the formats of the kernel's tables differ between versions. The program lsof shows other
// users' sockets only to root, so it cannot prove that no program listens.
func readTable(backends.Protocol, uint16) ([]socket, error) {
	return nil, fmt.Errorf("%w: it cannot be read on this system", errors.ErrUnsupported)
}
