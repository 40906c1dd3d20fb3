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

// Daemon is the miniupnpd process of a router.
type Daemon struct {
	host      *Host
	listen    netip.Addr
	conf      string // the path of the configuration file
	bootID    int64
	process   *os.Process
	exited    chan struct{} // closed when the process has exited
	exitState string        // how the process exited; read it after exited is closed
}

// debugEnv is an environment variable. If it is set, miniupnpd runs in the foreground,
// and its debug log is in the transcript. The log makes the daemon ten to a hundred times
// slower, so use it only to reproduce a failure.
const debugEnv = "GOFORWARD_LAB_DEBUG"

// newDaemon writes the configuration below /run. This directory belongs to the lab's
// mount namespace and disappears with it.
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

// Start starts the daemon and returns when the daemon replies to requests.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	if d.running() {
		t.Fatal("lab: miniupnpd is already running")
	}
	// The BOOTID is the Unix time of the start in seconds. To a UPnP client, two starts
	// in one second would look like one.
	d.bootID = max(d.bootID+1, time.Now().Unix())
	args := []string{"-f", d.conf, "-P", d.pidFile(), "-b", strconv.FormatInt(d.bootID, 10)}
	// The pid file of a killed daemon prevents the next start if another process has that
	// pid now.
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
		t.Fatalf("lab: miniupnpd does not start (%s=1 shows its log): %v", debugEnv, err)
	}
}

func (d *Daemon) pidFile() string { return d.conf + ".pid" }

// startInBackground starts the daemon as routers do: the daemon detaches itself, and this
// process becomes its parent.
func (d *Daemon) startInBackground(args []string) (*os.Process, error) {
	if err := adoptOrphans(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	output, err := os.Create(d.conf + ".out") // a file and not a pipe, because the daemon may keep it open
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
			return nil, fmt.Errorf("no pid file within %v (%s=1 shows its log): %w", maxWait, debugEnv, errors.Join(err, numberErr))
		case <-time.After(time.Millisecond): // poll: nothing reports that the file was written
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
	go func() { // ends when the daemon closes its end of the pipe
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

// Settled reports whether the daemon has finished all earlier requests. The daemon
// handles one request at a time. If a client repeats a request, the daemon deletes the
// rule and creates it again.
func (d *Daemon) Settled() bool {
	return d.running() && d.waitForReply(replyTimeout) == nil
}

// waitForReply requests the external address by NAT-PMP until a reply arrives. NAT-PMP is
// always enabled in the daemon, and its socket is the last one that the daemon opens. The
// requests come from the router itself, so rules for lan0 do not apply to them.
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
			return fmt.Errorf("miniupnpd exited: %s", d.exitState)
		case <-time.After(5 * time.Millisecond): // poll: the daemon does not report that it is ready
		}
	}
	return fmt.Errorf("no reply from %s within %v", to, timeout)
}

// requestAnswered sends one request and reports whether a reply arrives. It returns at
// once if the port is closed.
func requestAnswered(conn net.Conn) bool {
	_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Write([]byte{0, 0}); err != nil {
		return false
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return err == nil && n >= 8 && bytes.Equal(buf[:2], []byte{0, 128})
}

// Stop terminates the daemon by SIGTERM. The daemon sends byebye notifications and
// deletes its rules.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGTERM)
	d.waitForExit(t)
}

// Kill terminates the daemon by SIGKILL. Its rules stay, and the mappings stay active.
func (d *Daemon) Kill(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGKILL)
	d.waitForExit(t)
}

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if !d.running() {
		t.Fatal("lab: miniupnpd is not running")
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
		t.Fatalf("lab: miniupnpd does not exit within %v", maxWait)
	}
}

// Restart simulates a power cut of the router: it kills the daemon, deletes the daemon's
// rules and the tracked connections, and starts the daemon again.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	if d.running() {
		d.Kill(t)
	}
	d.Forget(t)
	d.Start(t)
}

// ResetEpoch makes the epoch start at 0 with the next start of the daemon, as with
// Router.DaemonUptime. If the epoch was the uptime of the machine before, this simulates a
// restart of a router that was running for a long time.
func (d *Daemon) ResetEpoch(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(d.conf)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	text = bytes.Replace(text, []byte("system_uptime=yes"), []byte("system_uptime=no"), 1)
	if err := os.WriteFile(d.conf, text, 0o644); err != nil {
		t.Fatalf("lab: %v", err)
	}
}

// Forget deletes all port forwardings and tracked connections of the router.
func (d *Daemon) Forget(t testing.TB) {
	t.Helper()
	d.host.Nft(t, `flush chain inet filter miniupnpd
flush chain inet filter prerouting_miniupnpd
flush chain inet filter postrouting_miniupnpd
`)
	d.host.Exec(t, "conntrack", "-F")
}
