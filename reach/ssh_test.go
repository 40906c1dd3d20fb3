//go:build unix

package reach

import (
	"context"
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
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

// sourceCatcher makes arrivals come from an address of the internet.
type sourceCatcher struct {
	Catcher
	from netip.Addr
}

func (c sourceCatcher) Expect(e Expectation) (<-chan Arrival, func()) {
	in, stop := c.Catcher.Expect(e)
	out, done, ended := make(chan Arrival, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case a := <-in:
			a.From = netip.AddrPortFrom(c.from, a.From.Port())
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
			e, err := prober.Probe(t.Context(), target, sourceCatcher{port, source})
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
