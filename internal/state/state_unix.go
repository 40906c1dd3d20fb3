//go:build unix

package state

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// noFollow opens the file at the path itself, not the target of a link, and never blocks.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// isOthers reports whether the owner of the file is a user other than this one and root, or
// whether other users have one of the permissions.
func isOthers(info fs.FileInfo, permissions fs.FileMode) bool {
	stat, is := info.Sys().(*syscall.Stat_t)
	isForeign := is && stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
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
