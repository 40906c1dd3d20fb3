package labtest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/natforward/goforward/internal/lab"
)

// builtCommand is the command as users have it, built once into the world's own /run.
var builtCommand = sync.OnceValues(func() (path string, err error) {
	const at = "/run/goforward"
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", at, "github.com/natforward/goforward/cmd/goforward")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the command: %w: %s", err, out)
	}
	return at, nil
})

// built is a running goforward of its own binary.
type built struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr talk
	closed func() // closes this side of out
}

// talk is what a process has written so far.
type talk struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *talk) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *talk) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// execute runs the built command in the host, behind a wrapper such as nohup.
// Signals have their defaults, whatever this process ignores.
func execute(t *testing.T, host *lab.Host, wrapper []string, args ...string) *built {
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

// executeInTerminal is execute with a terminal of its own, which hangUp closes.
func executeInTerminal(t *testing.T, host *lab.Host, args ...string) *built {
	t.Helper()
	p := prepare(t, host, nil, args...)
	ours, theirs := openTerminal(t)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, theirs, theirs
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	p.start(ours, theirs)
	return p
}

func prepare(t *testing.T, host *lab.Host, wrapper []string, args ...string) *built {
	t.Helper()
	path, err := builtCommand()
	if err != nil {
		t.Fatal(err)
	}
	line := append([]string{"--default-signal=HUP,INT,TERM", "XDG_STATE_HOME=/run/state"}, wrapper...)
	return &built{t: t, cmd: host.Command(t.Context(), "env", append(append(line, path), args...)...)}
}

func (p *built) start(ours, theirs *os.File) {
	p.t.Helper()
	err := p.cmd.Start()
	theirs.Close()
	if err != nil {
		ours.Close()
		p.t.Fatal(err)
	}
	p.out = bufio.NewReader(ours)
	p.closed = sync.OnceFunc(func() { ours.Close() })
	p.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		p.closed()
	})
}

// line is the next line of its output.
func (p *built) line() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatalf("no line of output: %v\n%s", err, p.end())
	}
	return line
}

func (p *built) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// hangUp closes the terminal.
func (p *built) hangUp() { p.closed() }

// end waits for the process and returns what it wrote to stderr.
func (p *built) end() string {
	_, _ = io.Copy(io.Discard, p.out)
	_ = p.cmd.Wait()
	return p.stderr.String()
}

// exits waits for the process, which must exit with the code.
func (p *built) exits(code int) (stderr string) {
	p.t.Helper()
	stderr = p.end()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("%v: %v, want exit code %d\n%s", p.cmd.Args, p.cmd.ProcessState, code, stderr)
	}
	return stderr
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		theirs, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		ours.Close()
		t.Fatal(err)
	}
	return ours, theirs
}
