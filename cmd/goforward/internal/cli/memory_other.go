//go:build !unix

package cli

import "io/fs"

// belongsToOther always returns false: on Windows, a user's directories are in the user's
// profile.
func belongsToOther(fs.FileInfo) bool { return false }
