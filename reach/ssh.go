package reach

import (
	"context"
	_ "embed" // for the script
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
)

const (
	// sshTimeout is how long one measurement by ssh takes at most: five seconds to connect to
	// the host, five seconds for the connection from there, and the time to log in.
	sshTimeout = 12 * time.Second
	// sshEnd is how long ssh may take to end after that, before it is killed.
	sshEnd = time.Second
	// sshGrace is how long an arrival may take after the host has said that it connected.
	sshGrace = 500 * time.Millisecond
	// maxStray is the number of lines that are kept to explain a failure.
	maxStray = 4
	// maxHostName is the length of a name for ssh.
	maxHostName = 300
)

// SSH returns a prober that uses a host of the internet on which the user has an account: it
// connects from there to the external port. The host is a name for the program ssh, such as
// "user@example.org" or a name of ~/.ssh/config. The program must be installed here, and must be
// able to log in without a question. It runs a script for sh, which uses the command goforward if
// that is installed there, and otherwise bash. If the name is invalid, each measurement fails
// with backends.ErrInvalid. An arrival from a public address proves LevelInternet.
//
// The external address must be public. For a program that is not a forward.Listener or PacketConn,
// two TCP connections in a row are recognized in the table of sockets by their source ports, which
// the host names. That fails if a NAT in front of the host changes them. UDP then cannot be
// measured.
//
// A gateway that admits every address to which any host of its network has sent lets the host in
// while it keeps strangers out.
//
// A failure is Unreachable only if this prober reached the same external endpoint before, and
// otherwise Unknown, like every error of ssh and of the host: their texts are quoted, but prove
// nothing.
func SSH(host string) Prober {
	return &sshHost{helper: helper{name: "ssh:" + host}, host: host, timeout: sshTimeout}
}

type sshHost struct {
	helper
	host    string
	timeout time.Duration // sshTimeout
}

// Probe implements Prober.
func (s *sshHost) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	if err := s.check(t, catcher); err != nil {
		return e, err
	}
	at := t.External.Addr().Unmap()
	switch {
	case !isSSHHost(s.host):
		return e, fmt.Errorf("%w: %s is not the name of a host for ssh", backends.ErrInvalid, quote(s.host))
	case !at.IsValid():
		return e, checkExternal(t)
	case backends.ScopeOf(at) != backends.ScopePublic || at.Zone() != "":
		return e, fmt.Errorf("%w: an internet host such as %s cannot connect to %v, which is not a public address", backends.ErrUnsupported, s.name, at)
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return e, fmt.Errorf("%s: the program ssh is needed: %w", s.name, err)
	}
	c := sshCall{name: s.name, tag: NewNonce(), to: netip.AddrPortFrom(at, t.External.Port()), protocol: t.Protocol}
	expected := Expectation{}
	if catcher.Owner() == OwnerOther { // it must not get bytes that it did not ask for
		expected.Source = c.sources[0].is
		second, stop := catcher.Expect(Expectation{Source: c.sources[1].is})
		defer stop()
		c.arrivals[1] = second
	} else {
		c.nonce = NewNonce()
		expected.First = greeting + c.nonce
	}
	first, stop := catcher.Expect(expected)
	defer stop()
	c.arrivals[0] = first

	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	begun := time.Now()
	run, err := startSSH(bounded, program, s.host, c.script())
	if err != nil {
		return e, fmt.Errorf("%s: %w", s.name, err)
	}
	a, ok := c.follow(bounded, run)
	run.end()
	if ok {
		contacted.add(a.From.Addr()) // by ssh
		return s.arrived(t, e, at, a, begun)
	}
	if cause := context.Cause(ctx); cause != nil {
		return e, cause
	}
	said, err := c.failure(run)
	if err != nil {
		return e, err
	}
	return s.missed(t, e, at, quote(string(said)))
}

// isSSHHost reports whether a text may be passed to ssh as the name of a host. Such a text is no
// option, and is of no use against a shell: the user's configuration may pass it to one.
func isSSHHost(s string) bool {
	isBad := func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune("!\"#$&'()*;<>?\\`{|}", r)
	}
	return s != "" && len(s) <= maxHostName && s[0] != '-' && utf8.ValidString(s) && !strings.ContainsFunc(s, isBad)
}

