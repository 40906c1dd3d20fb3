package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Daemon is the miniupnpd of a router.
type Daemon struct {
	host      *Host
	listen    netip.Addr
	conf      string // path
	bootID    int64
	process   *os.Process
	exited    chan struct{} // closed when the process has ended
	exitState string        // how it ended; read it after exited
}

// debugEnv is the environment variable that, if it is set, runs miniupnpd in the
// foreground with its debug log in the transcript. The log makes it ten to a hundred
// times slower: use it only to repeat a failure.
const debugEnv = "GOFORWARD_LAB_DEBUG"

// newDaemon writes the configuration below /run, which is the world's own and
// leaves nothing behind.
func newDaemon(t testing.TB, host *Host, router Router, listen netip.Addr) *Daemon {
	t.Helper()
	dir := filepath.Join("/run", host.netns)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("lab: %v", err)
	}
	d := &Daemon{host: host, listen: listen, conf: filepath.Join(dir, "miniupnpd.conf")}
	text := router.conf(newUUID())
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

func newUUID() string {
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
	// The BOOTID is the second of the start: two starts in one second would look
	// like none to a client of UPnP.
	d.bootID = max(d.bootID+1, time.Now().Unix())
	args := []string{"-f", d.conf, "-P", d.pidFile(), "-b", strconv.FormatInt(d.bootID, 10)}
	// The pid file of a killed daemon keeps the next one from starting if another
	// process has that pid now.
	_ = os.Remove(d.pidFile())
	start := d.startInBackground
	if os.Getenv(debugEnv) != "" {
		start = d.startInForeground
		args = append([]string{"-d"}, args...)
	}
	d.host.lab.log.record("%s", d.host.prompt("miniupnpd", args))
	var err error
	if d.process, err = start(args); err != nil {
		t.Fatalf("lab: start miniupnpd: %v", err)
	}
	exited, process := make(chan struct{}), d.process
	d.exited = exited
	go func() {
		state, err := process.Wait()
		d.exitState = fmt.Sprint(state, " ", err)
		d.host.lab.log.record("miniupnpd ended: %s", d.exitState)
		close(exited)
	}()
	if err := d.waitForReply(maxWait); err != nil {
		t.Fatalf("lab: miniupnpd does not come up (%s=1 shows its log): %v", debugEnv, err)
	}
}

func (d *Daemon) pidFile() string { return d.conf + ".pid" }

// startInBackground starts the daemon as routers do. It detaches itself, and this
// process becomes its parent.
func (d *Daemon) startInBackground(args []string) (*os.Process, error) {
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	output, err := os.Create(d.conf + ".out") // a file, because the daemon may keep it open
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := d.host.command(ctx, "miniupnpd", args...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(output.Name())
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(text))
	}
	for {
		text, err := os.ReadFile(d.pidFile())
		pid, numberErr := strconv.Atoi(string(bytes.TrimSpace(text)))
		if err == nil && numberErr == nil {
			return os.FindProcess(pid)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("it writes no pid file within %v (%s=1 shows its log): %w", maxWait, debugEnv, errors.Join(err, numberErr))
		case <-time.After(time.Millisecond): // it does not report when the file is written
		}
	}
}

// startInForeground starts the daemon with its log on standard error.
func (d *Daemon) startInForeground(args []string) (*os.Process, error) {
	cmd := d.host.command(context.Background(), "miniupnpd", args...)
	out := &lineWriter{emit: func(line string) { d.host.lab.log.record("miniupnpd: %s", line) }}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	go func() { // ends when the daemon has closed its end
		_, _ = io.Copy(out, r)
		out.flush()
		r.Close()
	}()
	return cmd.Process, nil
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

// Settled reports whether the daemon has done all that it was asked before. It does
// one thing at a time: if a client has repeated a request, the daemon deletes the rule
// at the repetition and makes it again.
func (d *Daemon) Settled() bool {
	return d.running() && d.waitForReply(replyTimeout) == nil
}

// awaitAnswer asks for the external address by NAT-PMP until an answer comes.
// NAT-PMP is always on in the daemon, and its socket is the last one opened. It
// asks from the router itself, where no rule for lan0 is in the way.
func (d *Daemon) waitForReply(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	to := netip.AddrPortFrom(d.listen, 5351).String()
	conn, err := d.host.Dial(ctx, "udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if ok := requestAnswered(conn); ok {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("it ended: %s", d.exitState)
		case <-time.After(5 * time.Millisecond): // a foreign program tells nobody when it is ready
		}
	}
	return fmt.Errorf("no answer from %s within %v", to, timeout)
}

// asked sends one request; a refused port is an answer that comes at once.
func requestAnswered(conn net.Conn) bool {
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
	d.waitForExit(t)
}

// Kill is kill -9. The rules stay, and so do the forwardings.
func (d *Daemon) Kill(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGKILL)
	d.waitForExit(t)
}

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if !d.running() {
		t.Fatal("lab: miniupnpd does not run")
	}
	d.host.lab.log.record("miniupnpd: signal %v", s)
	if err := d.process.Signal(s); err != nil {
		t.Fatalf("lab: signal %v to miniupnpd: %v", s, err)
	}
}

func (d *Daemon) waitForExit(t testing.TB) {
	t.Helper()
	select {
	case <-d.exited:
	case <-time.After(maxWait):
		t.Fatalf("lab: miniupnpd does not end within %v", maxWait)
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
