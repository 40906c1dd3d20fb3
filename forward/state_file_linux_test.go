package forward_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// The environment variables of the process that cannot read its state file.
const (
	unreadablePath = "GOFORWARD_TEST_UNREADABLE"
	unreadableFull = "GOFORWARD_TEST_NO_DESCRIPTORS" // it has no file descriptor to read it with
)

// A state file that cannot be read just now is not damaged: it stays where it is, with
// what it records.
func TestStateFileUnreadable(t *testing.T) {
	for name, test := range map[string]struct {
		env  []string
		mode os.FileMode
	}{
		"too many open files": {[]string{unreadableFull + "=1"}, 0o600},
		"permission denied":   {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "goforward-state-*") //nolint:usetesting // another user cannot enter that of TempDir
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			path := filepath.Join(dir, "state")
			leaveRecord(t, path, 7070)
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestStateFileUnreadableProcess$", "-test.timeout=1m")
			cmd.Env = append(append(os.Environ(), unreadablePath+"="+path), test.env...)
			if os.Getuid() == 0 { // root may read everything
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: giveAway(t, dir)}
			}
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), unreadableDone) {
				t.Fatalf("the process that cannot read its state file: %v\n%s", err, out)
			}
			if aside, err := filepath.Glob(path + "*.damaged*"); err != nil || len(aside) != 0 {
				t.Errorf("the good file was set aside as %q, %v; want it left in place", aside, err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if content, err := os.ReadFile(path); err != nil || !strings.Contains(string(content), ":7070") {
				t.Errorf("the state file has %s, %v; want the record of port 7070 that it had", content, err)
			}
		})
	}
}

// leaveRecord makes a state file that records a mapping of an earlier run.
func leaveRecord(t *testing.T, path string, port uint16) {
	t.Helper()
	m := newMemory()
	m.fail = func(op string, _ backends.Protocol, _ uint16) error {
		if op == "unmap" {
			return backends.ErrNoReply
		}
		return nil
	}
	f := forwarder(t, forward.Config{StateFile: path}, m)
	if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
		t.Fatal(err)
	}
	_ = f.Close() // the gateway does not answer, so the file keeps the record
	if content, err := os.ReadFile(path); err != nil || !strings.Contains(string(content), "45.45.45.1:") {
		t.Fatalf("the state file has %s, %v", content, err)
	}
}

// giveAway makes a directory and its files another user's, and returns that user.
func giveAway(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	const nobody = 65534
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(files, dir) {
		if err := os.Lchown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.Credential{Uid: nobody, Gid: nobody}
}

const unreadableDone = "has run to its end"

// This is the process that TestStateFileUnreadable starts.
func TestStateFileUnreadableProcess(t *testing.T) {
	path := os.Getenv(unreadablePath)
	if path == "" {
		t.Skip("another test starts this one in a process of its own")
	}
	release := func() {}
	if os.Getenv(unreadableFull) != "" {
		release = openAllButOne(t)
	}
	f := forwarder(t, forward.Config{StateFile: path}, newMemory())
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Error(err)
	}
	release()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	fmt.Println(unreadableDone)
}

// openAllButOne leaves this process one file descriptor: enough for the lock of the
// state file, and not for the file itself.
func openAllButOne(t *testing.T) (release func()) {
	t.Helper()
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	var open []*os.File
	for {
		file, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		open = append(open, file)
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		for _, file := range open[1:] {
			_ = file.Close()
		}
	}
}
