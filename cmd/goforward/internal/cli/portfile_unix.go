//go:build unix

package cli

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// openInPlace opens the file for writing and does not block. It follows links, and creates
// the missing target of a symbolic link. It fails if the file is a FIFO that no program
// reads. A terminal does not become the controlling terminal of this process.
func openInPlace(path string) (*os.File, error) {
	const flags = os.O_WRONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) { // not before: in /tmp, Linux refuses O_CREATE for an existing file of another user
		f, err = os.OpenFile(path, flags|os.O_CREATE, 0o644)
	}
	return f, err
}

// hasNoReader reports whether openInPlace failed because no program reads the FIFO.
func hasNoReader(path string, err error) bool {
	if !errors.Is(err, syscall.ENXIO) {
		return false
	}
	info, statErr := os.Stat(path)
	return statErr == nil && info.Mode()&fs.ModeNamedPipe != 0
}
