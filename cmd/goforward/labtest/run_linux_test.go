package labtest

import (
	"context"
	"io"
	"net"
	"os"
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

// TestRunServer checks that a real server under goforward run is reachable from outside, and
// that a SIGTERM to goforward alone ends the server and deletes the mappings. The exit code is
// the one of the server, which ends with 0 on SIGTERM.
func TestRunServer(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: run, a server is reachable until a signal ends it")
	const port, name = "8053", "inside.example.org"
	home := lab.Home(t, lab.Router{})
	p := execute(t, home.Lan, nil, "run", "-p", port+"/both", "--",
		"dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts",
		"--port", port, "--txt-record="+name+",{ip}:{port}")
	external := externalAddr(home, 8053).String()
	for _, network := range []string{"udp", "tcp"} {
		resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return home.Wan.Dial(ctx, network, external)
		}}
		waitUntil(t, maxWait, "the server does not respond by "+network, func() bool {
			text, err := resolver.LookupTXT(t.Context(), name)
			return err == nil && len(text) == 1 && text[0] == external
		})
	}
	wantRules(t, home, 2)
	p.signal(syscall.SIGTERM)
	p.wantExit(0)
	wantRules(t, home, 0)
	ln, err := home.Lan.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatalf("the server still runs: %v", err)
	}
	ln.Close()
}

// TestRunKilled checks that the command survives a goforward that is killed, and that the mapping
// is deleted when its lifetime ends.
func TestRunKilled(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: run, killed")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	p := execute(t, home.Lan, nil, "run", "-p", "8080", "--lifetime", "4", "--", "sh", "-c", "echo $$; exec sleep 60 >/dev/null 2>&1")
	pid, err := strconv.Atoi(strings.TrimSpace(p.readLine()))
	if err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGKILL)
	_ = p.cmd.Wait()
	home.Reaches(t, echo, externalAddr(home, 8080))
	waitUnreachable(t, home, echo, externalAddr(home, 8080), 8*time.Second)
	wantRules(t, home, 0)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the command has ended: %v", err)
	}
}

