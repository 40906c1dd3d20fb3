package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestLoadKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "goforward", "nonce.key")
	keyPath := func() (string, error) { return path, nil }
	keys := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := loadKey(keyPath)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, key := range keys {
		if len(key) != keySize || !bytes.Equal(key, keys[0]) {
			t.Errorf("keys of %d and %d bytes, want one for all", len(key), len(keys[0]))
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode != 0o600 {
		t.Errorf("mode %o, want 600", mode)
	}
	if remaining, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(remaining) != 0 {
		t.Errorf("unexpected files left: %v", remaining)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if key, err := loadKey(keyPath); err == nil {
		t.Errorf("a damaged file gives a key of %d bytes, want an error", len(key))
	}
}

// TestKeyWithoutLinks checks that the key is created on a file system without hard links.
func TestKeyWithoutLinks(t *testing.T) {
	linkFile = func(string, string) error { return errors.ErrUnsupported }
	defer func() { linkFile = os.Link }()
	path := filepath.Join(t.TempDir(), "goforward", "nonce.key")
	first, err := loadKey(func() (string, error) { return path, nil })
	if err != nil || len(first) != keySize {
		t.Fatalf("key of %d bytes, error %v", len(first), err)
	}
	if again, err := loadKey(func() (string, error) { return path, nil }); err != nil || !bytes.Equal(first, again) {
		t.Errorf("the second call returns another key, or error %v", err)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("unexpected files left: %v", files)
	}
}

func TestKeyFile(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AppData", home)
	state := filepath.Join(home, "state")
	t.Setenv("XDG_STATE_HOME", state)
	if got, err := keyFile(); err != nil || got != filepath.Join(state, "goforward", "nonce.key") {
		t.Errorf("key file %s, error %v", got, err)
	}
	for _, relative := range []string{"", "state", "./state"} {
		t.Setenv("XDG_STATE_HOME", relative)
		if got, err := keyFile(); err != nil || !filepath.IsAbs(got) || !strings.HasPrefix(got, home) || strings.HasPrefix(got, state) {
			t.Errorf("XDG_STATE_HOME=%q: %s, %v", relative, got, err)
		}
	}
	t.Setenv("HOME", "not/absolute")
	t.Setenv("AppData", "not/absolute")
	if got, err := keyFile(); err == nil {
		t.Errorf("key file %s, want an error", got)
	}
}
