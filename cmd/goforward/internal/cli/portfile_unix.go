//go:build unix

package cli

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// openInPlace opens what the path leads to for writing, and waits for nothing: a
// FIFO that no program reads is an error. A terminal does not become that of this
// process. The target of a symbolic link is created if it is missing.
func openInPlace(path string) (*os.File, error) {
	const flags = os.O_WRONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) { // only then: in /tmp, Linux refuses to "create" a file of another user
		f, err = os.OpenFile(path, flags|os.O_CREATE, 0o644)
	}
	return f, err
}

// isUnread reports whether openInPlace failed because no program reads the FIFO.
func isUnread(path string, err error) bool {
	if !errors.Is(err, syscall.ENXIO) {
		return false
	}
	info, statErr := os.Stat(path)
	return statErr == nil && info.Mode()&fs.ModeNamedPipe != 0
}
