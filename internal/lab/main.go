package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A process of the test binary learns its role from this variable.
const (
	roleEnv     = "GOFORWARD_LAB_ROLE"
	roleEnter   = "enter"   // be the first process of a new world
	roleInside  = "inside"  // the world is made already
	roleProgram = "program" // run one function of Func, no tests
)

// worldMark exists in a world's private /run and nowhere else, so that a stray
// roleEnv cannot make a lab act on the machine itself.
const namespaceMarker = "/run/goforward-lab"

// errUnavailable is why this process has no world; nil inside one.
var errUnavailable = errors.New("TestMain does not call lab.Main")

// Main runs the tests of m in a world of their own and exits with their
// result. It is all that TestMain has to do.
func Main(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleProgram:
		os.Exit(runProgram())
	case roleEnter:
		if err := enterNamespaces(); err != nil {
			os.Exit(1) // enterWorld has told the parent, which runs the tests
		}
		os.Setenv(roleEnv, roleInside)
		errUnavailable = nil
		os.Exit(m.Run())
	case roleInside:
		if _, err := os.Stat(namespaceMarker); err == nil {
			errUnavailable = nil
			os.Exit(m.Run())
		}
	}
	code, err := runInNamespaces()
	if err != nil {
		errUnavailable = err
		fmt.Fprintf(os.Stderr, "lab: NO LAB TEST RUNS HERE: %v\n", err)
		code = m.Run()
	}
	os.Exit(code)
}

// runInWorld re-executes this process in a new world and returns its exit code;
// an error says that no world could be made and nothing has run.
func runInNamespaces() (int, error) {
	if err := findPrograms(); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find the test binary: %w", err)
	}
	return startInNamespaces(func() *exec.Cmd {
		cmd := exec.Command(self) //nolint:noctx // lives as long as this process
		cmd.Args = os.Args
		cmd.Env = append(withoutRole(os.Environ()), roleEnv+"="+roleEnter)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd
	})
}

// neededPrograms are those that the lab itself runs.
var requiredPrograms = []string{"ip", "nft", "conntrack", "miniupnpd"}

// lookForPrograms finds what every lab needs. A plain user's PATH often lacks
// the sbin directories, where Debian puts these programs.
func findPrograms() error {
	path := filepath.SplitList(os.Getenv("PATH"))
	path = append(path, "/usr/local/sbin", "/usr/sbin", "/sbin")
	os.Setenv("PATH", strings.Join(path, string(filepath.ListSeparator)))

	var missing []string
	for _, name := range requiredPrograms {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("not installed: %s", strings.Join(missing, ", "))
	}
	return nil
}

// withoutRole is env for a process that shall find its own role.
func withoutRole(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, roleEnv+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// require skips the test where there is no world, loudly.
func require(t testing.TB) {
	t.Helper()
	if errUnavailable == nil {
		return
	}
	if os.Getenv("GOFORWARD_LAB") == "require" {
		t.Fatalf("LAB REQUIRED but impossible here: %v", errUnavailable)
	}
	t.Skipf("LAB SKIPPED: %v", errUnavailable)
}
