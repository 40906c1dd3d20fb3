package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Host is a machine of a lab: a network namespace with a name.
type Host struct {
	lab   *Lab
	name  string
	netns string

	sourcePorts atomic.Uint32 // the number of source ports that were used to dial

	mu    sync.Mutex
	addrs []netip.Prefix
}

// netnsMu serializes ip netns add. The first call makes the directory /run/netns a shared
// mount, so parallel calls would race.
var netnsMu sync.Mutex

// Host adds a host that has only a loopback interface.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	// Fuzz workers are further processes in the same namespaces, so the name contains the
	// pid.
	h := &Host{lab: l, name: name, netns: fmt.Sprintf("lab%d.%d-%s", os.Getpid(), l.id, name)}
	netnsMu.Lock()
	err := l.ip("netns", "add", h.netns)
	netnsMu.Unlock()
	if err != nil {
		l.t.Fatalf("lab: add host: %v", err)
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	// Without duplicate address detection, IPv6 addresses are usable at once.
	h.Exec(l.t, "sh", "-ec", `ip link set lo up
		for f in /proc/sys/net/ipv6/conf/*/accept_dad; do [ ! -e $f ] || echo 0 >$f; done`)
	return h
}

// Name returns the name that was passed to [Lab.Host].
func (h *Host) Name() string { return h.name }

// StateDir returns a directory in which the programs of the host may keep their state. It may
// not exist yet. It belongs to the lab and not to the user.
func (h *Host) StateDir() string { return "/run/" + h.netns + ".state" }

// Addr returns the first address of the host.
func (h *Host) Addr() netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.addrs) == 0 {
		return netip.Addr{}
	}
	return h.addrs[0].Addr()
}

// Command returns a command that runs a program in the host. The caller starts it.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	h.lab.log.record("%s: prepared", h.prompt(name, args))
	return h.command(ctx, name, args...)
}

func (h *Host) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// ip replaces itself with the program, so signals reach the program.
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.netns, name}, args...)...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func (h *Host) prompt(name string, args []string) string {
	return h.name + "$ " + strings.Join(append([]string{name}, args...), " ")
}

// Run runs a program in the host and returns its standard output. An error contains the
// program's standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return h.lab.run(h.command(ctx, name, args...), h.prompt(name, args), "")
}

// Exec is Run for a program that must succeed. If the program fails, the test fails.
func (h *Host) Exec(t testing.TB, name string, args ...string) string {
	t.Helper()
	return h.execWithStdin(t, "", name, args...)
}

func (h *Host) execWithStdin(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	out, err := h.lab.run(h.command(ctx, name, args...), h.prompt(name, args), stdin)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return out
}

// Sysctl sets a kernel parameter of the host, as in Sysctl(t, "net.ipv4.ip_forward",
// "1").
func (h *Host) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	h.Exec(t, "sh", "-ec", `printf %s "$1" >"$0"`, path, value)
}

// remove kills the processes that still run in the host, and then deletes the host.
func (h *Host) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	out, err := h.lab.run(exec.CommandContext(ctx, "ip", "netns", "pids", h.netns), "ip netns pids "+h.netns, "")
	if err != nil {
		h.lab.t.Errorf("lab: %v", err)
	}
	for _, field := range strings.Fields(out) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid == os.Getpid() {
			continue
		}
		h.lab.log.record("%s: kill -9 %d, still running", h.name, pid)
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
	if err := h.lab.ip("netns", "delete", h.netns); err != nil {
		h.lab.t.Errorf("lab: %v", err)
	}
}

// Nft runs an nft script in the host.
func (h *Host) Nft(t testing.TB, script string) {
	t.Helper()
	h.execWithStdin(t, script, "nft", "-f", "-")
}

// Ruleset returns the complete nftables rule set of the host.
func (h *Host) Ruleset(t testing.TB) string {
	t.Helper()
	return h.Exec(t, "nft", "list", "ruleset")
}

// Rule is a firewall rule that a test has added to a host.
type Rule struct {
	host   *Host
	chain  string
	handle string
}

var ruleHandle = regexp.MustCompile(`(?m)^add rule .* # handle (\d+)$`)

// Rule adds a rule to the input, output or forward hook of the host:
//
//	rule := router.Rule(t, "input", `iifname "lan0" udp dport 5351 drop`)
//	...
//	rule.Remove(t)
//
// The rules are in a separate table. If a rule drops a packet, no other table sees the
// packet. A packet that the rules accept still passes through the host's other tables.
func (h *Host) Rule(t testing.TB, hook, rule string) *Rule {
	t.Helper()
	out := h.execWithStdin(t, fmt.Sprintf(`add table inet lab
add chain inet lab %[1]s { type filter hook %[1]s priority -10; }
add rule inet lab %[1]s %[2]s
`, hook, rule), "nft", "-e", "-a", "-f", "-")
	m := ruleHandle.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("lab: nft reports no handle for the new rule: %s", out)
	}
	return &Rule{host: h, chain: hook, handle: m[1]}
}

// Remove deletes the rule.
func (r *Rule) Remove(t testing.TB) {
	t.Helper()
	r.host.Exec(t, "nft", "delete", "rule", "inet", "lab", r.chain, "handle", r.handle)
}
