//go:build !unix && !windows

package state

import "io/fs"

// noFollow has no effect on these systems. Between ReadOwn's check and its opening of the
// file, a program that can write the directory can replace the file by a link.
const noFollow = 0

// othersHaveAccess reports whether other users have one of the permissions. It does not check the
// owner.
func othersHaveAccess(info fs.FileInfo, permissions fs.FileMode) bool {
	return info.Mode().Perm()&permissions != 0
}

// syncDir does nothing, because it is unknown whether these systems can sync a directory.
func syncDir(string) error { return nil }
