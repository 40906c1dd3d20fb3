//go:build unix

package state

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// openFile opens what is there itself, and not what a link names: who could put
// one there would have us read what is another's.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// isOthers reports whether somebody else has the permissions, or the file itself.
// What is root's, only root could have written.
func isOthers(info fs.FileInfo, permissions fs.FileMode) bool {
	stat, is := info.Sys().(*syscall.Stat_t)
	theirs := is && stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
	return theirs || info.Mode().Perm()&permissions != 0
}

// lockFile takes a lock that ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, err
	}
	return f, nil
}
