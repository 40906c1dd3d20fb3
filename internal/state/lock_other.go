//go:build aix || (!unix && !windows)

package state

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// tryLock fails. On AIX, fcntl locks belong to a process, so a process that opens the file
// twice would get the lock twice. On Plan 9, exclusive-use files have not been tested with
// this package.
func tryLock(*os.File) error {
	return fmt.Errorf("lock a file on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
