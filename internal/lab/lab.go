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

// patience bounds every wait of the lab for something that should come at
// once, even on a slow and busy machine: where many namespaces come and go, the
// kernel has kept an ip command waiting for half a minute.
const maxWait = 90 * time.Second

// Lab is a set of hosts and cables that lives as long as one test. Labs of one
// process do not see each other, so tests that use them may run in parallel.
type Lab struct {
	t   testing.TB
	id  int64
	log *transcript

	mu    sync.Mutex
	hosts []*Host
}

var labs atomic.Int64

// New returns an empty lab that ends with the test. Where labs are impossible
// it skips the test, or fails it with GOFORWARD_LAB=require.
func New(t testing.TB) *Lab {
	t.Helper()
	require(t)
	l := &Lab{t: t, id: labs.Add(1), log: newTranscript()}
	t.Cleanup(l.close)
	return l
}

// close ends what still runs in the hosts, takes them away and, when the test
// failed, tells all that was done.
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

// run executes a command, writes it into the transcript and returns its
// standard output; an error carries what it said on standard error.
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

// ip runs iproute2 outside of the hosts.
func (l *Lab) ip(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	_, err := l.run(exec.CommandContext(ctx, "ip", args...), "ip "+strings.Join(args, " "), "")
	return err
}

// Scenario names what a test proves; call it first. If the test has passed and
// GOFORWARD_LAB_RAN names a file (an absolute path: go test changes directory),
// the name is appended to it, a line each. A checked-in list compared with that file tells of tests that did not run.
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
			t.Errorf("lab: note that the scenario ran: %v", err)
		}
	})
}

// appendLine writes in one go, so that tests in several processes may share the
// file.
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
