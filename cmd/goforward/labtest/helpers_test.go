package labtest

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

const (
	maxWait      = 20 * time.Second      // bounds every wait
	pollInterval = 20 * time.Millisecond // the interval between two polls
)

// measureStalls measures for how long the machine does not run this process. Shared
// machines pause a process now and then for seconds. stop ends the measurement and
// returns the sum.
func measureStalls() (stop func() time.Duration) {
	const interval, late = 50 * time.Millisecond, 500 * time.Millisecond
	end, total := make(chan struct{}), make(chan time.Duration)
	go func() {
		var sum time.Duration
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-time.After(interval):
				if gap := time.Since(last); gap > late {
					sum += gap - interval
				}
			case <-end:
				total <- sum
				return
			}
		}
	}()
	return func() time.Duration { close(end); return <-total }
}

// waitUntil polls until done returns true and returns how long it took. It fails the test
// at the timeout. The time in which the machine did not run this process does not count.
func waitUntil(t *testing.T, within time.Duration, what string, done func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	stop := measureStalls()
	for !done() {
		if time.Since(begin) > within {
			stalled := stop()
			if time.Since(begin) > within+stalled {
				t.Fatalf("after %v (the machine paused this process for %v of it): %s", time.Since(begin), stalled, what)
			}
			begin = begin.Add(stalled)
			stop = measureStalls()
		}
		<-tick.C
	}
	return time.Since(begin) - stop()
}

// waitReachable waits until bytes from outside arrive. It uses a short timeout for each
// attempt: while the router's rules are incomplete, it drops packets, and a sender
// repeats them only after a second.
func waitReachable(t *testing.T, home *lab.HomeNet, echo lab.Echo, external netip.AddrPort, within time.Duration) time.Duration {
	t.Helper()
	return waitUntil(t, within, "no bytes arrive at "+external.String(), func() bool {
		return isReachable(t, home.Wan, echo, external)
	})
}

// waitUnreachable waits until bytes from outside no longer arrive.
func waitUnreachable(t *testing.T, home *lab.HomeNet, echo lab.Echo, external netip.AddrPort, within time.Duration) time.Duration {
	t.Helper()
	return waitUntil(t, within, "bytes still arrive at "+external.String(), func() bool {
		for range 2 { // one failure may be caused by the machine
			if _, err := home.Wan.Reach(echo, external); err == nil {
				return false
			}
		}
		return true
	})
}

// wantRules checks that the router has this many port forwardings.
func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	rules := home.Rules(t)
	if len(rules) < want && home.Daemon.Settled() { // the daemon may be about to create a rule again
		rules = home.Rules(t)
	}
	if len(rules) != want {
		t.Errorf("the router has %d entries, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}

// externalAddr returns a port of the router's external address.
func externalAddr(home *lab.HomeNet, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(home.External, port)
}

// occupyPort adds another host to the home, which maps the router's port to its own
// server by natpmpc.
func occupyPort(t *testing.T, home *lab.HomeNet, network string, port uint16) lab.Echo {
	t.Helper()
	host := home.Join("neighbour", "192.168.77.3/24")
	mapByNatpmpc(t, home, host, network, port)
	echo := host.Echo(t, network, ":80")
	home.Reaches(t, echo, externalAddr(home, port))
	return echo
}

// mapByNatpmpc maps an external port to port 80 of a host by Debian's natpmpc. It makes
// several attempts, because natpmpc mistakes a late reply to its first request for the reply
// to its second request.
func mapByNatpmpc(t *testing.T, home *lab.HomeNet, host *lab.Host, network string, port uint16) {
	t.Helper()
	var out string
	for range 5 {
		out = host.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", strconv.Itoa(int(port)), "80", network, "600")
		if strings.Contains(out, "Mapped public port "+strconv.Itoa(int(port))+" ") {
			return
		}
	}
	t.Fatalf("natpmpc: %s", out)
}

// dropRule is a rule of the router that drops packets and counts them.
type dropRule struct {
	home *lab.HomeNet
	rule *lab.Rule
}

// mapRequests matches the requests for TCP mappings by NAT-PMP, and all map requests by
// PCP. The first two bytes after the UDP header are 0 and 2 for NAT-PMP, and 2 and 1 for
// PCP.
const mapRequests = `iifname "lan0" udp dport 5351 @th,64,16 { 2, 0x0201 }`

// dropPackets adds a rule that drops these packets on arrival at the router.
func dropPackets(t *testing.T, home *lab.HomeNet, packets string) *dropRule {
	t.Helper()
	return &dropRule{home, home.Router.Rule(t, "input", packets+` counter drop comment "dropped"`)}
}

var dropCount = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop comment "dropped"`)

// waitForDrops waits until the rule has dropped n packets.
func (r *dropRule) waitForDrops(t *testing.T, n int) {
	t.Helper()
	waitUntil(t, maxWait, "the rule drops too few packets", func() bool {
		m := dropCount.FindStringSubmatch(r.home.Router.Ruleset(t))
		if m == nil {
			t.Fatal("the router has no rule that drops packets")
		}
		dropped, err := strconv.Atoi(m[1])
		return err == nil && dropped >= n
	})
}

func (r *dropRule) remove(t *testing.T) {
	t.Helper()
	r.rule.Remove(t)
}

// suppressAnnouncements drops all announcements of the router to the home. The router can still
// search for its neighbors.
func suppressAnnouncements(t *testing.T, home *lab.HomeNet) *lab.Rule {
	t.Helper()
	home.Router.Rule(t, "output", `ip6 daddr ff00::/8 meta l4proto udp drop`)
	return home.Router.Rule(t, "output", `ip daddr { 224.0.0.1, 239.255.255.250 } drop`)
}

// unpackedProgram returns the path of a program, which is either unpacked in that directory by
// .ci/unpack, or installed.
func unpackedProgram(t *testing.T, dir, program string) string {
	t.Helper()
	unpacked, err := filepath.Abs(filepath.Join("../../../.bin", dir, program))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{unpacked, program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	skipWithoutProgram(t, program+" (.ci/deps fetches it)")
	return ""
}

// builtCommand builds the command as users have it, once, in the private /run of the lab.
var builtCommand = sync.OnceValues(func() (path string, err error) {
	const at = "/run/goforward"
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", at, "github.com/natforward/goforward/cmd/goforward")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the command: %w: %s", err, out)
	}
	return at, nil
})

// skipWithoutProgram skips a test because a program is missing, or fails it with
// GOFORWARD_LAB=require.
func skipWithoutProgram(t *testing.T, program string) {
	t.Helper()
	if os.Getenv("GOFORWARD_LAB") == "require" {
		t.Fatalf("LAB REQUIRED but not installed here: %s", program)
	}
	t.Skipf("LAB SKIPPED: not installed: %s", program)
}

// startProgram starts a program in the host, with additional variables in its environment. The
// program is killed when the test ends. A failed test prints its output.
func startProgram(t *testing.T, host *lab.Host, env []string, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := host.Command(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("output of %s:\n%s", filepath.Base(program), &output)
		}
	})
}
