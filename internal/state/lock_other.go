//go:build aix || (!unix && !windows)

package state

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// tryLock fails. AIX has the locks of fcntl, but a process that opens the file twice
// gets such a lock twice. Exclusive-use files of Plan 9 are not used, as nobody has tried
// them with this program.
func tryLock(*os.File) error {
	return fmt.Errorf("lock a file on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
