package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want == "" && !errors.Is(err, fs.ErrNotExist) || want != "" && (err != nil || string(got) != want) {
		t.Errorf("%s: %q, %v, want %q", filepath.Base(path), got, err, want)
	}
}

func TestPortFileWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "port")
	for port, want := range map[uint16]string{1: "1\n", 65535: "65535\n"} {
		if err := (&portFile{path: path}).write(t.Context(), port); err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, want)
		if info, err := os.Lstat(path); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o644 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no directory": filepath.Join(dir, "no", "port"),
		"a directory":  filepath.Join(dir, "directory"),
	} {
		if err := (&portFile{path: path}).write(t.Context(), 1); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if remaining, err := os.ReadDir(dir); err != nil || len(remaining) != 2 {
		t.Errorf("%v, %v, want the file and the directory", remaining, err)
	}
}

// TestPortFileLink checks that a symbolic link stays. Its target is written in place, and
// emptied at the end.
func TestPortFileLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target, link := filepath.Join(dir, "to"), filepath.Join(dir, "link")
	if err := os.Symlink("to", link); err != nil {
		t.Skip(err) // Windows allows it to some users only
	}
	p := &portFile{path: link}
	wantLink := func() {
		t.Helper()
		if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%v, %v, want a link", info, err)
		}
	}
	if err := p.write(t.Context(), 65535); err != nil { // creates the missing target
		t.Fatal(err)
	}
	wantFile(t, target, "65535\n")
	if err := os.Chmod(target, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.write(t.Context(), 81); err != nil { // a shorter text
		t.Fatal(err)
	}
	wantFile(t, target, "81\n")
	if info, err := os.Stat(target); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want the mode unchanged", info.Mode(), err)
	}
	wantLink()
	if err := p.remove(); err != nil {
		t.Error(err)
	}
	wantLink()
	if text, err := os.ReadFile(target); err != nil || len(text) != 0 {
		t.Errorf("after the end: %q, %v, want an empty file", text, err)
	}
}

func TestPortFileRemoveStale(t *testing.T) {
	t.Parallel()
	for text, removed := range map[string]bool{
		"80\n": true, "65535\n": true, "0\n": true,
		"80": false, "080\n": false, "65536\n": false, "+1\n": false, "80\n\n": false, "80\nx": false,
		"\n": false, "a": false, "other text\n": false,
	} {
		p := &portFile{path: filepath.Join(t.TempDir(), "port")}
		if err := os.WriteFile(p.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := p.removeStale()
		if _, statErr := os.Lstat(p.path); err != nil || errors.Is(statErr, fs.ErrNotExist) != removed {
			t.Errorf("%q: %v, then %v", text, err, statErr)
		}
	}
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none"), os.DevNull} {
		if err := (&portFile{path: path}).removeStale(); err != nil {
			t.Error(err)
		}
	}
}

func TestPortFileRemove(t *testing.T) {
	t.Parallel()
	p := &portFile{path: filepath.Join(t.TempDir(), "port")}
	write := func(port uint16) {
		t.Helper()
		if err := (&portFile{path: p.path}).write(t.Context(), port); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	if err := p.remove(); err != nil { // p has written nothing
		t.Error(err)
	}
	wantFile(t, p.path, "0\n")
	write(80)
	if err := p.remove(); err != nil { // p has written nothing
		t.Error(err)
	}
	wantFile(t, p.path, "80\n")
	p.lastPort = 81
	if err := p.remove(); err != nil { // another program wrote another port
		t.Error(err)
	}
	wantFile(t, p.path, "80\n")
	write(81)
	for range 2 {
		if err := p.remove(); err != nil {
			t.Error(err)
		}
		wantFile(t, p.path, "")
	}
}
