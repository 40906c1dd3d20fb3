package cli

import (
	"bytes"
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "hook" {
		hookMain(os.Args[2:])
	}
	dir, err := os.MkdirTemp("", "goforward-state-*")
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", dir) // the user's own is none of our business
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// ran is what a command line came to.
type cmdResult struct {
	code           int
	stdout, stderr string
}

// run executes a command line in this process.
func run(t *testing.T, change func(*app), args ...string) cmdResult {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr)
	if change != nil {
		change(a)
	}
	code := a.run(t.Context(), args)
	return cmdResult{code, stdout.String(), stderr.String()}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBrokenStdout(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	code := Run(context.Background(), []string{"--version"}, brokenWriter{context.Canceled}, &stderr)
	if code != exitOther || stderr.String() != "goforward: cannot write the output: context canceled\n" {
		t.Errorf("exit code %d, stderr %q", code, &stderr)
	}
}
