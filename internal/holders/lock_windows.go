package holders

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

const (
	noFollow = 0
	hasModes = false // the access list of the directory protects the file
)

func isOwn(fs.FileInfo) bool { return true }

// setLock changes the lock of one byte and returns the mode that it then has. It does not
// block. Windows cannot convert a lock, so there is a moment without one.
func setLock(f *os.File, at int64, before, after mode) (mode, error) {
	if before != unlocked {
		if err := windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, overlapped(at)); err != nil {
			return before, err
		}
	}
	err := lock(f, at, after)
	switch {
	case err == nil:
		return after, nil
	case lock(f, at, before) != nil:
		before = unlocked
	}
	return before, err
}

func lock(f *os.File, at int64, m mode) error {
	if m == unlocked {
		return nil
	}
	flags := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if m == exclusive {
		flags |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, overlapped(at))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return errInUse
	}
	return err
}

func overlapped(at int64) *windows.Overlapped {
	return &windows.Overlapped{Offset: uint32(at), OffsetHigh: uint32(at >> 32)} //nolint:gosec // the halves of at
}

// holder reports whether another process has a lock of the byte. Windows does not report
// which.
func holder(f *os.File, at int64, has mode) (pid int, held bool) {
	if has == exclusive {
		return 0, false
	}
	now, err := setLock(f, at, has, exclusive)
	if err == nil {
		_, _ = setLock(f, at, now, has)
	}
	return 0, errors.Is(err, errInUse)
}
