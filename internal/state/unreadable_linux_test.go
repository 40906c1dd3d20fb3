package state_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/state"
)

// A file that cannot be opened just now stays as it is: Open fails, unlocks it, and
// succeeds later.
func TestUnreadable(t *testing.T) {
	for name, test := range map[string]struct {
		mode   os.FileMode
		openIt func(t *testing.T, path string) (*state.File, []state.Record, error)
	}{
		"permission denied":   {0, openUnprivileged},
		"too many open files": {0o600, openWithoutDescriptors},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			f, _ := open(t, path)
			if err := f.Write(records); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			f, got, err := test.openIt(t, path)
			if f != nil || len(got) != 0 || err == nil {
				t.Errorf("Open: %v, %v, %v; want no file and no records, and the reason", f, got, err)
			}
			if aside, err := filepath.Glob(path + ".damaged*"); err != nil || len(aside) != 0 {
				t.Errorf("set aside: %v, %v", aside, err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, got = open(t, path); len(got) != len(records) {
				t.Errorf("a later Open returns %d records, want %d", len(got), len(records))
			}
		})
	}
}

// openUnprivileged opens a state file in a thread that cannot read every file, even if
// it is root's.
func openUnprivileged(t *testing.T, path string) (f *state.File, records []state.Record, err error) {
	t.Helper()
	var dropped error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends without its privileges
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if dropped = unix.Capset(&header, &none[0]); dropped == nil {
			f, records, err = state.Open(path)
		}
	}()
	<-done
	if dropped != nil {
		t.Fatal(dropped)
	}
	return f, records, err
}

// openWithoutDescriptors opens a state file in a process that can open one more file:
// enough for the lock, and not for the state file.
func openWithoutDescriptors(t *testing.T, path string) (*state.File, []state.Record, error) {
	t.Helper()
	next, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	lowest := uint64(next.Fd()) // that is free
	_ = next.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: lowest + 1, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	return state.Open(path)
}
