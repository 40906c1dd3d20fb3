package proof

import (
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// all is what a host at home usually listens on: one port for TCP and what shares
// UDP.
var all = []string{
	"/ip4/0.0.0.0/tcp/4001",
	"/ip4/0.0.0.0/udp/4001/quic-v1",
	"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport",
	"/ip4/0.0.0.0/udp/4001/webrtc-direct",
}

// both are TCP and UDP on one port.
var both = all[:2]

// host is the host at home as the test sees it.
type host struct {
	t     *testing.T
	home  *lab.HomeNet
	proc  *lab.Running
	hello hello
}

func start(t *testing.T, home *lab.HomeNet, args hostArgs) *host {
	t.Helper()
	h := &host{t: t, home: home, proc: home.Lan.Start(t, hostProgram, args)}
	h.proc.Expect(&h.hello)
	return h
}

func (h *host) addrs() []string {
	h.t.Helper()
	h.proc.Send("addrs")
	var out []string
	h.proc.Expect(&out)
	return out
}

// announces waits until the host announces exactly one address with the prefix
// and the suffix, and returns it.
func (h *host) announces(prefix, suffix string) string {
	h.t.Helper()
	tick := time.NewTicker(again)
	defer tick.Stop()
	begin := time.Now()
	for {
		addrs := h.addrs()
		if found := matching(addrs, prefix, suffix); len(found) == 1 {
			return found[0]
		}
		if time.Since(begin) > patience {
			h.t.Fatalf("the host announces no %s…%s, or several: %q", prefix, suffix, addrs)
		}
		<-tick.C
	}
}

func matching(addrs []string, prefix, suffix string) []string {
	return slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		if !strings.HasPrefix(a, prefix) {
			return true
		}
		a, _, _ = strings.Cut(a, "/certhash/")
		return !strings.HasSuffix(a, suffix)
	})
}

// meet has a new peer outside connect to an address.
func (h *host) meet(addr, bytes string) reply {
	h.t.Helper()
	proc := h.home.Wan.Start(h.t, peerProgram, peerArgs{h.hello.ID, addr, bytes})
	var got reply
	proc.Expect(&got)
	proc.Wait()
	return got
}

// reached wants a new peer outside to get its bytes back over an address.
func (h *host) reached(addr string) {
	h.t.Helper()
	bytes := rand.Text()
	if got := h.meet(addr, bytes); got.Bytes != bytes || !strings.HasPrefix(addr, got.Over) || got.Failure != "" {
		h.t.Errorf("over %s: %+v, want %q", addr, got, bytes)
	}
}

// comesBack wants new peers outside to be served again, sooner or later.
func (h *host) comesBack(addr string) {
	h.t.Helper()
	begin := time.Now()
	for {
		bytes := rand.Text()
		got := h.meet(addr, bytes)
		if got.Bytes == bytes {
			h.t.Logf("%s works again after %v", addr, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > patience {
			h.t.Fatalf("over %s: %+v, want %q", addr, got, bytes)
		}
	}
}

// close closes the host and wants the router to forward as much as it did before.
func (h *host) close(rules int) {
	h.t.Helper()
	h.proc.Send("close")
	h.proc.Expect(nil)
	wantRules(h.t, h.home, rules)
	h.proc.Send("exit")
	h.proc.Wait()
}

func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := home.Rules(t); len(rules) != want {
		t.Errorf("the router forwards %d ports, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}
