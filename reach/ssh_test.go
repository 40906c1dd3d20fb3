//go:build unix

package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
)

// In a process whose name is goforward, this is the command of the other host: goforward probe.
func init() {
	if filepath.Base(os.Args[0]) != "goforward" {
		return
	}
	fmt.Fprintln(os.Stderr, "a remark")
	endpoint, name, _ := strings.Cut(os.Args[2], "/")
	c := dialback.Call{Protocol: backends.TCP, To: netip.MustParseAddrPort(endpoint)}
	if name == "udp" {
		c.Protocol = backends.UDP
	}
	if len(os.Args) > 3 {
		c.Nonce = strings.TrimPrefix(os.Args[3], "--nonce=")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the script ends it earlier
	defer cancel()
	outcome, _, err := c.Do(ctx, func(from netip.AddrPort) { fmt.Println("from", from) })
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "goforward:", err)
		os.Exit(1)
	case outcome == dialback.Refused, outcome == dialback.TimedOut:
		fmt.Println(outcome)
		os.Exit(7)
	}
	fmt.Println(outcome)
	os.Exit(0)
}

// The external addresses in these tests. The other host reaches loopback instead.
var (
	sshExternal4 = netip.MustParseAddr("45.45.45.1")
	sshExternal6 = netip.MustParseAddr("2a0c:7777:1::1")
	sshSource4   = netip.MustParseAddr("8.8.8.8")
	sshSource6   = netip.MustParseAddr("2a0c:7777:9::8")
)

// sshWorks is the fake ssh for a login that works. The other host is this one.
const sshWorks = `exec 3>&1
sed -u -e 's/45\.45\.45\.1/127.0.0.1/g; s/2a0c:7777:1::1/::1/g' | PATH=$REMOTE $SH`

// fakeSSH puts a program ssh into PATH, and these programs into the PATH of the other host.
func fakeSSH(t *testing.T, body string, programs ...string) (argsFile string) {
	t.Helper()
	dir := t.TempDir()
	remote, local := filepath.Join(dir, "remote"), filepath.Join(dir, "local")
	for _, d := range []string{remote, local} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range programs {
		path, err := os.Executable()
		if name != "goforward" {
			path, err = exec.LookPath(name)
		}
		if err != nil {
			t.Skip(err)
		}
		if err := os.Symlink(path, filepath.Join(remote, name)); err != nil {
			t.Fatal(err)
		}
	}
	argsFile = filepath.Join(dir, "args")
	text := "#!/bin/sh\nprintf '%s\\n' \"$@\" >" + argsFile + "\n" + body + "\n"
	if err := os.WriteFile(filepath.Join(local, "ssh"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", local+":"+os.Getenv("PATH"))
	t.Setenv("REMOTE", remote)
	t.Setenv("SH", "/bin/sh")
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	return argsFile
}

// sourceCatcher makes arrivals come from an address of the internet, and those of the first
// expectation from another one if first is valid.
type sourceCatcher struct {
	Catcher
	from, first netip.Addr
}

func (c *sourceCatcher) Expect(e Expectation) (<-chan Arrival, func()) {
	in, stop := c.Catcher.Expect(e)
	from := cmp.Or(c.first, c.from)
	c.first = netip.Addr{}
	out, done, ended := make(chan Arrival, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case a := <-in:
			a.From = netip.AddrPortFrom(from, a.From.Port())
			out <- a
		case <-done:
		}
	}()
	return out, func() { close(done); <-ended; stop() }
}

// sshTarget returns a target with a free port on loopback, and a source for its arrivals.
func sshTarget(t *testing.T, p backends.Protocol, six bool) (Target, netip.Addr) {
	t.Helper()
	addr, external, source := netip.MustParseAddr("127.0.0.1"), sshExternal4, sshSource4
	if six {
		addr, external, source = netip.IPv6Loopback(), sshExternal6, sshSource6
	}
	target := freeTarget(t, p, addr)
	target.External = netip.AddrPortFrom(external, target.Internal.Port())
	return target, source
}

// TestSSH measures by each way of the other host.
func TestSSH(t *testing.T) {
	for _, tt := range []struct {
		programs string
		p        backends.Protocol
		six      bool
		other    bool // another program has the port
		sh       string
	}{
		{"bash", backends.TCP, false, false, "/bin/sh"},
		{"bash", backends.TCP, true, false, "/bin/sh"},
		{"bash", backends.TCP, false, false, "bash"},
		{"bash", backends.UDP, false, false, "/bin/sh"},
		{"bash", backends.UDP, true, false, "/bin/sh"},
		{"bash readlink", backends.TCP, false, true, "/bin/sh"},
		{"bash readlink", backends.TCP, true, true, "/bin/sh"},
		{"goforward", backends.TCP, false, false, "/bin/sh"},
		{"goforward bash", backends.TCP, true, false, "bash"},
		{"goforward", backends.UDP, false, false, "/bin/sh"},
		{"goforward", backends.TCP, false, true, "/bin/sh"},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			args := fakeSSH(t, sshWorks, strings.Fields(tt.programs)...)
			t.Setenv("SH", tt.sh)
			target, source := sshTarget(t, tt.p, tt.six)
			received := make(chan int, 8)
			owner := OwnerTemporary
			if tt.other {
				owner = OwnerOther
				serveSilently(t, target.Internal, received)
			}
			port := openPort(t, target, owner)
			prober := SSH("user@example.org")
			e, err := prober.Probe(t.Context(), target, &sourceCatcher{Catcher: port, from: source})
			if err != nil || e.Verdict != Reachable || e.Level != LevelInternet || e.External != target.External || e.From.Addr() != source {
				t.Fatalf("%+v, %v", e, err)
			}
			if tt.other {
				if n := <-received + <-received; n != 0 {
					t.Errorf("the program received %d bytes", n)
				}
			}
			// What arrives from this host itself proves nothing.
			e, err = prober.Probe(t.Context(), target, port)
			if err == nil || !strings.Contains(err.Error(), "a connection by ssh:user@example.org arrived from ") || !strings.HasSuffix(err.Error(), "which is not an address of the internet") || e.Verdict != Unknown {
				t.Errorf("%+v, %v", e, err)
			}
			text, err := os.ReadFile(args)
			if all := strings.Fields(string(text)); err != nil || !strings.HasSuffix(strings.Join(all, " "), " -- user@example.org sh") {
				t.Errorf("arguments %q, %v", all, err)
			}
			t.Logf("%v: %s", e.RTT, e.Detail)
		})
	}
}

