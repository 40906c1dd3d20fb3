package labtest

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// repeats is how often a test of something that happens at once is repeated: three
// times, or as GOFORWARD_REPEATS says.
func repeats(t *testing.T) int {
	t.Helper()
	text := os.Getenv("GOFORWARD_REPEATS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("GOFORWARD_REPEATS=%s", text)
	}
	return n
}

// However map --hold is ended, the router has nothing left of it.
func TestCommandEnds(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: map --hold leaves nothing behind, "+backend)
			home := lab.Home(t, lab.Router{})
			hold := []string{"map", "8080/both", "--hold", "--backend", backend}
			for run := range repeats(t) {
				for i, d := range []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond} {
					sig := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}[(i+run)%3]
					endsDoubled(t, home, hold, sig, d)
				}
				endsByTimeout(t, home, hold)
				endsByHangUp(t, home, hold)
				endsUnderNohup(t, home, hold)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// holds waits until the command holds its mappings.
func holds(t *testing.T, home *lab.HomeNet, p *built) {
	t.Helper()
	if line := strings.TrimSpace(p.line()); line != at(home, 8080).String() {
		t.Fatalf("printed %q, want %v", line, at(home, 8080))
	}
	wantRules(t, home, 2)
}

const removing = "removing the mapping; Ctrl-C again to leave it\n"

// endsDoubled is the end by a signal that comes twice, as from a wrapper that signals
// its child and the process group of that.
func endsDoubled(t *testing.T, home *lab.HomeNet, hold []string, sig os.Signal, pause time.Duration) {
	t.Helper()
	p := execute(t, home.Lan, nil, hold...)
	holds(t, home, p)
	p.signal(sig)
	time.Sleep(pause)
	p.signal(sig)
	if stderr := p.exits(0); strings.Count(stderr, removing) != 1 {
		t.Errorf("%v twice, %v apart: %s", sig, pause, stderr)
	}
	wantRules(t, home, 0)
}

// endsByTimeout is the end by GNU timeout, which signals its child and then its own
// process group. It does the same when its time is up and when it is told to end.
func endsByTimeout(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := execute(t, home.Lan, []string{"timeout", "1h"}, hold...)
	holds(t, home, p)
	p.signal(syscall.SIGTERM)
	p.exits(0)
	wantRules(t, home, 0)
}

// endsByHangUp is the end of the terminal, or of the connection behind it.
func endsByHangUp(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := executeInTerminal(t, home.Lan, hold...)
	for !strings.Contains(p.line(), "Kept alive until Ctrl-C") {
	}
	wantRules(t, home, 2)
	p.hangUp()
	p.exits(0)
	wantRules(t, home, 0)
}

// endsUnderNohup is a hang-up that is to change nothing, and then an end.
func endsUnderNohup(t *testing.T, home *lab.HomeNet, hold []string) {
	t.Helper()
	p := execute(t, home.Lan, []string{"nohup"}, hold...)
	holds(t, home, p)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, ignored, _ := strings.Cut(string(status), "SigIgn:\t")
	ignored, _, _ = strings.Cut(ignored, "\n")
	if mask, err := strconv.ParseUint(ignored, 16, 64); err != nil || mask>>(syscall.SIGHUP-1)&1 == 0 {
		t.Errorf("SIGHUP is not ignored: %s, %v", ignored, err)
	}
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGTERM)
	if stderr := p.exits(0); strings.Count(stderr, removing) != 1 {
		t.Error(stderr)
	}
	wantRules(t, home, 0)
}
