package lab

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// A process of its own, started in new namespaces, keeps the host's network untouched:
// nothing is left when it ends, however it ends. Changing the namespace of a thread
// would not follow goroutines.
const insideEnv = "GOFORWARD_TEST_INSIDE"

// Inside runs the calling test again in a process with a network namespace of its own,
// and returns true there.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED, NOTHING WAS TESTED: iproute2's ip is not installed")
	}
	// Subtests are named from the root, each part anchored.
	run := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+run, "-test.v", "-test.timeout=1m")
	// Else the race detector makes every process wait a second before it ends.
	race := "GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0"
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name(), race)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig is about the thread, not the process
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	switch {
	case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("SKIPPED, NOTHING WAS TESTED:\n%s", out)
	case err == nil && !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatalf("the process inside ran nothing:\n%s", out)
	case err == nil:
	case errors.As(err, &exit):
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	default:
		t.Skipf("SKIPPED, NOTHING WAS TESTED: no network namespace, neither as root nor in a user namespace: %v", err)
	}
	return false
}

// IP runs ip(8) commands, one a line, in the thread's network namespace, until one fails.
func IP(t *testing.T, commands string) {
	t.Helper()
	for line := range strings.Lines(commands) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
			return
		}
	}
}
