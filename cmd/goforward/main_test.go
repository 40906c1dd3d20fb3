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
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// The race detector otherwise has every process wait for a second at its end.
	if os.Getenv("GORACE") == "" {
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	}
	testscript.Main(m, map[string]func(){"goforward": mainOfTests, "hook": hookMain})
}

// mainOfTests searches for UPnP devices where the script's gateway answers, and
// not on the network: $SSDP is the flag that says so.
func mainOfTests() {
	if ssdp := os.Getenv("SSDP"); ssdp != "" {
		os.Args = slices.Insert(os.Args, 1, "--ssdp="+ssdp)
	}
	main()
}

// TestScripts runs the program as a process, against routers in this one. The
// commands that scripts have beside testscript's own are in gateway_test.go and
// session_test.go.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"gateway":   gatewayCmd,
			"exits":     exitsCmd,
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
			return nil
		},
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// condition is one of a script's own.
func condition(name string) (bool, error) {
	if name != "ipv6" {
		return false, fmt.Errorf("no condition %q", name)
	}
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false, nil //nolint:nilerr // that is the answer
	}
	return true, ln.Close()
}

// modeCmd is mode OCTAL FILE: the file must have these permissions.
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

// A second signal counts only if it comes at least a second after the first.
func TestHandleSignals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		signals []time.Duration // when they come
		leaves  time.Duration   // when the program is left; 0: never
	}{
		"one":                   {[]time.Duration{0}, 0},
		"at once":               {[]time.Duration{0, 0}, 0},
		"soon":                  {[]time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 999 * time.Millisecond}, 0},
		"after a second":        {[]time.Duration{0, time.Second + 1}, time.Second + 1},
		"doubled, then a third": {[]time.Duration{0, 0, 3 * time.Second}, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				signals := make(chan os.Signal, 1)
				interrupted, left := -1*time.Second, time.Duration(0)
				done := make(chan struct{})
				go func() {
					handleSignals(signals, func() { interrupted = time.Since(begun) }, func() { left = time.Since(begun) })
					close(done)
				}()
				for _, at := range test.signals {
					time.Sleep(at - time.Since(begun))
					synctest.Wait()
					select { // as os/signal does
					case signals <- os.Interrupt:
					default:
					}
				}
				synctest.Wait()
				if interrupted != 0 {
					t.Errorf("interrupted at %v, want at once", interrupted)
				}
				if left != test.leaves {
					t.Errorf("left at %v, want %v; 0 is never", left, test.leaves)
				}
				if test.leaves == 0 { // the next signal ends it
					time.Sleep(2 * time.Second)
					signals <- os.Interrupt
				}
				<-done
			})
		})
	}
}
