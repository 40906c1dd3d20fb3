package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "hook" {
		hookMain(os.Args[2:])
	}
	dir, err := os.MkdirTemp("", "goforward-state-*")
	if err == nil {
		err = os.Setenv("XDG_STATE_HOME", dir) // do not use the user's key
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// cmdResult is the result of a command line.
type cmdResult struct {
	code           int
	stdout, stderr string
}

// run executes a command line in this process.
func run(t *testing.T, change func(*app), args ...string) cmdResult {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr)
	a.memoryFile = func() (string, error) { return filepath.Join(t.TempDir(), "gateways.json"), nil } // a new file for each run
	if change != nil {
		change(a)
	}
	code := a.run(t.Context(), args)
	return cmdResult{code, stdout.String(), stderr.String()}
}

func router(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}
