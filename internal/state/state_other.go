//go:build !unix && !windows

package state

import "io/fs"

// noFollow is none: between ReadOwn's look at the path and its opening, somebody who can
// write the directory can put a link there.
const noFollow = 0

// isOthers reports whether others have one of the permissions. It does not look at the
// owner.
func isOthers(info fs.FileInfo, permissions fs.FileMode) bool {
	return info.Mode().Perm()&permissions != 0
}

// syncDir does nothing: nothing is known of these systems' directories.
func syncDir(string) error { return nil }
