package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// reportFD is the file descriptor on which the first process of new namespaces reports an
// error. If it succeeds, it closes the descriptor without a report.
const reportFD = 3

const namespaceFlags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET

// startInNamespaces runs the command as the first process of new namespaces and returns
// its exit code. It returns an error if the namespaces could not be created.
func startInNamespaces(command func() *exec.Cmd) (int, error) {
	// Pdeathsig refers to the thread that forks, not to the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	userNS := &syscall.SysProcAttr{
		Cloneflags:  namespaceFlags | syscall.CLONE_NEWUSER,
		Pdeathsig:   syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if os.Geteuid() != 0 {
		return startWithAttr(command(), userNS)
	}
	code, err := startWithAttr(command(), &syscall.SysProcAttr{Cloneflags: namespaceFlags, Pdeathsig: syscall.SIGKILL})
	if err == nil {
		return code, nil
	}
	// Root in a container often lacks CAP_SYS_ADMIN but may create user namespaces.
	code, err2 := startWithAttr(command(), userNS)
	if err2 != nil {
		return 0, errors.Join(err, err2)
	}
	return code, nil
}

// startWithAttr starts the command in the namespaces of attr, waits until it exits, and
// returns its exit code.
func startWithAttr(cmd *exec.Cmd, attr *syscall.SysProcAttr) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd.SysProcAttr = attr
	cmd.ExtraFiles = []*os.File{w} // reportFD
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, fmt.Errorf("make namespaces: %w", err)
	}
	defer forwardSignals(cmd.Process)()
	reason, err := io.ReadAll(r)
	if err != nil {
		reason = []byte(err.Error())
	}
	err = cmd.Wait()
	if len(reason) > 0 {
		return 0, fmt.Errorf("set up namespaces: %s", reason)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		fmt.Fprintf(os.Stderr, "lab: the tests were terminated by signal: %v\n", status.Signal())
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// forwardSignals forwards the signals that would terminate this process, and SIGQUIT, on
// which the tests print their goroutines. So the tests can write their output before the
// namespaces end.
func forwardSignals(p *os.Process) (stop func()) {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-c:
				_ = p.Signal(s)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}

// enterNamespaces sets up the new namespaces in which this process was started.
func enterNamespaces() error {
	report := inheritedFile(reportFD, "report")
	defer report.Close()
	err := setUpNamespaces()
	if err != nil {
		fmt.Fprint(report, err)
	}
	return err
}

func setUpNamespaces() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("%s=%s is set, but this is not the first process of a pid namespace", roleEnv, roleEnter)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// ip netns and the daemons write to /run, and /proc must show this pid namespace.
	if err := unix.Mount("lab", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	if err := os.Mkdir(runtimeDir, 0o700); err != nil {
		return err
	}
	if self, err := os.Executable(); err != nil {
		return err
	} else if _, err := os.Stat(self); err != nil {
		return fmt.Errorf("the private /run hides the test binary: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil { //nolint:noctx // immediate
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	return os.WriteFile(namespaceMarker, nil, 0o644)
}

// adoptOrphans makes this process the parent of the processes that its children leave
// behind. So it can wait for a daemon that has detached itself.
func adoptOrphans() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// inheritedFile returns a file that this process inherited. It is not passed on to child
// processes, because they would keep a pipe open.
func inheritedFile(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// inNetns calls fn on a thread that is in the named network namespace. Sockets that fn
// opens stay there; goroutines that it starts do not.
func inNetns(name string, fn func() error) error {
	target, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer target.Close()

	runtime.LockOSThread()
	original, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer original.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	fnErr := fn()
	if err := unix.Setns(int(original.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that it exits with its goroutine and no other
		// goroutine runs in the wrong namespace.
		return fmt.Errorf("leave network namespace %s: %w", name, err)
	}
	runtime.UnlockOSThread()
	return fnErr
}

// insideEnv holds the name of the test that a process runs for Inside. A separate process
// in new namespaces does not change the host's network: nothing is left when the process
// ends, for any reason. Changing the namespace of a thread would not suffice, because
// goroutines move between threads.
const insideEnv = "GOFORWARD_TEST_INSIDE"

// Inside runs the calling test again in a process with its own network namespace, and
// returns true in that process.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == t.Name() {
		return true
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED, NOTHING WAS TESTED: iproute2's ip is not installed")
	}
	// -test.run takes one anchored pattern for each level of subtests.
	run := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+run, "-test.v", "-test.timeout=1m")
	// Without this, the race detector makes every process wait a second before it exits.
	race := "GORACE=" + os.Getenv("GORACE") + " atexit_sleep_ms=0"
	cmd.Env = append(os.Environ(), insideEnv+"="+t.Name(), race)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig refers to the thread, not to the process
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	var exit *exec.ExitError
	switch {
	case err == nil && strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("SKIPPED, NOTHING WAS TESTED:\n%s", out)
	case err == nil && !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatalf("the process inside did not run the test:\n%s", out)
	case err == nil:
	case errors.As(err, &exit):
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	default:
		t.Skipf("SKIPPED, NOTHING WAS TESTED: no network namespace, neither as root nor in a user namespace: %v", err)
	}
	return false
}

// IP runs ip(8) commands, one for each line, in the network namespace of the thread. It
// stops at the first error.
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
