//go:build !unix

package cli

import "os"

// openInPlace opens what the path leads to for writing.
func openInPlace(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
}

// isUnread is about FIFOs, of which these systems have none in their file systems.
func isUnread(string, error) bool { return false }
