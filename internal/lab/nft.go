package lab

import (
	"fmt"
	"regexp"
	"testing"
)

// Nft feeds a script to nft in the host.
func (h *Host) Nft(t testing.TB, script string) {
	t.Helper()
	h.feed(t, script, "nft", "-f", "-")
}

// Ruleset is the whole of the host's nftables.
func (h *Host) Ruleset(t testing.TB) string {
	t.Helper()
	return h.Exec(t, "nft", "list", "ruleset")
}

// Rule is one rule that a test has added to a host.
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
// The rules are in a table of their own. What they drop is dropped; what they
// accept goes on to the host's other tables.
func (h *Host) Rule(t testing.TB, hook, rule string) *Rule {
	t.Helper()
	out := h.feed(t, fmt.Sprintf(`add table inet lab
add chain inet lab %[1]s { type filter hook %[1]s priority -10; }
add rule inet lab %[1]s %[2]s
`, hook, rule), "nft", "-e", "-a", "-f", "-")
	m := ruleHandle.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("lab: nft tells no handle of the new rule: %s", out)
	}
	return &Rule{host: h, chain: hook, handle: m[1]}
}

// Remove takes the rule away again.
func (r *Rule) Remove(t testing.TB) {
	t.Helper()
	r.host.Exec(t, "nft", "delete", "rule", "inet", "lab", r.chain, "handle", r.handle)
}
