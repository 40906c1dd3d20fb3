package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
)

// Program is a function that runs in a host, in its own process.
type Program struct {
	name string
	run  func(*Proc)
}

const (
	programEnv   = "GOFORWARD_LAB_PROGRAM"
	programInFD  = 3 // a task, then messages from the test
	programOutFD = 4 // messages to the test
)

var programs = map[string]*Program{}

// Func registers a function under a name that is unique in the test binary. Call it in a
// package-level var declaration, because the process that runs the function needs it
// before TestMain.
func Func(name string, run func(*Proc)) *Program {
	if _, ok := programs[name]; ok {
		panic("lab: two functions are named " + name)
	}
	p := &Program{name: name, run: run}
	programs[name] = p
	return p
}

// task is the first message that a program receives.
type task struct {
	Host string          `json:"host"`
	Addr netip.Addr      `json:"addr"`
	Args json.RawMessage `json:"args"`
}

// message is a message from a program. Each message is one line of JSON.
type message struct {
	Value json.RawMessage `json:"value,omitempty"`
	Fatal string          `json:"fatal,omitempty"`
}

// Proc is a running Program as the function itself sees it. The output of the function is
// written to the test's log. The process exits when the function returns, or when the
// test ends.
type Proc struct {
	task task
	in   *json.Decoder

	mu  sync.Mutex
	out io.Writer
}

// runProgram is the main function of a process that runs a Program.
func runProgram() (code int) {
	name := os.Getenv(programEnv)
	program, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "lab: this test binary has no function %q\n", name)
		return 2
	}
	p := &Proc{
		in:  json.NewDecoder(inheritedFile(programInFD, "in")),
		out: inheritedFile(programOutFD, "out"),
	}
	if err := p.in.Decode(&p.task); err != nil {
		fmt.Fprintf(os.Stderr, "lab: read the task of %s: %v\n", name, err)
		return 2
	}
	program.run(p)
	return 0
}

// Args decodes the arguments that the test passed to [Host.Start].
func (p *Proc) Args(v any) {
	if err := json.Unmarshal(p.task.Args, v); err != nil {
		p.Fatalf("decode the arguments: %v", err)
	}
}

// Host returns the name of the host in which the function runs.
func (p *Proc) Host() string { return p.task.Host }

// Addr returns the first address of that host.
func (p *Proc) Addr() netip.Addr { return p.task.Addr }

// Send sends a value to the test, which receives it with [Running.Expect]. Several
// goroutines may call Send.
func (p *Proc) Send(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		p.Fatalf("encode a message: %v", err)
	}
	p.write(message{Value: raw})
}

// Receive waits for the next value from the test and decodes it into the pointer v. If v
// is nil, the value is discarded. If the test has ended, the process exits.
func (p *Proc) Receive(v any) {
	if v == nil {
		v = new(json.RawMessage)
	}
	err := p.in.Decode(v)
	if errors.Is(err, io.EOF) {
		p.Fatalf("the test sends no more messages, but one was expected")
	}
	if err != nil {
		p.Fatalf("decode a message: %v", err)
	}
}

// Fatal fails the test with this message and exits the process.
func (p *Proc) Fatal(args ...any) {
	p.write(message{Fatal: fmt.Sprint(args...)})
	os.Exit(1)
}

// Fatalf is Fatal with a format.
func (p *Proc) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }

// Logf writes to the test's log.
func (p *Proc) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Serve runs an echo server on ln, as [Host.Echo] does, until ln is closed. So a test can
// verify that bytes reach this listener.
func (p *Proc) Serve(ln net.Listener) Echo { return serveEcho(ln, p.task.Addr) }

// ServePacket is Serve for datagrams.
func (p *Proc) ServePacket(pc net.PacketConn) Echo { return serveEchoPackets(pc, p.task.Addr) }

func (p *Proc) write(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		panic(err) // cannot happen: the values are JSON already
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.out.Write(append(line, '\n')); err != nil {
		fmt.Fprintf(os.Stderr, "lab: send a message to the test: %v\n", err)
		os.Exit(1)
	}
}
