package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/errno"
)

// Running is a running Program as the test sees it. Its methods fail the test if the
// function fails, and every wait is bounded. Call them from the test's goroutine.
type Running struct {
	t    testing.TB
	name string // "lan: enable-tcp"
	log  *transcript
	cmd  *exec.Cmd
	in   *os.File

	messages    chan message  // closed when the process closes its end of the pipe
	exited      chan struct{} // closed when the process has exited
	exitErr     error         // the result of cmd.Wait; read it after exited is closed
	testDone    chan struct{} // closed when the test no longer reads messages
	exitHandled bool          // the test has noticed or caused the exit of the process
}

// Start runs the program in the host. JSON must be able to encode args. The process is
// killed when the test ends.
func (h *Host) Start(t testing.TB, program *Program, args any) *Running {
	t.Helper()
	r, err := h.start(t, program, args)
	if err != nil {
		t.Fatalf("lab: start %s in %s: %v", program.name, h.name, err)
	}
	t.Cleanup(r.cleanUp)
	return r
}

func (h *Host) start(t testing.TB, program *Program, args any) (*Running, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer childOut.Close()

	r := &Running{
		t: t, name: h.name + ": " + program.name, log: h.lab.log,
		cmd: h.command(context.Background(), self), in: in,
		messages: make(chan message, 64), exited: make(chan struct{}), testDone: make(chan struct{}),
	}
	r.cmd.Env = append(withoutRole(os.Environ()), roleEnv+"="+roleProgram, programEnv+"="+program.name)
	if os.Getenv("GORACE") == "" {
		r.cmd.Env = append(r.cmd.Env, "GORACE=atexit_sleep_ms=10") // otherwise each exit takes a second with -race
	}
	r.cmd.ExtraFiles = []*os.File{childIn, childOut} // programInFD, programOutFD
	output := &lineWriter{emit: func(line string) { t.Logf("%s: %s", r.name, line) }}
	r.cmd.Stdout, r.cmd.Stderr = output, output
	r.log.record("%s: start with %s", r.name, raw)
	if err := r.cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	go r.readMessages(out)
	go r.reap(output)
	return r, json.NewEncoder(in).Encode(task{Host: h.name, Addr: h.Addr(), Args: raw})
}

// readMessages passes messages on until the process closes its end of the pipe.
func (r *Running) readMessages(out *os.File) {
	defer out.Close()
	defer close(r.messages)
	dec := json.NewDecoder(out)
	for {
		var m message
		if err := dec.Decode(&m); err != nil {
			if err != io.EOF {
				r.log.record("%s: read a message: %v", r.name, err)
			}
			return
		}
		r.log.record("%s: sent %s%s", r.name, m.Value, m.Fatal)
		select {
		case r.messages <- m:
		case <-r.testDone:
			return
		}
	}
}

func (r *Running) reap(output *lineWriter) {
	r.exitErr = r.cmd.Wait()
	output.flush()
	r.log.record("%s: exited: %v", r.name, r.cmd.ProcessState)
	close(r.exited)
}

// Expect waits for the next value that the function sends and decodes it into the pointer
// v. If v is nil, the value is discarded.
func (r *Running) Expect(v any) {
	r.t.Helper()
	m, ok := r.nextMessage()
	if !ok {
		r.waitForExit()
		r.t.Fatalf("%s: exited (%v), but a message was expected", r.name, r.cmd.ProcessState)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(m.Value, v); err != nil {
		r.t.Fatalf("%s: sent %s: %v", r.name, m.Value, err)
	}
}

// nextMessage returns the next message; ok is false after the last one.
func (r *Running) nextMessage() (m message, ok bool) {
	r.t.Helper()
	select {
	case m, ok = <-r.messages:
	case <-time.After(maxWait):
		r.t.Fatalf("%s: no message and no exit within %v", r.name, maxWait)
	}
	if m.Fatal != "" {
		r.exitHandled = true
		r.t.Fatalf("%s: %s", r.name, m.Fatal)
	}
	return m, ok
}

// Send sends a value to the function, which receives it with [Proc.Receive].
func (r *Running) Send(v any) {
	r.t.Helper()
	r.log.record("%s: receives %v", r.name, v)
	// If the process does not read, the pipe fills up. This must not block the test.
	_ = r.in.SetWriteDeadline(time.Now().Add(maxWait))
	err := json.NewEncoder(r.in).Encode(v)
	if errors.Is(err, errno.EPIPE) {
		r.drain() // the error message of the function is more useful than a broken pipe
		r.t.Fatalf("%s: exited (%v) before it received %v", r.name, r.cmd.ProcessState, v)
	}
	if err != nil {
		r.t.Fatalf("%s: send: %v", r.name, err)
	}
}

// Wait waits until the function has returned. Values that the test did not read are
// discarded.
func (r *Running) Wait() {
	r.t.Helper()
	r.drain()
	if r.exitErr != nil {
		r.t.Fatalf("%s: %v", r.name, r.exitErr)
	}
}

// drain discards messages and waits until the process exits.
func (r *Running) drain() {
	r.t.Helper()
	for ok := true; ok; {
		_, ok = r.nextMessage()
	}
	r.waitForExit()
}

// Signal sends a signal to the process.
func (r *Running) Signal(s os.Signal) {
	r.t.Helper()
	r.log.record("%s: signal %v", r.name, s)
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatalf("%s: signal %v: %v", r.name, s, err)
	}
}

// Kill kills the process with SIGKILL and waits until it has exited.
func (r *Running) Kill() {
	r.t.Helper()
	r.log.record("%s: kill -9", r.name)
	_ = r.cmd.Process.Kill()
	r.waitForExit()
}

func (r *Running) waitForExit() {
	r.t.Helper()
	r.exitHandled = true
	select {
	case <-r.exited:
	case <-time.After(maxWait):
		r.t.Fatalf("%s: does not exit within %v", r.name, maxWait)
	}
}

// cleanUp runs when the test ends. It kills the process, and it fails the test if the
// process has failed and the test did not notice.
func (r *Running) cleanUp() {
	select {
	case <-r.exited:
		if err := r.unreportedFailure(); err != nil {
			r.t.Errorf("%s: %v", r.name, err)
		}
	default:
		_ = r.cmd.Process.Kill()
	}
	close(r.testDone)
	r.in.Close()
	r.exitHandled = true
	<-r.exited // bounded: the process was killed, and the command has a WaitDelay
}

// unreportedFailure returns the error of a process that failed, if the test has not
// noticed it.
func (r *Running) unreportedFailure() error {
	if r.exitHandled || r.exitErr == nil {
		return nil
	}
	for {
		select {
		case m, ok := <-r.messages:
			if m.Fatal != "" {
				return fmt.Errorf("%s (%w)", m.Fatal, r.exitErr)
			}
			if ok {
				continue
			}
		default:
		}
		return r.exitErr
	}
}
