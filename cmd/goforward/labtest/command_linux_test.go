package labtest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"golang.org/x/sys/unix"
)

// commandProcess is a running process of the built command.
type commandProcess struct {
	t        *testing.T
	cmd      *exec.Cmd
	out      *bufio.Reader
	stderr   syncBuffer
	closeOut func() // closes the parent's end of out
}

// syncBuffer collects the output of a process. It may be read while the process writes.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *syncBuffer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *syncBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// execute runs the built command in the host, with a wrapper, for example nohup. All
// signals have their default action, even if this process ignores them.
func execute(t *testing.T, host *lab.Host, wrapper []string, args ...string) *commandProcess {
	t.Helper()
	p := prepare(t, host, wrapper, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, &p.stderr
	p.start(r, w)
	return p
}

// executeInTerminal is execute with a pseudo-terminal, which hangUp closes.
func executeInTerminal(t *testing.T, host *lab.Host, args ...string) *commandProcess {
	t.Helper()
	p := prepare(t, host, nil, args...)
	parentEnd, childEnd := openTerminal(t)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = childEnd, childEnd, childEnd
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	p.start(parentEnd, childEnd)
	return p
}

func prepare(t *testing.T, host *lab.Host, wrapper []string, args ...string) *commandProcess {
	t.Helper()
	path, err := builtCommand()
	if err != nil {
		t.Fatal(err)
	}
	line := append([]string{"--default-signal=HUP,INT,TERM", "XDG_STATE_HOME=" + host.StateDir(), "TMPDIR=/run/user"}, wrapper...)
	return &commandProcess{t: t, cmd: host.Command(t.Context(), "env", append(append(line, path), args...)...)}
}

func (p *commandProcess) start(parentEnd, childEnd *os.File) {
	p.t.Helper()
	err := p.cmd.Start()
	childEnd.Close()
	if err != nil {
		parentEnd.Close()
		p.t.Fatal(err)
	}
	p.out = bufio.NewReader(parentEnd)
	p.closeOut = sync.OnceFunc(func() { parentEnd.Close() })
	p.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		p.closeOut()
	})
}

// readLine returns the next line of output.
func (p *commandProcess) readLine() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("no line of output: %v\n%s", err, p.wait())
	}
	return line
}

func (p *commandProcess) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// hangUp closes the terminal.
func (p *commandProcess) hangUp() { p.closeOut() }

// wait waits for the process and returns its standard error.
func (p *commandProcess) wait() string {
	_, _ = io.Copy(io.Discard, p.out)
	_ = p.cmd.Wait()
	return p.stderr.String()
}

// wantExit waits for the process, which must exit with this code.
func (p *commandProcess) wantExit(code int) (stderr string) {
	p.t.Helper()
	stderr = p.wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("%v: %v, want exit code %d\n%s", p.cmd.Args, p.cmd.ProcessState, code, stderr)
	}
	return stderr
}

// openTerminal opens a pseudo-terminal.
func openTerminal(t *testing.T) (parentEnd, childEnd *os.File) {
	t.Helper()
	parentEnd, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(parentEnd.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		childEnd, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		parentEnd.Close()
		t.Fatal(err)
	}
	return parentEnd, childEnd
}

// repeats returns how often a test that depends on timing is repeated: three times, or as
// GOFORWARD_REPEATS specifies.
func repeats(t *testing.T) int {
	t.Helper()
	text := os.Getenv("GOFORWARD_REPEATS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("GOFORWARD_REPEATS=%s", text)
	}
	return n
}

// TestCommandEnds checks that map --hold deletes its mappings on the router, for all ways
// to terminate it.
func TestCommandEnds(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: map --hold leaves nothing behind, "+backend)
			home := lab.Home(t, lab.Router{})
			hold := []string{"map", "8080/both", "--hold", "--backend", backend}
			for run := range repeats(t) {
				for i, d := range []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond} {
					sig := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}[(i+run)%3]
					testRepeatedSignal(t, home, hold, sig, d)
				}
				testTimeoutCommand(t, home, hold)
				testHangUp(t, home, hold)
				testNohup(t, home, hold)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// waitForMappings waits until the command has its mappings.
func waitForMappings(t *testing.T, home *lab.HomeNet, p *commandProcess) {
	t.Helper()
	if line := strings.TrimSpace(p.readLine()); line != externalAddr(home, 8080).String() {
		t.Fatalf("printed %q, want %v", line, externalAddr(home, 8080))
	}
	wantRules(t, home, 2)
}

const removingText = "deleting the mapping; press Ctrl-C again to leave it on the gateway\n"

// testRepeatedSignal sends the signal twice, as a wrapper does that signals its child and
// then the child's process group.
func testRepeatedSignal(t *testing.T, home *lab.HomeNet, hold []string, sig os.Signal, pause time.Duration) {
	t.Helper()
	p := execute(t, home.Lan, nil, hold...)
	waitForMappings(t, home, p)
	p.signal(sig)
	time.Sleep(pause)
	p.signal(sig)
	if stderr := p.wantExit(0); strings.Count(stderr, removingText) != 1 {
		t.Errorf("%v twice, %v apart: %s", sig, pause, stderr)
	}
	wantRules(t, home, 0)
}