// serveSilently accepts connections, and reports the number of bytes that each of them sends.
func serveSilently(t *testing.T, at netip.AddrPort, received chan<- int) {
	t.Helper()
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			n, _ := conn.Read(make([]byte, 100))
			received <- n
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-ended })
}

// TestSSHFails checks what is said if ssh or the other host fails. None of it proves anything.
func TestSSHFails(t *testing.T) {
	for _, tt := range []struct{ name, body, programs, text string }{
		{"another key", `echo "@@@@@@@@" >&2
echo "No ED25519 host key is known for example.org and you have requested strict checking." >&2
echo "Host key verification failed." >&2
exit 255`, "", `ssh says "No ED25519 host key is known for example.org and you have requested strict checking.; Host key verification failed."`},
		{"no key", `printf 'root@example.org: Permission denied (publickey).\r\n' >&2; exit 255`, "", `ssh:example.org cannot be used: ssh says "root@example.org: Permission denied (publickey)."`},
		{"escapes", `printf '\033[2J\302\237' >&2; exit 255`, "", `ssh says "\x1b[2J\u009f"`},
		{"long lines", `head -c 100000 /dev/zero | tr '\0' x >&2; exit 255`, "", strings.Repeat("x", maxQuote) + `…"`},
		{"another command", `echo; echo connected; echo "This account is not available."; exit 1`, "", `ssh:example.org did not run the script, and says "connected; This account is not available."; ssh says ""`},
		{"no sh", `echo "'sh' is not recognized as an internal or external command" >&2; exit 1`, "", `ssh says "'sh' is not recognized`},
		{"endless output", `yes`, "", "ssh:example.org writes too much"},
		{"an endless line", `cat /dev/zero`, "", "ssh:example.org writes too much"},
		{"hangs", `sleep 60`, "", "ssh:example.org did not run the script in time"},
		{"hangs with a child", `sleep 60 & wait`, "", "ssh:example.org did not run the script in time"},
		{"nothing there", sshWorks, "", `ssh:example.org cannot connect: it says "neither goforward nor bash is installed there"`},
		{"nothing listens", sshWorks, "bash", `ssh:example.org says "refused"; it has not reached 45.45.45.1:`},
		{"nothing listens, by goforward", sshWorks, "goforward", `ssh:example.org says "refused"; it has not reached 45.45.45.1:`},
		{"bash fails", `exec 3>&1; sed -u -e 's/45\.45\.45\.1/255.255.255.255/g' | PATH=$REMOTE $SH`, "bash", `ssh:example.org cannot connect: it says "`},
		{"goforward fails", `exec 3>&1; sed -u -e 's/45\.45\.45\.1/255.255.255.255/g' | PATH=$REMOTE $SH`, "goforward", `ssh:example.org cannot connect: it says "`},
		{"killed", `read -r x; read -r x; read -r x; read -r tag; eval "$tag"; kill -9 $$`, "", `ssh:example.org did not say whether it connected`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fakeSSH(t, tt.body, strings.Fields(tt.programs)...)
			target, _ := sshTarget(t, backends.TCP, false)
			catcher := openPort(t, target, OwnerTemporary)
			if strings.HasPrefix(tt.name, "nothing listens") {
				catcher.Close()
			}
			prober := SSH("example.org").(*sshHost)
			if strings.HasPrefix(tt.name, "hangs") {
				prober.timeout = 50 * time.Millisecond
			}
			e, err := prober.Probe(t.Context(), target, catcher)
			if err == nil || !strings.Contains(err.Error(), tt.text) || e.Verdict != Unknown || len(err.Error()) > 1000 {
				t.Errorf("%+v, %v, want %s", e, err, tt.text)
			}
		})
	}
}

