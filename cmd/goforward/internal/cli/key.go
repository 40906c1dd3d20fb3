package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/natforward/goforward/internal/state"
)

// keySize is the size of the key of the hash that derives nonces.
const keySize = 32

// nonceKey returns the user's secret key, from which PCP nonces are derived. With this key, a
// later process can delete the mappings of this one. The key is created when it is first
// needed. Without a key, mapping still works, but no later process can delete PCP
// mappings: they stay until their lifetime ends.
func (a *app) nonceKey() []byte {
	if !a.needsKey() {
		return nil
	}
	key, err := loadKey(a.keyFile)
	if err != nil {
		if log := a.logger(); log != nil {
			log.Warn("unmap will not be able to delete the PCP mappings that map creates", "err", err)
		}
		return nil
	}
	return key
}

// needsKey reports whether a selected protocol needs the key.
func (a *app) needsKey() bool {
	return slices.ContainsFunc(a.selectedProtocols(), func(o protocol) bool { return o.usesKey })
}

// randomKey returns a key that is used only once. A gateway refuses to delete mappings that
// were made with another key, and accepts the deletion if there is no such mapping.
func randomKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// keyFile returns the path of the file that holds the user's key.
func keyFile() (string, error) {
	dir, err := stateDir(os.UserConfigDir)
	if err != nil {
		return "", fmt.Errorf("there is no directory for the key: %w", err)
	}
	return filepath.Join(dir, "nonce.key"), nil
}

// stateDir returns the directory for files that goforward keeps for the user. On Windows, it is
// in the directory that windowsDir returns.
func stateDir(windowsDir func() (string, error)) (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) { // the XDG specification ignores relative paths
		var err error
		switch runtime.GOOS {
		case "windows":
			dir, err = windowsDir()
		case "darwin":
			dir, err = os.UserConfigDir()
		default:
			dir, err = os.UserHomeDir()
			dir = filepath.Join(dir, ".local", "state")
		}
		switch {
		case err != nil:
			return "", err
		case !filepath.IsAbs(dir):
			return "", fmt.Errorf("%s is not an absolute path", dir)
		}
	}
	return filepath.Join(dir, "goforward"), nil
}

// loadKey reads the key, or creates it. If several processes create it at once, one succeeds
// and the others read its key.
func loadKey(keyPath func() (string, error)) ([]byte, error) {
	path, err := keyPath()
	if err != nil {
		return nil, err
	}
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readKey(path)
}

func readKey(path string) ([]byte, error) {
	key, err := state.ReadOwn(path, keySize+1, 0o077)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the key in %s cannot be trusted: %w", path, err)
	}
	if err == nil && len(key) != keySize {
		return nil, fmt.Errorf("%s is not a key of %d bytes: rename it, so that map creates a new key", path, keySize)
	}
	return key, err
}

// linkFile is os.Link; tests replace it.
var linkFile = os.Link

// createKey writes a new key if the file does not exist. The file appears with its whole
// content or not at all.
func createKey(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".nonce-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(randomKey())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	err = linkFile(f.Name(), path) // fails if another process was faster
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Rename(f.Name(), path) // some file systems have no hard links
	}
	return err
}
