//go:build !unix && !windows

package holders

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

const (
	noFollow = 0
	hasModes = false
)

func isOwn(fs.FileInfo) bool { return true }

// setLock fails: these systems have no locks that end with the process.
func setLock(*os.File, int64, mode, mode) (mode, error) {
	return unlocked, fmt.Errorf("lock a file on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func holder(*os.File, int64, mode) (pid int, held bool) { return 0, false }
