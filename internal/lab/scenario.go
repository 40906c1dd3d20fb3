package lab

import (
	"fmt"
	"os"
	"testing"
)

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
