package labtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/lab"
)

// --port-file replaces and removes only regular files that are in its way. The
// files are in a mount of the test's own.
func TestPortFile(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: --port-file on a device, a FIFO, links and a mount point")
	home := lab.Home(t, lab.Router{})
	dir := t.TempDir()
	mount(t, "files", dir, "tmpfs", unix.MS_NOSUID)
	in := func(name string) string { return filepath.Join(dir, name) }

	device := in("device")
	if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		create(t, device) // a user's namespace makes no devices, but mounts them
		mount(t, os.DevNull, device, "", unix.MS_BIND)
	}
	if err := unix.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "target", "dangling": "missing", "to device": "device"} {
		if err := os.Symlink(target, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	create(t, in("target"))
	create(t, in("mounted"))
	create(t, in("mount point"))
	mount(t, in("mounted"), in("mount point"), "", unix.MS_BIND)

	for name, file := range map[string]struct {
		text string // where the port is to be seen; empty: nowhere
		gone bool   // at the end of --hold
	}{
		"new":         {text: "new", gone: true},
		"device":      {},
		"to device":   {},
		"link":        {text: "target"},
		"dangling":    {text: "missing"},
		"mount point": {text: "mounted"},
	} {
		before, _ := os.Lstat(in(name))
		same := func(when string) {
			t.Helper()
			after, err := os.Lstat(in(name))
			if before != nil && (err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode()) {
				t.Errorf("%s: %s: the file is another one, or none: %v", name, when, err)
			}
		}
		shows := func(want, when string) {
			t.Helper()
			if text, err := os.ReadFile(in(file.text)); file.text != "" && (err != nil || string(text) != want) {
				t.Errorf("%s: %s: %q, %v, want %q", name, when, text, err, want)
			}
		}
		once := execute(t, home.Lan, nil, "map", "8080", "--port-file", in(name))
		once.exits(0)
		same("after map")
		shows("8080\n", "after map")

		hold := execute(t, home.Lan, nil, "map", "65000:8081", "--hold", "--port-file", in(name))
		hold.line()
		if file.text != "" {
			until(t, patience, name+" has no port", func() bool {
				text, _ := os.ReadFile(in(file.text))
				return string(text) == "65000\n"
			})
		}
		same("during map --hold")
		hold.signal(os.Interrupt)
		hold.exits(0)
		same("after map --hold")
		if _, err := os.Lstat(in(name)); file.gone != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: after map --hold: %v; gone is to be %v", name, err, file.gone)
		} else if !file.gone {
			shows("", "after map --hold")
		}
	}
	fifo(t, home, in("fifo"))
}

// fifo checks that a FIFO is written when a program reads it, and keeps nothing
// waiting if none does.
func fifo(t *testing.T, home *lab.HomeNet, path string) {
	t.Helper()
	want := "--port-file: waiting for a program to read " + path + "\n"
	hold := execute(t, home.Lan, nil, "map", "8080", "--hold", "--port-file", path)
	hold.line()
	if text, err := os.ReadFile(path); err != nil || string(text) != "8080\n" {
		t.Errorf("the FIFO had %q, %v", text, err)
	}
	hold.signal(os.Interrupt)
	hold.exits(0)
	once := execute(t, home.Lan, nil, "map", "8080", "--port-file", path)
	once.line()
	if text, err := os.ReadFile(path); err != nil || string(text) != "8080\n" {
		t.Errorf("the FIFO had %q, %v", text, err)
	}
	once.exits(0)
	unread := execute(t, home.Lan, nil, "map", "8081", "--hold", "--port-file", path)
	unread.line()
	unread.signal(syscall.SIGTERM)
	unread.exits(0)
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("%v, %v, want the FIFO", info, err)
	}
	once = execute(t, home.Lan, nil, "map", "8081", "--port-file", path)
	once.line()
	until(t, patience, "it does not say that it waits", func() bool { return strings.Contains(once.stderr.String(), want) })
	once.signal(os.Interrupt)
	once.exits(1)
}

func create(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func mount(t *testing.T, source, target, kind string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
