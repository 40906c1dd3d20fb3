//go:build unix

package state

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// noFollow has the flags with which an open fails if the path is a link, and never blocks.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// othersHaveAccess reports whether the owner of the file is a user other than this one and
// root, or whether other users have one of the permissions.
func othersHaveAccess(info fs.FileInfo, permissions fs.FileMode) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	isForeign := ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
	return isForeign || info.Mode().Perm()&permissions != 0
}

// syncDir makes the renames in a directory permanent, if the file system supports that.
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
