//go:build !unix

package cli

import "os"

// openInPlace opens the file for writing. It follows links, and creates a missing file.
func openInPlace(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
}

// hasNoReader always returns false: these systems have no FIFOs in their file systems.
func hasNoReader(string, error) bool { return false }
