package cli

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
)

func TestParseGateway(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]hostPort{
		"router": {"router", 0}, "router.local": {"router.local", 0}, "router.local.:5351": {"router.local.", 5351}, "fritz.box:80": {"fritz.box", 80},
		"my_router": {"my_router", 0}, "3com.example": {"3com.example", 0}, "a-b": {"a-b", 0},
		"192.168.1": {}, "192.168.1.1.1": {}, "192.168.1.1:x": {}, "router:": {}, "router:x": {}, "router:65536": {}, "router:0": {}, "192.168.1.1:0": {}, "[::1]:0": {}, "[::1": {}, "::1]": {}, ":5351": {}, "": {}, ".": {},
		"a..b": {}, "-a": {}, "a-": {}, "router/": {}, "router:1:2": {}, "http://router": {}, "a b": {}, "rout\x1ber": {}, "ä": {},
		strings.Repeat("a", 64): {}, strings.Repeat("a.", 130): {},
	} {
		addr, got, err := parseGateway(s)
		if got != want || addr.IsValid() || (err == nil) != (want != hostPort{}) {
			t.Errorf("%q: %v, %v, %v, want %v", s, addr, got, err, want)
		}
	}
	for _, s := range []string{"192.168.1.1", "192.168.1.1:5351", "fe80::1%eth0", "[::1]:7"} {
		if addr, name, err := parseGateway(s); err != nil || endpointText(addr) != s || name != (hostPort{}) {
			t.Errorf("%q: %v, %v, %v", s, addr, name, err)
		}
	}
}

// TestGatewayLookup checks that every command that needs a gateway looks up its name, and that
// the others do not. A new command is checked too.
func TestGatewayLookup(t *testing.T) {
	t.Parallel()
	args := map[string][]string{
		"map": {"8080"}, "unmap": {"8080"}, "completion": {"bash"}, "help": {"map"}, "probe": {"x"},
		"run": {"-p", "8080", "--", "true"},
	}
	without := map[string]bool{"help": true, "completion": true, "version": true, "demo": true, "probe": true, "reflect": true}
	root := newApp(new(bytes.Buffer), new(bytes.Buffer)).root()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		looked := ""
		line := append([]string{cmd.Name(), "--gateway", "router.test:9"}, args[cmd.Name()]...)
		got := run(t, func(a *app) {
			a.lookupHost = func(_ context.Context, host string) ([]netip.Addr, error) {
				looked = host
				return nil, errors.New("no such host")
			}
		}, line...)
		switch {
		case without[cmd.Name()]:
			if looked != "" {
				t.Errorf("%s looks up %q", cmd.Name(), looked)
			}
		case looked != "router.test" || got.code != exitNoGateway || !strings.HasPrefix(got.stderr, "goforward: --gateway: no such host\n  → "):
			t.Errorf("%s looks up %q: exit code %d, %q", cmd.Name(), looked, got.code, got.stderr)
		}
	}
}

// TestPreferredAddress checks which address of a name is used.
func TestPreferredAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ args, addrs, want string }{
		{"", "192.0.2.1", "192.0.2.1:9"},
		{"", "2001:db8::1 192.0.2.1 192.0.2.2", "192.0.2.1:9"},
		{"", "2001:db8::1", "[2001:db8::1]:9"},
		{"", "::ffff:192.0.2.1 2001:db8::1", "192.0.2.1:9"},
		{"", "0.0.0.0 192.0.2.1", "192.0.2.1:9"},
		{"", "0.0.0.0 ::", ""},
		{"", "", ""},
		{"--ipv6", "192.0.2.1 2001:db8::1 2001:db8::2", "[2001:db8::1]:9"},
		{"--ipv6", "192.0.2.1", "192.0.2.1:9"}, // setFamily reports the conflict
		{"--ipv6=false", "2001:db8::1 192.0.2.1", "192.0.2.1:9"},
		{"--from 2001:db8::5", "192.0.2.1 2001:db8::1", "[2001:db8::1]:9"},
		{"--to 2001:db8::5", "192.0.2.1 2001:db8::1", "[2001:db8::1]:9"},
		{"--source 2001:db8::5", "192.0.2.1 2001:db8::1", "[2001:db8::1]:9"},
		{"--from 192.0.2.5:80", "2001:db8::1 192.0.2.1", "192.0.2.1:9"},
	} {
		a := newApp(new(bytes.Buffer), new(bytes.Buffer))
		a.lookupHost = func(context.Context, string) ([]netip.Addr, error) {
			var addrs []netip.Addr
			for _, s := range strings.Fields(test.addrs) {
				addrs = append(addrs, netip.MustParseAddr(s))
			}
			return addrs, nil
		}
		root := a.root()
		cmd, _, err := root.Find([]string{"map"})
		if err != nil {
			t.Fatal(err)
		}
		cmd.RunE = func(*cobra.Command, []string) error { return nil }
		root.SetArgs(append([]string{"map", "8080", "-g", "router:9"}, strings.Fields(test.args)...))
		err = root.ExecuteContext(t.Context())
		if got := endpointText(a.settings.gateway); got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%+v: %q, %v", test, got, err)
		}
	}
}

// TestLookupTimeout checks that one lookup has a time limit.
func TestLookupTimeout(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{"": lookupTimeout, "0.25": 250 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			a := newApp(new(bytes.Buffer), new(bytes.Buffer))
			a.settings.timeout, _ = parseSeconds(text)
			a.lookupHost = func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			start := time.Now()
			if _, err := a.lookUpGateway(t.Context(), "router", false); classify(err).code != exitNoGateway {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took != want {
				t.Errorf("took %v, want %v", took, want)
			}
		})
	}
}

// TestLookupWait checks that map --hold --wait repeats the lookup with growing pauses.
func TestLookupWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		a := newApp(&stdout, &stderr)
		start := time.Now()
		var lookups []time.Duration
		a.lookupHost = func(context.Context, string) ([]netip.Addr, error) {
			lookups = append(lookups, time.Since(start)/time.Second)
			if len(lookups) < 7 {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}
		root := a.root()
		cmd, _, err := root.Find([]string{"map"})
		if err != nil {
			t.Fatal(err)
		}
		cmd.RunE = func(*cobra.Command, []string) error { return nil }
		root.SetArgs([]string{"map", "8080", "--hold", "--wait", "-g", "router"})
		if err := root.ExecuteContext(t.Context()); err != nil || endpointText(a.settings.gateway) != "192.0.2.1" {
			t.Errorf("%v, %v", a.settings.gateway, err)
		}
		want := []time.Duration{0, 1, 3, 7, 15, 25, 35}
		for i := range want {
			if i >= len(lookups) || lookups[i] != want[i] {
				t.Fatalf("lookups after %d seconds, want %d", lookups, want)
			}
		}
		if n := strings.Count(stderr.String(), "error --gateway: no such host; next try at "); n != len(want)-1 {
			t.Errorf("%d failures:\n%s", n, &stderr)
		}
	})
}

// TestLookupInterrupted checks that the end of the context ends the wait.
func TestLookupInterrupted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var stdout, stderr bytes.Buffer
		a := newApp(&stdout, &stderr)
		a.lookupHost = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
		start := time.Now()
		code := a.run(ctx, []string{"map", "8080", "--hold", "--wait", "-g", "router"})
		if took := time.Since(start); took != 20*time.Second || code == exitDone || !strings.Contains(stderr.String(), errInterrupted.Error()) {
			t.Errorf("exit code %d after %v:\n%s", code, took, &stderr)
		}
	})
}
