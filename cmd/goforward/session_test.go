package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/natforward/goforward/gatewaytest"
	"github.com/rogpeppe/go-internal/testscript"
)

// perScript holds a value for each running script.
type perScript[T any] struct {
	mu sync.Mutex
	of map[*testscript.TestScript]T
}

func (p *perScript[T]) set(ts *testscript.TestScript, t T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = map[*testscript.TestScript]T{}
	}
	p.of[ts] = t
}

func (p *perScript[T]) get(ts *testscript.TestScript) (T, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.of[ts]
	return t, ok
}

var (
	gateways perScript[*gatewaytest.Gateway]
	sessions perScript[*session]
)

// session is a goforward process that runs while the script continues.
type session struct {
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{}
}

// output is the output of a process so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed when there is more
	seen int           // number of bytes that await has matched
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return o.text.Write(b)
}

// find searches for a match of each expression after the last matches, in any order. If a match
// is missing, find returns a channel that is closed when there is more output.
func (o *output) find(all []*regexp.Regexp) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	end, found := 0, true
	for _, re := range all {
		at := re.FindIndex(o.text.Bytes()[o.seen:])
		if found = found && at != nil; found {
			end = max(end, at[1])
		}
	}
	if found {
		o.seen += end
		return true, nil
	}
	if o.more == nil {
		o.more = make(chan struct{})
	}
	return false, o.more
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// sessionCmd implements session ARG…. It starts goforward with these arguments.
func sessionCmd(ts *testscript.TestScript, neg bool, args []string) {
	if _, has := sessions.get(ts); neg || has {
		ts.Fatalf("usage: session arg…, once in a script")
	}
	s := &session{cmd: exec.Command("goforward", args...), ended: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.stderr
	s.cmd.WaitDelay = testTimeout // the command of goforward run keeps the output open if goforward is killed
	s.cmd.Env = os.Environ()
	for _, name := range []string{"HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "SSDP"} { // use the key of the script, not the key of the user
		s.cmd.Env = append(s.cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(s.cmd.Start())
	sessions.set(ts, s)
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	ts.Defer(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
	})
}

// awaitCmd implements await stdout|stderr REGEXP…. It waits until the session has written matches of
// all expressions, in any order, after the matches of the last await.
func awaitCmd(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := sessions.get(ts)
	if neg || !ok || len(args) < 2 {
		ts.Fatalf("usage: await stdout|stderr regexp…, after session")
	}
	var all []*regexp.Regexp
	for _, text := range args[1:] {
		re, err := regexp.Compile("(?m)" + text)
		ts.Check(err)
		all = append(all, re)
	}
	o := &s.stderr
	if args[0] == "stdout" {
		o = &s.stdout
	}
	timeout := time.After(testTimeout)
	for ended := false; ; {
		found, more := o.find(all)
		switch {
		case found:
			return
		case ended:
			ts.Fatalf("the session ended:\n%s%s", &s.stdout, &s.stderr)
		}
		select {
		case <-more:
		case <-s.ended:
			ended = true // look at the output once more
		case <-timeout:
			ts.Fatalf("not in %s within %v:\n%s%s", args[0], testTimeout, &s.stdout, &s.stderr)
		}
	}
}

// interruptCmd implements interrupt [TERM|KILL] and interrupt until-ended. The second form
// interrupts the session repeatedly, because the program ignores signals within one second of
// the first signal.
func interruptCmd(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := sessions.get(ts)
	if neg || !ok || len(args) > 1 {
		ts.Fatalf("usage: interrupt [TERM|KILL|until-ended], after session")
	}
	sig := os.Interrupt
	switch {
	case len(args) == 0:
	case args[0] == "until-ended":
		s.interruptUntilEnded(ts)
		return
	default:
		sig = map[string]os.Signal{"TERM": syscall.SIGTERM, "KILL": os.Kill}[args[0]]
	}
	ts.Check(s.cmd.Process.Signal(sig))
}

func (s *session) interruptUntilEnded(ts *testscript.TestScript) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(testTimeout); ; {
		if err := s.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
			ts.Check(err)
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return
		case <-timeout:
			ts.Fatalf("the session did not exit:\n%s%s", &s.stdout, &s.stderr)
		}
	}
}

