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

// keySize is that of the hash that nonces are derived by.
const keySize = 32

// nonceKey is the user's secret, from which PCP nonces are derived: so a later
// process can take away what this one mapped. It is made when it is first
// needed. Without a place for it, mappings by PCP can only be left to their
// lifetime, which is no reason not to map.
func (a *app) nonceKey() []byte {
	if !a.needsKey() {
		return nil
	}
	key, err := loadKey(a.keyFile)
	if err != nil {
		if log := a.logger(); log != nil {
			log.Warn("unmap will not know what map makes by PCP", "err", err)
		}
		return nil
	}
	return key
}

// keyed reports whether a protocol that may be spoken needs the key.
func (a *app) needsKey() bool {
	return slices.ContainsFunc(a.selectedProtocols(), func(o protocol) bool { return o.usesKey })
}

// someKey is a key that nobody has: a gateway refuses to take away what it has
// with another, and does not where it has nothing.
func randomKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// keyFile is the path of the user's secret.
func keyFile() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) { // as its standard has it
		var err error
		switch runtime.GOOS {
		case "windows", "darwin":
			dir, err = os.UserConfigDir()
		default:
			dir, err = os.UserHomeDir()
			dir = filepath.Join(dir, ".local", "state")
		}
		switch {
		case err != nil:
			return "", fmt.Errorf("there is no place for a key: %w", err)
		case !filepath.IsAbs(dir):
			return "", fmt.Errorf("there is no place for a key: %s is not an absolute path", dir)
		}
	}
	return filepath.Join(dir, "goforward", "nonce.key"), nil
}

// loadKey reads the key, or makes it. Of several processes that make it at
// once, one wins and the others read its key.
func loadKey(where func() (string, error)) ([]byte, error) {
	path, err := where()
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
		return nil, fmt.Errorf("%s is no key to trust: %w", path, err)
	}
	if err == nil && len(key) != keySize {
		return nil, fmt.Errorf("%s is not a key of %d bytes: move it away", path, keySize)
	}
	return key, err
}

// link is os.Link, but in tests.
var linkFile = os.Link

// makeKey writes the key where there is none, whole or not at all.
func createKey(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".nonce-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(randomKey())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	err = linkFile(f.Name(), path) // fails where somebody was quicker
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = os.Rename(f.Name(), path) // there are systems without links
	}
	return err
}