// sshCall is one measurement by ssh.
type sshCall struct {
	name     string
	tag      string // what the script prints first, after the noise of the login
	nonce    string // what the host sends; empty: nothing, and it connects twice
	to       netip.AddrPort
	protocol backends.Protocol
	arrivals [2]<-chan Arrival
	sources  [2]sourcePort // of the connections that send nothing

	begun     bool // the script runs
	connected int  // the number of connections that were accepted
	outcome   dialback.Outcome
	stray     []string // the last lines that are no results
}

// sourcePort is the source port that a host has named. The zero value is none.
type sourcePort struct{ port atomic.Uint32 }

// is reports whether a connection comes from this port. Its address may be translated.
func (s *sourcePort) is(from netip.AddrPort) bool {
	port := s.port.Load()
	return port != 0 && port == uint32(from.Port())
}

//go:embed ssh.sh
var sshScript string

// script returns what sh is to run on the host. All values in it are addresses, numbers and nonces.
func (c *sshCall) script() string {
	bytes, count := "", "2"
	if c.nonce != "" {
		bytes, count = greeting+c.nonce, "1"
	}
	return strings.NewReplacer(
		"\r\n", "\n", // of git on Windows
		"@TAG", c.tag, "@ENDPOINT", c.to.String(), "@ADDRESS", c.to.Addr().String(), "@PORT", strconv.Itoa(int(c.to.Port())),
		"@PROTOCOL", c.protocol.String(), "@NONCE", c.nonce, "@BYTES", bytes, "@COUNT", count,
	).Replace(sshScript)
}

// follow reads what the host says until the connection has arrived, or will not arrive any more.
func (c *sshCall) follow(ctx context.Context, run *sshRun) (a Arrival, ok bool) {
	var (
		first, second = c.arrivals[0], c.arrivals[1]
		seen          []Arrival
		lines         = run.lines
		grace         <-chan time.Time
	)
	for {
		select {
		case a = <-first:
			first, seen = nil, append(seen, a)
		case a = <-second:
			second, seen = nil, append(seen, a)
		case line, more := <-lines:
			if done := more && c.read(line); more && !done {
				continue
			}
			lines = nil
			wait := sshGrace
			if c.connected == 0 && c.outcome != dialback.Sent {
				wait = 10 * time.Millisecond // for an arrival that is there already
			}
			timer := time.NewTimer(wait)
			defer timer.Stop()
			grace = timer.C
			continue
		case <-grace:
			return Arrival{}, false
		case <-ctx.Done():
			return Arrival{}, false
		}
		switch {
		case c.nonce != "":
			return a, true
		case len(seen) == 2: // another client may have had one of the source ports by chance
			return a, seen[0].From.Addr() == seen[1].From.Addr() && seen[0].From != seen[1].From
		}
	}
}

// read reads a line of the host. It returns true if no further line matters.
func (c *sshCall) read(line string) (done bool) {
	if !c.begun {
		c.begun = line == "goforward "+c.tag
		if !c.begun {
			c.addStray(line)
		} else {
			c.stray = nil
		}
		return false
	}
	word, rest, _ := strings.Cut(line, " ")
	switch o := dialback.Outcome(word); {
	case word == "from" && c.nonce == "" && c.connected < len(c.sources):
		if port, err := strconv.ParseUint(rest[strings.LastIndexByte(rest, ':')+1:], 10, 16); err == nil {
			c.sources[c.connected].port.CompareAndSwap(0, uint32(port)) // the first one counts
		}
	case line == string(dialback.Connected):
		c.connected++
		c.outcome = o
		return c.nonce != "" || c.connected == len(c.sources)
	case line == string(dialback.Sent), line == string(dialback.Refused), line == string(dialback.TimedOut):
		c.outcome = o
		return true
	case line == sshFailed:
		switch text := strings.Join(c.stray, " "); { // of bash
		case strings.Contains(text, "Connection refused"):
			c.outcome = dialback.Refused
		case strings.Contains(text, "Connection timed out"):
			c.outcome = dialback.TimedOut
		default:
			c.outcome = dialback.Failed
		}
		return true
	default:
		c.addStray(line)
	}
	return false
}

// sshFailed is the line of the script after those that say why the host could not connect.
const sshFailed = "failed"

// addStray keeps a line that is no result.
func (c *sshCall) addStray(line string) {
	if line = strings.TrimSpace(line); line == "" {
		return
	}
	if c.stray = append(c.stray, line); len(c.stray) > maxStray {
		c.stray = c.stray[1:]
	}
}

