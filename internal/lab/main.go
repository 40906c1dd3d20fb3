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

// roleEnv selects the role of a process of the test binary.
const (
	roleEnv     = "GOFORWARD_LAB_ROLE"
	roleEnter   = "enter"   // be the first process of the new namespaces
	roleInside  = "inside"  // run the tests: the namespaces are set up already
	roleProgram = "program" // run one function that was registered with Func, and no tests
)

// namespaceMarker exists only in the private /run of the lab's mount namespace. So a
// roleEnv that is set by mistake cannot make a lab change the machine itself.
const namespaceMarker = "/run/goforward-lab"

// runtimeDir is the XDG_RUNTIME_DIR of all programs in the lab.
const runtimeDir = "/run/user"

// errUnavailable is the reason why this process is not in the lab's namespaces; nil if it
// is.
var errUnavailable = errors.New("TestMain does not call lab.Main")

// Main runs the tests of m in their own namespaces and exits with their result. TestMain
// needs nothing else.
func Main(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleProgram:
		os.Exit(runProgram())
	case roleEnter:
		if err := enterNamespaces(); err != nil {
			os.Exit(1) // enterNamespaces has reported the error to the parent, which runs the tests
		}
		os.Setenv(roleEnv, roleInside)
		os.Setenv("XDG_RUNTIME_DIR", runtimeDir)
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

// runInNamespaces re-executes this process in new namespaces and returns its exit code.
// If it returns an error, the namespaces could not be created and no test has run.
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

// requiredPrograms are the programs that the lab itself runs.
var requiredPrograms = []string{"ip", "nft", "conntrack", "miniupnpd"}

// findPrograms checks that the programs which every lab needs are installed. It adds the
// sbin directories, in which Debian installs these programs, because the PATH of an
// unprivileged user often lacks them.
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

// withoutRole returns env for a process that determines its own role.
func withoutRole(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, roleEnv+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// require skips the test with a message if there is no lab, or fails it with
// GOFORWARD_LAB=require.
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