// TestSSHUnreachable checks that a failure counts after a success, and only if the host says that it
// could not connect.
func TestSSHUnreachable(t *testing.T) {
	fakeSSH(t, `echo connected; echo "goforward"; for i in 1 2 3; do echo refused; done; `+sshWorks, "bash")
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target, source := sshTarget(t, p, false)
		port := openPort(t, target, OwnerTemporary)
		prober := SSH("example.org")
		if e, err := prober.Probe(t.Context(), target, &sourceCatcher{Catcher: port, from: source}); err != nil || e.Verdict != Reachable { // after the noise
			t.Fatalf("%v: %+v, %v", p, e, err)
		}
		port.Close()
		e, err := prober.Probe(t.Context(), target, port)
		if err != nil || e.Verdict != Unreachable || e.Level != LevelInternet || !strings.Contains(e.Detail, `although ssh:example.org reached 45.45.45.1:`) || !strings.HasSuffix(e.Detail, `before: it says "refused"`) {
			t.Errorf("%v: %+v, %v", p, e, err)
		}
		if p == backends.TCP { // another device has the port
			listen(t, "tcp", target.Internal)
			if e, err := prober.Probe(t.Context(), target, port); !errors.Is(err, errAnswered) || e.Verdict != Unknown {
				t.Errorf("%v: %+v, %v", p, e, err)
			}
		}
	}
}

