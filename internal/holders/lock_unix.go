//go:build unix

package holders

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK
	hasModes = true
)

// isOwn reports whether the file belongs to this user.
func isOwn(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// setLock changes the lock of one byte and returns the mode that it then has. It does not
// block.
func setLock(f *os.File, at int64, before, after mode) (mode, error) {
	types := [...]int16{unlocked: unix.F_UNLCK, shared: unix.F_RDLCK, exclusive: unix.F_WRLCK}
	lock := unix.Flock_t{Type: types[after], Whence: io.SeekStart, Start: at, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock)
	switch {
	case err == nil:
		return after, nil
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		err = errInUse
	}
	return before, err
}

// holder returns the process that has a lock of the byte.
func holder(f *os.File, at int64, _ mode) (pid int, held bool) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0, false
	}
	return max(int(lock.Pid), 0), true // 0: in another PID namespace
}
