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

// Environment variables of the process that cannot read its state file.
const (
	unreadablePath          = "GOFORWARD_TEST_UNREADABLE"
	unreadableNoDescriptors = "GOFORWARD_TEST_NO_DESCRIPTORS" // no file descriptor is available to read the file
)

// TestStateFileUnreadable checks that a state file that cannot be read now does not count
// as damaged: it is not renamed and keeps its records.
func TestStateFileUnreadable(t *testing.T) {
	for name, test := range map[string]struct {
		env  []string
		mode os.FileMode
	}{
		"too many open files": {[]string{unreadableNoDescriptors + "=1"}, 0o600},
		"permission denied":   {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "goforward-state-*") //nolint:usetesting // another user has no access to the directory of TempDir
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			path := filepath.Join(dir, "state")
			writeStateFile(t, path, 7070)
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestStateFileUnreadableProcess$", "-test.timeout=1m")
			cmd.Env = append(append(os.Environ(), unreadablePath+"="+path), test.env...)
			if os.Getuid() == 0 { // root can read every file
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: chownToNobody(t, dir)}
			}
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), unreadableFinished) {
				t.Fatalf("the process that cannot read its state file: %v\n%s", err, out)
			}
			if aside, err := filepath.Glob(path + "*.damaged*"); err != nil || len(aside) != 0 {
				t.Errorf("the valid file was renamed to %q, %v; want it unchanged", aside, err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
			if content, err := os.ReadFile(path); err != nil || !strings.Contains(string(content), ":7070") {
				t.Errorf("the state file has %s, %v; want the record of port 7070", content, err)
			}
		})
	}
}

// writeStateFile creates a state file that records a mapping of an earlier run.
func writeStateFile(t *testing.T, path string, port uint16) {
	t.Helper()
	gw := newFakeGateway()
	gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
		if op == "unmap" {
			return backends.ErrNoReply
		}
		return nil
	}
	f := newForwarder(t, forward.Config{StateFile: path}, gw)
	if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
		t.Fatal(err)
	}
	_ = f.Close() // the gateway does not reply, so the file keeps the record
	if content, err := os.ReadFile(path); err != nil || !strings.Contains(string(content), "45.45.45.1:") {
		t.Fatalf("the state file has %s, %v", content, err)
	}
}

// chownToNobody makes an unprivileged user the owner of a directory and its files, and
// returns that user.
func chownToNobody(t *testing.T, dir string) *syscall.Credential {
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

// unreadableFinished is the text that the process prints at its end.
const unreadableFinished = "finished"

// TestStateFileUnreadableProcess is the process that TestStateFileUnreadable starts.
func TestStateFileUnreadableProcess(t *testing.T) {
	path := os.Getenv(unreadablePath)
	if path == "" {
		t.Skip("TestStateFileUnreadable starts this test in another process")
	}
	release := func() {}
	if os.Getenv(unreadableNoDescriptors) != "" {
		release = exhaustDescriptors(t)
	}
	f := newForwarder(t, forward.Config{StateFile: path}, newFakeGateway())
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Error(err)
	}
	release()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	fmt.Println(unreadableFinished)
}

// exhaustDescriptors leaves this process one file descriptor. This is enough for the lock
// of the state file, but not for the file itself.
func exhaustDescriptors(t *testing.T) (release func()) {
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
