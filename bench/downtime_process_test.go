package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// keepEnv is the environment variable with the task of a process that keeps mappings.
const keepEnv = "GOFORWARD_BENCH_KEEP"

const (
	keepMark      = "bench-keep: "
	watchInterval = 100 * time.Millisecond // how often a process reads its external endpoints
	probeTimeout  = time.Second
)

// keepTask is what a process keeps.
type keepTask struct {
	Candidate string
	Ports     []uint16 // the first one has the echo server
}

// keepState is the state of the mapping of the first port.
type keepState struct {
	Endpoints []netip.AddrPort
	Protocol  string
	Err       string // why the process could not start
}

// keep is the main function of a process that keeps mappings. It prints each change of its
// state and ends when its standard input is closed. It returns the exit code.
func keep(text string) int {
	if err := runKeeper(text); err != nil {
		printState(keepState{Err: err.Error()})
		return 1
	}
	return 0
}

func runKeeper(text string) error {
	var task keepTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	k, ok := keeperNamed(task.Candidate)
	if !ok {
		return fmt.Errorf("no candidate %q", task.Candidate)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := serveEcho(k.network, task.Ports[0], k.name); err != nil {
		return err
	}
	m, err := k.keep(context.Background(), task.Ports)
	if err != nil {
		return err
	}
	var last keepState
	for {
		s := keepState{Endpoints: m.endpoints()}
		if m.protocol != nil {
			s.Protocol = m.protocol()
		}
		if !slices.Equal(s.Endpoints, last.Endpoints) || s.Protocol != last.Protocol {
			printState(s)
			last = s
		}
		time.Sleep(watchInterval)
	}
}

func printState(s keepState) {
	line, err := json.Marshal(s)
	if err != nil {
		line = []byte(strconv.Quote(err.Error()))
	}
	fmt.Fprintf(os.Stdout, "%s%s\n", keepMark, line)
}

// serveEcho starts a server on a port. It replies to each message with its name and the
// message.
func serveEcho(network string, port uint16, name string) error {
	address := fmt.Sprintf(":%d", port)
	if network == "udp" {
		pc, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1500)
			for {
				n, peer, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(append([]byte(name+" "), buf[:n]...), peer)
			}
		}()
		return nil
	}
	ln, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(probeTimeout))
				buf := make([]byte, 1500)
				if n, err := conn.Read(buf); err == nil {
					_, _ = conn.Write(append([]byte(name+" "), buf[:n]...))
				}
			}()
		}
	}()
	return nil
}

// keeperProcess is a running process that keeps mappings, as the test sees it.
type keeperProcess struct {
	keeper
	task  keepTask
	stop  context.CancelFunc
	ended chan struct{} // closed when the process has ended

	mu    sync.Mutex
	state keepState
	last  []netip.AddrPort // the last endpoints that were not empty
}

// startKeeper starts a process. cmd must start this test binary; stop kills it.
func startKeeper(cmd *exec.Cmd, stop context.CancelFunc, task keepTask, env ...string) (*keeperProcess, error) {
	k, ok := keeperNamed(task.Candidate)
	if !ok {
		return nil, fmt.Errorf("no candidate %q", task.Candidate)
	}
	arg, err := json.Marshal(task)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(append(os.Environ(), keepEnv+"="+string(arg)), env...)
	if _, err := cmd.StdinPipe(); err != nil { // stays open as long as this process
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p := &keeperProcess{keeper: k, task: task, stop: stop, ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.read(out)
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.state.Err == "" {
			p.state.Err = fmt.Sprintf("the process ended: %v", err)
		}
	}()
	return p, nil
}

// read reads the states until the process closes its output.
func (p *keeperProcess) read(out io.Reader) {
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		text, is := strings.CutPrefix(scanner.Text(), keepMark)
		if !is {
			continue
		}
		var s keepState
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			s = keepState{Err: err.Error()}
		}
		p.mu.Lock()
		p.state = s
		if len(s.Endpoints) > 0 {
			p.last = s.Endpoints
		}
		p.mu.Unlock()
	}
}

// close kills the process and waits for its end.
func (p *keeperProcess) close() {
	p.stop()
	<-p.ended
}

func (p *keeperProcess) failure() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Err
}

func (p *keeperProcess) protocol() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Protocol
}

// endpoints returns the external endpoints, or the last ones if there are none now: another
// host would still use these.
func (p *keeperProcess) endpoints() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.last)
}

// dialer opens a connection from the outside.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// reachable reports whether bytes from outside reach the echo server at one of the endpoints,
// and its reply arrives.
func (p *keeperProcess) reachable(ctx context.Context, dial dialer) bool {
	for _, e := range p.endpoints() {
		if exchange(ctx, dial, p.network, e, p.name) == nil {
			return true
		}
	}
	return false
}

// waitReachable tries until the mapping is reachable, or not, as wanted. It returns false if
// the context or the process ends before.
func (p *keeperProcess) waitReachable(ctx context.Context, dial dialer, want bool) bool {
	for {
		if p.reachable(ctx, dial) == want && ctx.Err() == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-p.ended:
			return false
		case <-time.After(probeInterval):
		}
	}
}

var errWrongReply = errors.New("wrong reply")

// exchange sends a message and expects the reply of the named echo server.
func exchange(ctx context.Context, dial dialer, network string, to netip.AddrPort, name string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	message := strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := io.WriteString(conn, message); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	if string(buf[:n]) != name+" "+message {
		return fmt.Errorf("%w: %q", errWrongReply, buf[:n])
	}
	return nil
}
