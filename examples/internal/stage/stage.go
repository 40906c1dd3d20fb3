// Package stage is what the tests of the examples run them on: a router, and
// their output.
package stage

import (
	"bufio"
	"os"
	"strings"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// Router starts a gateway, and makes the package-level calls of forward use it.
// It is for the caller to close, and forward too.
func Router(config gatewaytest.Config) (*gatewaytest.Gateway, error) {
	gw, err := gatewaytest.Start(config)
	if err != nil {
		return nil, err
	}
	err = forward.Configure(gw.Config())
	if err != nil {
		_ = gw.Close()
		return nil, err
	}
	return gw, nil
}

// Program is a main function that runs, with its output.
type Program struct {
	stdout *os.File
	lines  *bufio.Reader
	read   *os.File
	ended  chan struct{}
}

// Run starts a main function with arguments. One runs at a time.
func Run(main func(), args ...string) (*Program, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &Program{stdout: os.Stdout, lines: bufio.NewReader(read), read: read, ended: make(chan struct{})}
	os.Stdout = write
	os.Args = append([]string{"example"}, args...)
	go func() {
		defer close(p.ended)
		defer write.Close()
		main()
	}()
	return p, nil
}

// patience is for what is to happen.
const patience = 30 * time.Second

// Line returns the next line that the program prints, without its end.
func (p *Program) Line() (string, error) {
	_ = p.read.SetReadDeadline(time.Now().Add(patience)) // where the system has such
	line, err := p.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// Wait waits for the program's end, and returns the lines that it printed until
// then, without their ends.
func (p *Program) Wait() (lines []string) {
	for {
		line, err := p.Line()
		if err != nil {
			break
		}
		lines = append(lines, line)
	}
	<-p.ended
	os.Stdout = p.stdout
	_ = p.read.Close()
	return lines
}