// endsCmd implements ends CODE. The session must exit by itself with the code. The commands
// stdout and stderr then match the output of the session.
func endsCmd(ts *testscript.TestScript, neg bool, args []string) {
	s, ok := sessions.get(ts)
	if neg || !ok || len(args) != 1 {
		ts.Fatalf("usage: ends code, after session")
	}
	select {
	case <-s.ended:
	case <-time.After(testTimeout):
		ts.Fatalf("the session did not exit:\n%s%s", &s.stdout, &s.stderr)
	}
	_, err1 := ts.Stdout().Write([]byte(s.stdout.String()))
	_, err2 := ts.Stderr().Write([]byte(s.stderr.String()))
	ts.Check(errors.Join(err1, err2))
	if code := strconv.Itoa(s.cmd.ProcessState.ExitCode()); code != args[0] {
		ts.Fatalf("exit code %s, want %s:\n%s", code, args[0], &s.stderr)
	}
}

// holdsCmd implements holds FILE REGEXP|nothing. It waits until the file matches the
// expression or, with nothing, until the file does not exist. It polls, because the session
// does not report every change of the file.
func holdsCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: holds file regexp|nothing")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(testTimeout); ; {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		missing := errors.Is(err, os.ErrNotExist)
		if missing && args[1] == "nothing" || err == nil && re.Match(text) {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			ts.Fatalf("%s has %q, %v", args[0], text, err)
		}
	}
}

// hookMain is a command for --exec:
//
//	hook print WORD…   prints its variables and arguments
//	hook fail N FILE   fails N times, counted in the file, and then prints
//	hook hang          runs until it is killed, and ignores interrupts from the terminal
//	hook run WORD…     prints the variables of goforward run for two mappings, and the arguments
//	hook cat           copies its input to its output
//	hook serve WORD…   prints its arguments, and runs until a signal ends it
//	hook signals       prints each signal, and exits with 7 after an interrupt
func hookMain() {
	args := os.Args[1:]
	if ignoresPipe(os.Getppid()) {
		fmt.Println("SIGPIPE is ignored")
	}
	switch args[0] {
	case "fail":
		count(args[2], args[1])
	case "hang":
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt)
		fmt.Println("hanging")
		for range interrupts {
			fmt.Println("interrupted")
		}
	}
	env := func(name string) string { return os.Getenv("GOFORWARD_" + name) }
	switch args[0] {
	case "run":
		fmt.Printf("run %s:%s inside %s %s; %s:%s inside %s %s; by %s %q\n", env("EXTERNAL_IP"), env("EXTERNAL_PORT"), env("INTERNAL_PORT"), env("PROTOCOL"),
			env("EXTERNAL_IP2"), env("EXTERNAL_PORT2"), env("INTERNAL_PORT2"), env("PROTOCOL2"), env("BACKEND"), args[1:])
		return
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		return
	case "serve":
		fmt.Println("serving", strings.Join(args[1:], " "))
		select {}
	case "signals":
		printSignals()
	}
	fmt.Printf("%s %s:%s after %q, %s to %s by %s at %s %q\n", env("EVENT"), env("EXTERNAL_IP"), env("EXTERNAL_PORT"), env("PREVIOUS_PORT"),
		env("PROTOCOL"), env("INTERNAL_PORT"), env("BACKEND"), env("GATEWAY"), args[1:])
}

// printSignals prints each signal. It exits after an interrupt.
func printSignals() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	fmt.Println("ready")
	for s := range signals {
		fmt.Println(s)
		if s == os.Interrupt {
			os.Exit(7)
		}
	}
}

// ignoresPipe reports whether a process makes its children ignore SIGPIPE, if the system
// reports that (SigIgn in proc(5)).
func ignoresPipe(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // empty on other systems
	_, mask, _ := strings.Cut(string(text), "SigIgn:")
	mask, _, _ = strings.Cut(mask, "\n")
	signals, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return err == nil && signals>>(syscall.SIGPIPE-1)&1 != 0
}

// count appends to the file, and exits with 3 if the file was shorter than the limit.
func count(path, limit string) {
	n, err := strconv.Atoi(limit)
	before, _ := os.ReadFile(path) // the file is missing the first time
	if err == nil {
		err = os.WriteFile(path, append(before, '.'), 0o600)
	}
	switch {
	case err != nil:
		fmt.Println(err)
	case len(before) >= n:
		return
	}
	fmt.Fprintln(os.Stderr, "failed for the test")
	os.Exit(3)
}
