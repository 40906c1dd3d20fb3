package state

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

const noFollow = 0

// tryLock fails with ErrInUse if another open file has the lock.
func tryLock(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrInUse
	}
	return err
}

// othersHaveAccess always returns false: the access list of the directory protects the file.
func othersHaveAccess(fs.FileInfo, fs.FileMode) bool { return false }

// syncDir does nothing: Windows cannot sync directories.
func syncDir(string) error { return nil }
