//go:build unix

package state

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// noFollow opens what has the path itself, and never blocks.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// isOthers reports whether a user other than this one and root owns the file, or
// whether others have one of the permissions.
func isOthers(info fs.FileInfo, permissions fs.FileMode) bool {
	stat, is := info.Sys().(*syscall.Stat_t)
	isForeign := is && stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
	return isForeign || info.Mode().Perm()&permissions != 0
}

// syncDir makes the renames in a directory permanent, if the file system can do that.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}