// TestSSHOld checks a host with a goforward that has no command probe.
func TestSSHOld(t *testing.T) {
	fakeSSH(t, `printf '#!/bin/sh\necho unknown command; exit 2\n' >$REMOTE/goforward; chmod 755 $REMOTE/goforward; `+sshWorks, "bash")
	target, source := sshTarget(t, backends.TCP, false)
	if e, err := SSH("example.org").Probe(t.Context(), target, &sourceCatcher{Catcher: openPort(t, target, OwnerTemporary), from: source}); err != nil || e.Verdict != Reachable {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestSSHSourcePorts checks when connections to another program count.
func TestSSHSourcePorts(t *testing.T) {
	for _, tt := range []struct{ name, body, programs, text string }{
		{"no names", sshWorks, "bash", "ssh:example.org could not name its source port"},
		{"translated", sshWorks + ` | sed -u 's/^from .*/from 1/'`, "bash readlink", "a NAT in front of ssh:example.org may change its source ports"},
		{"two addresses", sshWorks, "bash readlink", "a NAT in front of"},
		{"one connection for both", sshWorks + ` | while read -r line; do case $line in from*) first=${first:-$line}; line=$first ;; esac; echo "$line"; done`, "bash readlink", "a NAT in front of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fakeSSH(t, tt.body, strings.Fields(tt.programs)...)
			target, source := sshTarget(t, backends.TCP, false)
			serveSilently(t, target.Internal, make(chan int, 8))
			catcher := &sourceCatcher{Catcher: openPort(t, target, OwnerOther), from: source}
			if tt.name == "two addresses" {
				catcher.first = netip.MustParseAddr("9.9.9.9")
			}
			e, err := SSH("example.org").Probe(t.Context(), target, catcher)
			if !errors.Is(err, errAnswered) || !strings.Contains(err.Error(), tt.text) || e.Verdict != Unknown {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// TestSSHRead checks that a host can name only one source port for each connection.
func TestSSHRead(t *testing.T) {
	c := sshCall{tag: "tag"}
	for _, line := range []string{"from 1", "connected", "goforward tag", "from 70000", "from x", "from", "from 0", "from 192.0.2.1:5", "from 6", "connected", "from [2001:db8::1]:7", "from 8"} {
		if c.read(line) {
			t.Errorf("%s: done", line)
		}
	}
	if first, second := c.sources[0].port.Load(), c.sources[1].port.Load(); first != 5 || second != 7 {
		t.Errorf("source ports %d and %d", first, second)
	}
	var none sourcePort
	if none.is(netip.AddrPortFrom(sshSource4, 0)) || c.sources[0].is(netip.AddrPortFrom(sshSource4, 6)) || !c.sources[0].is(netip.AddrPortFrom(sshSource4, 5)) {
		t.Error("a source port that was not named is accepted, or the other way round")
	}
	if !c.read("connected") || c.outcome != dialback.Connected {
		t.Errorf("%+v", &c)
	}
	_ = c.read("from 9") // after the last connection
	if again := c.sources[1].port.Load(); again != 7 {
		t.Errorf("source port %d", again)
	}
}

// TestSSHRefused checks what is never passed to ssh.
func TestSSHRefused(t *testing.T) {
	args := fakeSSH(t, sshWorks)
	target, _ := sshTarget(t, backends.TCP, false)
	port := openPort(t, target, OwnerTemporary)
	for _, host := range []string{
		"", "-oProxyCommand=touch x", "-", "a b", "a\nb", "a\x00b", "a\tb", "a\u00a0b", "a\u202eb", "a\xffb", "$(reboot)", "`reboot`", "a;reboot", "a|reboot",
		"a&b", "a>b", "'a'", `"a"`, `a\b`, "a*", "#a", "{a,b}", strings.Repeat("a", maxHostName+1),
	} {
		if e, err := SSH(host).Probe(t.Context(), target, port); !errors.Is(err, backends.ErrInvalid) || e.Verdict != Unknown {
			t.Errorf("%q: %+v, %v", host, e, err)
		}
	}
	for _, host := range []string{"example.org", "user@example.org", "ssh://user@example.org:2222", "[2001:db8::1]", "user@fe80::1%eth0", "bücher.example", "my_host-1"} {
		if !isSSHHost(host) {
			t.Errorf("%q is refused", host)
		}
	}
	for external, text := range map[netip.Addr]string{
		{}:                                        "does not report its external address",
		netip.MustParseAddr("10.0.0.1"):           "an internet host such as ssh:example.org cannot connect to 10.0.0.1",
		netip.MustParseAddr("100.64.0.1"):         "cannot connect to 100.64.0.1",
		netip.MustParseAddr("127.0.0.1"):          "cannot connect to 127.0.0.1",
		netip.MustParseAddr("2a0c::1%$(reboot)"):  "cannot connect to 2a0c::1%$(reboot)",
		netip.MustParseAddr("::ffff:192.168.1.1"): "cannot connect to 192.168.1.1",
	} {
		other := target
		other.External = netip.AddrPortFrom(external, 8080)
		if e, err := SSH("example.org").Probe(t.Context(), other, port); err == nil || !strings.Contains(err.Error(), text) || e.Verdict != Unknown {
			t.Errorf("%v: %+v, %v", external, e, err)
		}
	}
	udp, _ := sshTarget(t, backends.UDP, false)
	listen(t, "udp", udp.Internal)
	if e, err := SSH("example.org").Probe(t.Context(), udp, openPort(t, udp, OwnerOther)); err == nil || e.Verdict != Unknown {
		t.Errorf("UDP of another program: %+v, %v", e, err)
	}
	if _, err := os.Stat(args); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ssh was started: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if e, err := SSH("example.org").Probe(t.Context(), target, port); err == nil || !strings.Contains(err.Error(), "ssh:example.org: the program ssh is needed") || e.Verdict != Unknown {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestSSHScript checks that the script has values for all its names, and nothing that a gateway
// could choose, except numbers.
func TestSSHScript(t *testing.T) {
	for _, nonce := range []string{"", NewNonce()} {
		c := sshCall{tag: NewNonce(), nonce: nonce, to: netip.AddrPortFrom(sshExternal6, 8080), protocol: backends.UDP}
		text := c.script()
		for _, name := range []string{"@TAG", "@ENDPOINT", "@ADDRESS", "@PORT", "@PROTOCOL", "@NONCE", "@BYTES", "@COUNT"} {
			if strings.Contains(text, name) {
				t.Errorf("%s has no value", name)
			}
		}
		if !strings.Contains(text, `goforward probe "[2a0c:7777:1::1]:8080/udp"`) || !strings.Contains(text, "/dev/udp/2a0c:7777:1::1/8080") {
			t.Errorf("%s", text)
		}
		if nonce == "" && strings.Contains(text, greeting) {
			t.Error("bytes are sent without a nonce")
		}
		if len(text) > 4096 {
			t.Errorf("the script has %d bytes, more than the pipe of some systems", len(text))
		}
	}
}
