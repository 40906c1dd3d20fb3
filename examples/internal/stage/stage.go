// Package stage runs the main functions of the examples in tests: it starts a test router,
// and captures the output.
package stage

import (
	"bufio"
	"os"
	"strings"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

// Router starts a test gateway and configures the package-level functions of forward to use
// it. The caller must close the gateway, and call forward.Close.
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

// Program is a running main function, with its output.
type Program struct {
	stdout *os.File
	lines  *bufio.Reader
	read   *os.File
	ended  chan struct{}
}

// Run starts a main function with arguments. Only one main function can run at a time.
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

// lineTimeout limits the wait for a line.
const lineTimeout = 30 * time.Second

// Line returns the next line that the program prints, without its end.
func (p *Program) Line() (string, error) {
	_ = p.read.SetReadDeadline(time.Now().Add(lineTimeout)) // not every system supports deadlines of pipes
	line, err := p.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// Wait waits until the program ends, and returns the remaining lines that it printed,
// without line ends.
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
