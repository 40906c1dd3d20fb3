package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// maxWait bounds every wait of the lab for something that normally happens at once. It is
// long enough for a slow and busy machine: while many namespaces were created and
// deleted, an ip command took half a minute.
const maxWait = 90 * time.Second

// Lab is a set of hosts and cables that exists for the duration of one test. The labs of
// one process are separate, so tests that use them may run in parallel.
type Lab struct {
	t   testing.TB
	id  int64
	log *transcript

	mu    sync.Mutex
	hosts []*Host
}

var labs atomic.Int64

// New returns an empty lab that is removed when the test ends. If labs are impossible
// here, New skips the test, or fails it with GOFORWARD_LAB=require.
func New(t testing.TB) *Lab {
	t.Helper()
	require(t)
	l := &Lab{t: t, id: labs.Add(1), log: newTranscript()}
	t.Cleanup(l.close)
	return l
}

// close kills the processes in the hosts, deletes the hosts and, if the test failed, logs
// the transcript.
func (l *Lab) close() {
	l.mu.Lock()
	hosts := l.hosts
	l.mu.Unlock()
	for _, h := range hosts {
		h.remove()
	}
	if l.t.Failed() {
		l.t.Logf("transcript of the lab:\n%s", l.log)
	}
}

// run executes a command, records it in the transcript and returns its standard output.
// An error contains the command's standard error.
func (l *Lab) run(cmd *exec.Cmd, what, stdin string) (string, error) {
	var stdout, stderr bytes.Buffer
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
		what += " <<\n" + strings.TrimRight(stdin, "\n")
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(stderr.String()))
	}
	l.log.record("%s\n%s%s", what, stdout.String(), stderr.String())
	if err != nil {
		l.log.record("failed: %v", cmd.ProcessState)
	}
	return stdout.String(), err
}

// ip runs iproute2 outside the hosts.
func (l *Lab) ip(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	_, err := l.run(exec.CommandContext(ctx, "ip", args...), "ip "+strings.Join(args, " "), "")
	return err
}

// Scenario names what a test proves. Call it first. If the test passes and
// GOFORWARD_LAB_RAN names a file (an absolute path, because go test changes the
// directory), Scenario appends the name to the file, one name per line. A comparison with
// the committed list shows which tests did not run.
func Scenario(t testing.TB, name string) {
	t.Helper()
	path := os.Getenv("GOFORWARD_LAB_RAN")
	if path == "" {
		return
	}
	t.Cleanup(func() {
		if t.Failed() || t.Skipped() {
			return
		}
		if err := appendLine(path, name); err != nil {
			t.Errorf("lab: record that the scenario ran: %v", err)
		}
	})
}

// appendLine appends a line in one write, so that tests in several processes may share
// the file.
func appendLine(path, line string) (err error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	_, err = fmt.Fprintln(f, line)
	return err
}
