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

// Running is a running Program as the test sees it. Its methods fail the test
// when the function fails, and never wait for ever; call them from the test's
// goroutine.
type Running struct {
	t    testing.TB
	name string // "lan: enable-tcp"
	log  *transcript
	cmd  *exec.Cmd
	in   *os.File

	messages    chan message  // closed when the process has closed its end
	exited      chan struct{} // closed when the process was waited for
	exitErr     error         // what Wait said; read it after exited
	testDone    chan struct{} // closed when the test no longer listens
	exitHandled bool          // the end of the process was seen or caused by the test
}

// Start runs the program in the host with arguments that JSON can carry. It is
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
		r.cmd.Env = append(r.cmd.Env, "GORACE=atexit_sleep_ms=10") // else every end takes a second with -race
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

// read hands on messages until the process closes its end.
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
		r.log.record("%s: says %s%s", r.name, m.Value, m.Fatal)
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
	r.log.record("%s: ended: %v", r.name, r.cmd.ProcessState)
	close(r.exited)
}

// Expect waits for the next value that the function sends and decodes it into
// the pointer v; nil drops it.
func (r *Running) Expect(v any) {
	r.t.Helper()
	m, ok := r.nextMessage()
	if !ok {
		r.waitForExit()
		r.t.Fatalf("%s: ended (%v), but a message was expected", r.name, r.cmd.ProcessState)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(m.Value, v); err != nil {
		r.t.Fatalf("%s: said %s: %v", r.name, m.Value, err)
	}
}

// next is the next message; ok is false after the last.
func (r *Running) nextMessage() (m message, ok bool) {
	r.t.Helper()
	select {
	case m, ok = <-r.messages:
	case <-time.After(maxWait):
		r.t.Fatalf("%s: no message and no end within %v", r.name, maxWait)
	}
	if m.Fatal != "" {
		r.exitHandled = true
		r.t.Fatalf("%s: %s", r.name, m.Fatal)
	}
	return m, ok
}

// Send sends a value to the function, which gets it by Receive.
func (r *Running) Send(v any) {
	r.t.Helper()
	r.log.record("%s: is told %v", r.name, v)
	// A process that reads nothing must not hold the test up: the pipe fills.
	_ = r.in.SetWriteDeadline(time.Now().Add(maxWait))
	err := json.NewEncoder(r.in).Encode(v)
	if errors.Is(err, errno.EPIPE) {
		r.drain() // the function's own words say more than a broken pipe
		r.t.Fatalf("%s: ended (%v), but was to be told %v", r.name, r.cmd.ProcessState, v)
	}
	if err != nil {
		r.t.Fatalf("%s: send: %v", r.name, err)
	}
}

// Wait waits until the function has returned. Values that nobody expected are
// dropped.
func (r *Running) Wait() {
	r.t.Helper()
	r.drain()
	if r.exitErr != nil {
		r.t.Fatalf("%s: %v", r.name, r.exitErr)
	}
}

// drain waits for the end of the process.
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

// Kill is kill -9; the process is gone when it returns.
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
		r.t.Fatalf("%s: does not end within %v", r.name, maxWait)
	}
}

// end is the cleanup: nothing of the process may remain, and a failure that the
// test did not look at is one nevertheless.
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
