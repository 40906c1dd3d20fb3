package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// Otherwise the race detector makes every process wait for one second before it exits.
	if os.Getenv("GORACE") == "" {
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	testscript.Main(m, map[string]func(){"goforward": mainOfTests, "hook": hookMain})
}

// mainOfTests runs main with the --ssdp address in $SSDP, so that the program searches for the
// gateway of the script and not on the network.
func mainOfTests() {
	if ssdp := os.Getenv("SSDP"); ssdp != "" {
		os.Args = slices.Insert(os.Args, 1, "--ssdp="+ssdp)
	}
	main()
}

// TestScripts runs the program as a process against test gateways in this process. The
// commands of the scripts are in gateway_test.go, session_test.go and below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"gateway":   gatewayCmd,
			"listen":    listenCmd,
			"unused":    unusedCmd,
			"exits":     exitsCmd,
			"asks":      asksCmd,
			"mode":      modeCmd,
			"holds":     holdsCmd,
			"session":   sessionCmd,
			"await":     awaitCmd,
			"interrupt": interruptCmd,
			"ends":      endsCmd,
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			return nil
		},
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// condition evaluates a condition of a script.
func condition(name string) (bool, error) {
	if name != "ipv6" {
		return false, fmt.Errorf("no condition %q", name)
	}
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false, nil //nolint:nilerr // the condition is false
	}
	return true, ln.Close()
}

// modeCmd implements mode OCTAL FILE: the file must have these permissions.
func modeCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode octal file")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] && runtime.GOOS != "windows" {
		ts.Fatalf("mode %s, want %s", got, args[0])
	}
}
