//go:build unix

package cli

import (
	"io/fs"
	"os"
	"syscall"
)

// belongsToOther reports whether a file belongs to another user, except root.
func belongsToOther(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid()
}
