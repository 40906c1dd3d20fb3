package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// stream is stdout or stderr. Events, the log and the command may write to it at the same
// time. It keeps the first error of a write, and then closes broken.
type stream struct {
	w      io.Writer
	broken chan struct{}

	mu   sync.Mutex
	used bool // Write was called
	err  error
}

func newStream(w io.Writer) *stream { return &stream{w: w, broken: make(chan struct{})} }

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = true
	n, err := s.w.Write(b)
	if s.err == nil && err != nil {
		s.err = err
		close(s.broken)
	}
	return n, err
}

// isUnused reports whether nothing has been written yet.
func (s *stream) isUnused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.used
}

func (s *stream) writeError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fmt.Errorf("cannot write the output: %w", s.err)
	}
	return nil
}

// messagef prints a remark or progress for people to stderr. With --quiet, it prints nothing.
func (a *app) messagef(format string, args ...any) {
	if !a.settings.quiet {
		a.failuref(format, args...)
	}
}

// failuref prints a failure for people to stderr, also with --quiet.
func (a *app) failuref(format string, args ...any) {
	_, _ = io.WriteString(a.stderr, sanitize(fmt.Sprintf(format, args...)))
}

// resultf prints a result to stdout.
func (a *app) resultf(format string, args ...any) {
	_, _ = io.WriteString(a.stdout, sanitize(fmt.Sprintf(format, args...)))
}

// table is a table of text cells; the first row is the head.
type table struct {
	rows [][]string
}

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) addRow(cells ...string) { t.rows = append(t.rows, cells) }

// printTable prints a table. It escapes each cell by itself, so that a tab or a newline in a
// cell does not start another cell or line.
func (a *app) printTable(t *table) {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, cells := range t.rows {
		var line strings.Builder
		for i, cell := range cells {
			if cell = strings.ReplaceAll(sanitize(cell), "\n", `\n`); cell == "" {
				cell = "-"
			}
			line.WriteString(cell)
			if i < len(cells)-1 {
				line.WriteByte('\t')
			}
		}
		_, _ = io.WriteString(w, line.String()+"\n")
	}
	_ = w.Flush() // the stream keeps the error
}

// noticeAfter is how long a command waits silently before it says so.
const noticeAfter = time.Second

// startNotice prints a line if the command has printed nothing after noticeAfter, because it
// waits for the gateway. It is for people: it prints nothing if stderr is no terminal. The
// returned function ends it.
func (a *app) startNotice() (stop func()) {
	if !a.isTerminal() {
		return func() {}
	}
	text := a.settings.gatewayText() // the settings may change later
	printed := make(chan struct{})
	timer := time.AfterFunc(noticeAfter, func() {
		defer close(printed)
		if a.stdout.isUnused() && a.stderr.isUnused() {
			a.messagef("Waiting for %s; Ctrl-C ends this.\n", text)
		}
	})
	return func() {
		if !timer.Stop() {
			<-printed
		}
	}
}

// gatewayText names the gateway for people.
func (s *settings) gatewayText() string {
	if named := s.namedGateway(); named.IsValid() {
		return "a reply from " + endpointText(named)
	}
	return cmp.Or(s.gatewayName.host, "a reply from the gateway")
}

// stderrIsTerminal reports whether stderr is a terminal. The null device counts as one, which
// does no harm.
func (a *app) stderrIsTerminal() bool {
	file, ok := a.stderr.w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
