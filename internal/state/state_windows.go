package state

import (
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

const noFollow = 0

const errLocked = windows.ERROR_LOCK_VIOLATION

func tryLock(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	return windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
}

// isOthers is always false: the directory's access list decides.
func isOthers(fs.FileInfo, fs.FileMode) bool { return false }

// syncDir does nothing: directories cannot be synced.
func syncDir(string) error { return nil }