// createScript writes a shell script and returns its path.
func createScript(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// terminal is an interactive shell in a pseudo-terminal.
type terminal struct {
	t      *testing.T
	file   *os.File
	output syncBuffer
	read   int // the number of bytes of output that want has consumed
}

// openShell starts an interactive shell in the host. The terminal does not echo.
func openShell(t *testing.T, host *lab.Host) *terminal {
	t.Helper()
	program, err := builtCommand()
	if err != nil {
		t.Fatal(err)
	}
	parentEnd, childEnd := openTerminal(t)
	mode, err := unix.IoctlGetTermios(int(childEnd.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(childEnd.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	cmd := host.Command(t.Context(), "env", "--default-signal=HUP,INT,TERM,QUIT,TSTP", "XDG_STATE_HOME="+host.StateDir(), "TMPDIR=/run/user",
		"PS1=", "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "sh", "-i")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childEnd, childEnd, childEnd
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	childEnd.Close()
	if err != nil {
		parentEnd.Close()
		t.Fatal(err)
	}
	term := &terminal{t: t, file: parentEnd}
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(&term.output, parentEnd) // it fails when the last process closes the terminal
		close(copied)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		parentEnd.Close()
		<-copied
	})
	return term
}

const (
	ctrlC = "\x03"
	ctrlZ = "\x1a"
)

// enter types the text.
func (term *terminal) enter(text string) {
	term.t.Helper()
	if _, err := term.file.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}

// want waits for a line that starts with the prefix, and returns the rest of that line. The next
// call continues after it.
func (term *terminal) want(prefix string) (rest string) {
	term.t.Helper()
	defer func() {
		if term.t.Failed() {
			term.t.Logf("output of the terminal:\n%s", &term.output)
		}
	}()
	waitUntil(term.t, maxWait, "no line "+prefix, func() bool {
		text := term.output.String()[term.read:]
		for line := range strings.Lines(text) {
			if !strings.HasSuffix(line, "\n") {
				break
			}
			term.read += len(line)
			if after, ok := strings.CutPrefix(line, prefix); ok {
				rest = strings.TrimSpace(after)
				return true
			}
		}
		return false
	})
	return rest
}

// TestRunTerminal checks that the command of run has the terminal, and that each Ctrl-C reaches
// it once.
func TestRunTerminal(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: run in a terminal, with input, Ctrl-Z, fg and Ctrl-C")
	home := lab.Home(t, lab.Router{})
	script := createScript(t, `
		sleep 60 &
		n=0
		trap 'n=$((n+1)); echo interrupted' INT
		trap 'echo "interrupts: $n"; kill $!; exit 7' USR1
		echo "ready: $PPID"
		for i in 1 2; do
			until read line; do :; done
			echo "read: $line"
		done
		while :; do wait $!; done
	`)
	term := openShell(t, home.Lan)
	term.enter("goforward run -p 8080 -- sh " + script + "\n")
	pid, err := strconv.Atoi(term.want("ready: "))
	if err != nil {
		t.Fatal(err)
	}
	wantRules(t, home, 1)
	term.enter("first\n")
	if line := term.want("read: "); line != "first" {
		t.Errorf("the command read %q", line)
	}
	term.enter(ctrlZ)
	term.want("[1]") // the shell reports the job
	wantRules(t, home, 1)
	term.enter("fg; echo status: $?\n")
	term.enter("second\n")
	if line := term.want("read: "); line != "second" {
		t.Errorf("the command read %q after fg", line)
	}
	const interrupts = 10 // if goforward passed them on, some of them would arrive at the same time and count once
	for range interrupts {
		term.enter(ctrlC)
		term.want("interrupted")
	}
	// goforward handles this signal after the Ctrl-C, so the count is final when it arrives.
	if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if n := term.want("interrupts: "); n != strconv.Itoa(interrupts) {
		t.Errorf("the command received %s interrupts, want %d", n, interrupts)
	}
	if status := term.want("status: "); status != "7" {
		t.Errorf("exit status %s, want 7", status)
	}
	wantRules(t, home, 0)
}

// TestRunRestartInterrupted checks that Ctrl-C prevents the restart of a command that has not
// ended yet. The terminal sends the signal to the command too, so goforward does not pass it on.
func TestRunRestartInterrupted(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: run --restart-on-change, Ctrl-C while the command ends")
	home := lab.Home(t, lab.Router{NoUPnP: true})
	script := createScript(t, `
		sleep 60 &
		trap 'echo terminated' TERM
		trap 'kill $!; exit 7' INT
		echo started
		while :; do wait $!; done
	`)
	term := openShell(t, home.Lan)
	term.enter("goforward run -p 8080 --lifetime 8 --restart-on-change -- sh " + script + "; echo status: $?\n")
	term.want("started")
	changeAddress(t, home, "45.45.45.77/24")
	home.Daemon.Signal(t, syscall.SIGUSR1) // makes miniupnpd announce the address
	term.want("terminated")
	term.enter(ctrlC)
	if status := term.want("status: "); status != "7" { // another run of the command would not end
		t.Errorf("exit status %s, want 7", status)
	}
	wantRules(t, home, 0)
}

// TestRunSignalStorm checks that many signals block neither goforward nor its command.
func TestRunSignalStorm(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: run, thousands of signals")
	home := lab.Home(t, lab.Router{})
	script := createScript(t, `
		sleep 60 >/dev/null 2>&1 &
		trap : INT TERM QUIT USR1 USR2
		trap 'kill $!; exit 7' HUP
		echo ready
		while :; do wait $!; done
	`)
	p := execute(t, home.Lan, nil, "run", "-p", "8080", "--", "sh", script)
	p.readLine()
	var storm sync.WaitGroup
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		storm.Go(func() {
			for range 1000 {
				_ = p.cmd.Process.Signal(sig)
			}
		})
	}
	storm.Wait()
	exited := make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(exited)
	}()
	waitUntil(t, maxWait, "goforward does not end", func() bool {
		p.signal(syscall.SIGHUP) // may be discarded while the command handles earlier ones
		select {
		case <-exited:
			return true
		default:
			return false
		}
	})
	if code := p.cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("%v, want exit code 7\n%s", p.cmd.ProcessState, &p.stderr)
	}
	wantRules(t, home, 0)
}
