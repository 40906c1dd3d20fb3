package labtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// sshLab is a home with a forwarded port, and sshd on the wan host.
type sshLab struct {
	*reachLab
	server sshServer
}

func newSSHLab(t *testing.T, socket string) sshLab {
	t.Helper()
	l := newReachLab(t, lab.Uplink{})
	_, _, six, _ := wanAddrs(t, l.home)
	s := startSSHD(t, l.home.Wan, six, "/bin/sh")
	l.open(t, socket)
	l.program.call(reachCall{Op: "path", Address: s.path}, nil)
	return sshLab{l, s}
}

// install installs goforward on the wan host, or removes it.
func (l sshLab) install(t *testing.T, installed bool) {
	t.Helper()
	at := filepath.Join(l.server.bin, "goforward")
	_ = os.Remove(at)
	if !installed {
		return
	}
	built, err := builtCommand()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(built, at); err != nil {
		t.Fatal(err)
	}
}

// verify measures the port from a host of ssh, and checks the evidence.
func (l sshLab) verify(t *testing.T, network string, six bool, host, evidence, detail string) reachReply {
	t.Helper()
	method := "ssh:" + host
	r := l.program.call(reachCall{Op: "verify", Network: network, Target: l.targets[six], Probers: []string{method}, Within: maxWait}, nil)
	for _, e := range r.Evidence {
		if e.Method != method {
			continue
		}
		t.Logf("%s over IPv%s: %v, %.2f s: %s", network, reachCell{six: six}.version(), e, r.Took.Seconds(), e.Detail)
		if e.String() != evidence || !strings.Contains(e.Detail, detail) {
			t.Errorf("%s over IPv%s: %v: %s, want %s: …%s…", network, reachCell{six: six}.version(), e, e.Detail, evidence, detail)
		}
		if evidence != fromOutside && r.Verdict == reach.Reachable.String() {
			t.Errorf("FALSE REACHABLE: %+v", r)
		}
		return r
	}
	t.Fatalf("no evidence of %s: %+v", method, r)
	return r
}

// TestReachSSH measures a port from the wan host, by bash and by goforward there.
func TestReachSSH(t *testing.T) {
	t.Parallel()
	for _, socket := range []string{"", "none", "service"} {
		name := map[string]string{"": "own socket, then listed and not forwarded", "none": "no socket", "service": "service of another program"}[socket]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "reach by SSH: "+name)
			l := newSSHLab(t, socket)
			for _, installed := range []bool{false, true} {
				l.install(t, installed)
				for _, network := range []string{"tcp", "udp"} {
					for _, six := range []bool{false, true} {
						l.verifyReachable(t, network, six, socket)
					}
				}
			}
			if socket == "" {
				l.verifyClosed(t)
			}
			l.awaitNoProcess(t)
		})
	}
}

// verifyReachable measures a port that is reachable if a program listens.
func (l sshLab) verifyReachable(t *testing.T, network string, six bool, socket string) {
	t.Helper()
	if socket == "service" && network == "udp" {
		l.verify(t, network, six, "wanhost", unknown, "the datagrams that arrive there cannot be observed")
		return
	}
	want := reach.Reachable
	if socket == "none" {
		want = reach.Unreachable // because no program listens
	}
	r := l.verify(t, network, six, "wanhost", fromOutside, "a connection by ssh:wanhost arrived, from ")
	if r.Verdict != want.String() || r.Proven != reach.LevelInternet.String() {
		t.Errorf("%+v", r)
	}
}

// verifyClosed measures ports that the router forwards no longer, by a prober that has reached them, and by
// another one.
func (l sshLab) verifyClosed(t *testing.T) {
	t.Helper()
	l.home.Daemon.Forget(t)
	for _, installed := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			for _, six := range []bool{false, true} {
				if !longChecks && (installed || network != "tcp" || six) {
					continue
				}
				l.install(t, installed)
				l.verify(t, network, six, "wanhost", unreachable, "nothing arrived although ssh:wanhost reached ")
				l.verify(t, network, six, "root@wanhost", unknown, "it has not reached ")
			}
		}
	}
}

// TestReachSSHFails checks hosts that cannot be used, and a measurement that ends early.
func TestReachSSHFails(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "reach by SSH: a host that is away, refuses the key, or has another one")
	l := newSSHLab(t, "")
	l.verify(t, "tcp", false, "ssh://root@wanhost:23", unknown, "Connection refused")
	l.verify(t, "tcp", false, "sshd@wanhost", unknown, "Permission denied (publickey)")
	l.verify(t, "tcp", false, l.home.Wan.Addr().String(), unknown, "Host key verification failed.")
	l.verify(t, "tcp", true, "wanhost6", fromOutside, "")
	providerBlocks(t, l.reachLab)
	for _, installed := range []bool{false, true} {
		l.install(t, installed)
		r := l.program.call(reachCall{Op: "verify", Network: "tcp", Target: l.targets[false], Probers: []string{"ssh:wanhost"}, Within: 2 * time.Second}, nil)
		if r.Verdict != reach.Unknown.String() {
			t.Errorf("%+v", r)
		}
		l.awaitNoProcess(t)
	}
	if longChecks {
		l.verify(t, "tcp", false, "wanhost", unknown, `ssh:wanhost says "timeout"; it has not reached`)
		l.verify(t, "tcp", false, "no-such-host.invalid", unknown, "ssh:no-such-host.invalid cannot be used: ssh says ")
		l.home.Wan.Rule(t, "input", "tcp dport 22 drop")
		l.verify(t, "tcp", false, "wanhost", unknown, "timed out")
	}
}

// awaitNoProcess waits until no process of a login remains on the wan host.
func (l sshLab) awaitNoProcess(t *testing.T) {
	t.Helper()
	waitUntil(t, maxWait, "a process remains on the wan host", func() bool {
		all, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			if env, err := os.ReadFile(path); err == nil && bytes.Contains(env, []byte("PATH="+l.server.bin+":")) {
				return false
			}
		}
		return true
	})
}