// testTimeoutCommand terminates the command by GNU timeout, which signals its child and
// then its own process group. It does the same when its time is up and when it receives
// SIGTERM.
func testTimeoutCommand(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := execute(t, home.Lan, []string{"timeout", "1h"}, hold...)
	waitForMappings(t, home, p)
	p.signal(syscall.SIGTERM)
	p.wantExit(0)
	wantRules(t, home, 0)
}

// testHangUp closes the terminal of the command, as at the end of an SSH connection.
func testHangUp(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := executeInTerminal(t, home.Lan, hold...)
	for !strings.Contains(p.readLine(), "Kept alive until Ctrl-C") {
	}
	wantRules(t, home, 2)
	p.hangUp()
	p.wantExit(0)
	wantRules(t, home, 0)
}

// testNohup sends a SIGHUP that must have no effect, and then a SIGTERM.
func testNohup(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := execute(t, home.Lan, []string{"nohup"}, hold...)
	waitForMappings(t, home, p)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, ignored, _ := strings.Cut(string(status), "SigIgn:\t")
	ignored, _, _ = strings.Cut(ignored, "\n")
	if mask, err := strconv.ParseUint(ignored, 16, 64); err != nil || mask>>(syscall.SIGHUP-1)&1 == 0 {
		t.Errorf("SIGHUP is not ignored: %s, %v", ignored, err)
	}
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGTERM)
	if stderr := p.wantExit(0); strings.Count(stderr, removingText) != 1 {
		t.Error(stderr)
	}
	wantRules(t, home, 0)
}

// TestPortFile checks that --port-file replaces and removes only regular files. The files
// are in a mount of the test.
func TestPortFile(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: --port-file on a device, a FIFO, links and a mount point")
	home := lab.Home(t, lab.Router{})
	dir := t.TempDir()
	mount(t, "files", dir, "tmpfs", unix.MS_NOSUID)
	in := func(name string) string { return filepath.Join(dir, name) }

	device := in("device")
	if err := unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		createFile(t, device) // a user namespace cannot create devices, but can mount them
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
	createFile(t, in("target"))
	createFile(t, in("mounted"))
	createFile(t, in("mount point"))
	mount(t, in("mounted"), in("mount point"), "", unix.MS_BIND)

	for name, file := range map[string]struct {
		portIn  string // the file that has the port; empty: none
		removed bool   // removed at the end of --hold
	}{
		"new":         {portIn: "new", removed: true},
		"device":      {},
		"to device":   {},
		"link":        {portIn: "target"},
		"dangling":    {portIn: "missing"},
		"mount point": {portIn: "mounted"},
	} {
		before, _ := os.Lstat(in(name))
		wantSameFile := func(when string) {
			t.Helper()
			after, err := os.Lstat(in(name))
			if before != nil && (err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode()) {
				t.Errorf("%s: %s: the file was replaced or removed: %v", name, when, err)
			}
		}
		wantText := func(want, when string) {
			t.Helper()
			if text, err := os.ReadFile(in(file.portIn)); file.portIn != "" && (err != nil || string(text) != want) {
				t.Errorf("%s: %s: %q, %v, want %q", name, when, text, err, want)
			}
		}
		once := execute(t, home.Lan, nil, "map", "8080", "--port-file", in(name))
		once.wantExit(0)
		wantSameFile("after map")
		wantText("8080\n", "after map")

		hold := execute(t, home.Lan, nil, "map", "65000:8081", "--hold", "--port-file", in(name))
		hold.readLine()
		if file.portIn != "" {
			waitUntil(t, maxWait, name+" has no port", func() bool {
				text, _ := os.ReadFile(in(file.portIn))
				return string(text) == "65000\n"
			})
		}
		wantSameFile("during map --hold")
		hold.signal(os.Interrupt)
		hold.wantExit(0)
		wantSameFile("after map --hold")
		if _, err := os.Lstat(in(name)); file.removed != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: after map --hold: %v; want removed: %v", name, err, file.removed)
		} else if !file.removed {
			wantText("", "after map --hold")
		}
	}
	testFIFO(t, home, in("fifo"))
}

// testFIFO checks that the port is written to a FIFO when a program reads it, and that
// the command does not block at its end if no program reads it.
func testFIFO(t *testing.T, home *lab.HomeNet, path string) {
	t.Helper()
	want := "--port-file: waiting for a program to read " + path + "\n"
	hold := execute(t, home.Lan, nil, "map", "8080", "--hold", "--port-file", path)
	hold.readLine()
	if text, err := os.ReadFile(path); err != nil || string(text) != "8080\n" {
		t.Errorf("read %q, %v from the FIFO", text, err)
	}
	hold.signal(os.Interrupt)
	hold.wantExit(0)
	once := execute(t, home.Lan, nil, "map", "8080", "--port-file", path)
	once.readLine()
	if text, err := os.ReadFile(path); err != nil || string(text) != "8080\n" {
		t.Errorf("read %q, %v from the FIFO", text, err)
	}
	once.wantExit(0)
	unread := execute(t, home.Lan, nil, "map", "8081", "--hold", "--port-file", path)
	unread.readLine()
	unread.signal(syscall.SIGTERM)
	unread.wantExit(0)
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("%v, %v, want the FIFO", info, err)
	}
	once = execute(t, home.Lan, nil, "map", "8081", "--port-file", path)
	once.readLine()
	waitUntil(t, maxWait, "the command does not report that it waits", func() bool { return strings.Contains(once.stderr.String(), want) })
	once.signal(os.Interrupt)
	once.wantExit(130)
}

func createFile(t *testing.T, path string) {
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
