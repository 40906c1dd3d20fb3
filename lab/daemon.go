package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Daemon is the miniupnpd of a router.
type Daemon struct {
	host   *Host
	listen netip.Addr
	conf   string // path
	bootID int64
	cmd    *exec.Cmd
	exited chan struct{}
}

// newDaemon writes the configuration below /run, which is the world's own and
// leaves nothing behind.
func newDaemon(t testing.TB, host *Host, router Router, listen netip.Addr) *Daemon {
	t.Helper()
	dir := filepath.Join("/run", host.netns)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("lab: %v", err)
	}
	d := &Daemon{host: host, listen: listen, conf: filepath.Join(dir, "miniupnpd.conf")}
	text := router.conf(uuid())
	host.lab.log.record("%s: %s\n%s", host.name, d.conf, text)
	if err := os.WriteFile(d.conf, []byte(text), 0o644); err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if d.running() {
			d.Kill(t)
		}
	})
	return d
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Start starts the daemon and returns when it answers.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	if d.running() {
		t.Fatal("lab: miniupnpd runs already")
	}
	// -d keeps it in the foreground and its log on standard error; a pid file
	// of its own lets several run side by side.
	// Its own BOOTID is the second of its start: two starts in one would look
	// like none to a client of UPnP.
	d.bootID = max(d.bootID+1, time.Now().Unix())
	args := []string{"-d", "-f", d.conf, "-P", d.conf + ".pid", "-b", strconv.FormatInt(d.bootID, 10)}
	d.cmd = d.host.command(context.Background(), "miniupnpd", args...)
	log := d.host.lab.log
	out := &lineWriter{emit: func(line string) { log.record("miniupnpd: %s", line) }}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	log.record("%s", d.host.prompt("miniupnpd", args))
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("lab: start miniupnpd: %v", err)
	}
	exited, cmd := make(chan struct{}), d.cmd
	d.exited = exited
	go func() {
		_ = cmd.Wait()
		log.record("miniupnpd ended: %v", cmd.ProcessState)
		close(exited)
	}()
	if err := d.awaitAnswer(patience); err != nil {
		t.Fatalf("lab: miniupnpd does not come up: %v", err)
	}
}

func (d *Daemon) running() bool {
	if d.exited == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Settled reports whether the daemon has done all that it was asked before. It
// does one thing at a time: a client that has waited for long asks twice, has its
// answer to the first question, and at the second the daemon takes the rule away
// and makes it anew.
func (d *Daemon) Settled() bool {
	return d.running() && d.awaitAnswer(answerTime) == nil
}

// awaitAnswer asks for the external address by NAT-PMP until an answer comes.
// NAT-PMP is always on in the daemon, and its socket is the last one opened. It
// asks from the router itself, where no rule for lan0 is in the way.
func (d *Daemon) awaitAnswer(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	to := netip.AddrPortFrom(d.listen, 5351).String()
	conn, err := d.host.Dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if ok := asked(conn); ok {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("it ended: %v", d.cmd.ProcessState)
		case <-time.After(5 * time.Millisecond): // a foreign program tells nobody when it is ready
		}
	}
	return fmt.Errorf("no answer from %s within %v", to, within)
}

// asked sends one request; a refused port is an answer that comes at once.
func asked(conn net.Conn) bool {
	_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Write([]byte{0, 0}); err != nil {
		return false
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return err == nil && n >= 8 && bytes.Equal(buf[:2], []byte{0, 128})
}

// Stop ends the daemon by SIGTERM: it says byebye and takes its rules away.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGTERM)
	d.await(t)
}

// Kill is kill -9. The rules stay, and so do the forwardings.
func (d *Daemon) Kill(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGKILL)
	d.await(t)
}

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if !d.running() {
		t.Fatal("lab: miniupnpd does not run")
	}
	d.host.lab.log.record("miniupnpd: signal %v", s)
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatalf("lab: signal %v to miniupnpd: %v", s, err)
	}
}

func (d *Daemon) await(t testing.TB) {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		t.Fatalf("lab: miniupnpd does not end within %v", patience)
	}
}

// Restart is what a power cut does to a router: the daemon, its rules and the
// tracked connections are gone, then the daemon starts.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	if d.running() {
		d.Kill(t)
	}
	d.Forget(t)
	d.Start(t)
}

// Forget takes all port forwardings and tracked connections away from the
// router.
func (d *Daemon) Forget(t testing.TB) {
	t.Helper()
	d.host.Nft(t, `flush chain inet filter miniupnpd
flush chain inet filter prerouting_miniupnpd
flush chain inet filter postrouting_miniupnpd
`)
	d.host.Exec(t, "conntrack", "-F")
}