// failure returns what the host says about its connection, or why that does not help. It is for a
// call without an arrival, after the end of ssh.
func (c *sshCall) failure(run *sshRun) (said dialback.Outcome, err error) {
	stray := strings.Join(c.stray, "; ")
	switch {
	case !c.begun && run.tooMuch:
		return "", fmt.Errorf("%s writes too much", c.name)
	case !c.begun && run.killed:
		return "", fmt.Errorf("%s did not run the script in time; ssh says %s", c.name, quote(run.complaint()))
	case !c.begun && stray == "":
		return "", fmt.Errorf("%s cannot be used: ssh says %s", c.name, quote(run.complaint()))
	case !c.begun:
		return "", fmt.Errorf("%s did not run the script, and says %s; ssh says %s", c.name, quote(stray), quote(run.complaint()))
	case c.nonce != "" && c.connected > 0:
		return "", fmt.Errorf("%w: %s says %q", errAnswered, c.name, dialback.Connected)
	case c.connected > 0 && c.sources[0].port.Load() == 0:
		return "", fmt.Errorf("%w: %s could not name its source port: install goforward there, or stop the program on the port during the measurement", errAnswered, c.name)
	case c.connected > 0:
		return "", fmt.Errorf("%w: a NAT in front of %s may change its source ports: stop the program on the port during the measurement", errAnswered, c.name)
	case c.outcome == dialback.Failed:
		return "", fmt.Errorf("%s cannot connect: it says %s", c.name, quote(stray))
	case c.outcome == "":
		return "", fmt.Errorf("%s did not say whether it connected: %s", c.name, quote(strings.TrimSpace(stray+" "+run.complaint())))
	}
	return c.outcome, nil
}

// sshRun is a running ssh.
type sshRun struct {
	stdin  io.WriteCloser
	lines  chan string // what the host prints; closed after the end of ssh
	cancel context.CancelFunc
	stderr tail

	// Only for use after end.
	tooMuch bool // the host has printed more than maxReply
	killed  bool // ssh did not end by itself
}

// startSSH starts ssh. It ends with ctx at the latest. The caller must call end.
func startSSH(ctx context.Context, program, host, script string) (*sshRun, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &sshRun{lines: make(chan string), cancel: cancel}
	cmd := exec.CommandContext(ctx, program,
		"-T", "-a", "-x", // no terminal, no agent and no X11 on the host
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR",
		"-o", "ControlMaster=no", // nothing remains here; an existing connection may be used
		"-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none",
		"--", host, "sh")
	cmd.WaitDelay = sshEnd
	setGroup(cmd)
	out := &lineWriter{ctx: ctx, cancel: cancel, lines: r.lines}
	cmd.Stdout, cmd.Stderr = out, &r.stderr
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r.stdin = stdin
	go func() {
		defer close(r.lines)
		_ = cmd.Wait()
		killGroup(cmd)
		r.killed, r.tooMuch = ctx.Err() != nil, out.n > maxReply
	}()
	_, _ = io.WriteString(stdin, script) // an error means that ssh has ended
	return r, nil
}

// end ends ssh, and the script on the host, and waits for that.
func (r *sshRun) end() {
	_ = r.stdin.Close() // the script ends
	timer := time.AfterFunc(sshEnd, r.cancel)
	defer timer.Stop()
	for range r.lines {
	}
	r.cancel()
}

// complaint returns the last lines that ssh has printed.
func (r *sshRun) complaint() string {
	var c sshCall
	for line := range strings.Lines(string(r.stderr.text)) {
		c.addStray(line)
	}
	return strings.Join(c.stray[max(0, len(c.stray)-2):], "; ")
}

// lineWriter passes lines on until ctx ends. After maxReply bytes it ends
// the program. It cuts lines that are too long.
type lineWriter struct {
	ctx    context.Context //nolint:containedctx // of the program that writes
	cancel context.CancelFunc
	lines  chan<- string
	line   []byte
	n      int
}

func (w *lineWriter) Write(b []byte) (int, error) {
	if w.n += len(b); w.n > maxReply {
		w.cancel()
		return 0, io.ErrShortWrite
	}
	for _, c := range b {
		if c != '\n' {
			if len(w.line) < maxLine {
				w.line = append(w.line, c)
			}
			continue
		}
		select {
		case w.lines <- strings.TrimSuffix(string(w.line), "\r"):
			w.line = w.line[:0]
		case <-w.ctx.Done():
			return 0, context.Cause(w.ctx)
		}
	}
	return len(b), nil
}

// tail keeps the last bytes that are written to it.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-maxLine):]
	return len(b), nil
}
