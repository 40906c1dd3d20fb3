package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
)

// stream is stdout or stderr, which events, the log and the command itself
// write to at once. It remembers the first failure, and closes broken then.
type stream struct {
	mu     sync.Mutex
	w      io.Writer
	err    error
	broken chan struct{}
}

func newStream(w io.Writer) *stream { return &stream{w: w, broken: make(chan struct{})} }

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.w.Write(b)
	if s.err == nil && err != nil {
		s.err = err
		close(s.broken)
	}
	return n, err
}

func (s *stream) writeError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fmt.Errorf("cannot write the output: %w", s.err)
	}
	return nil
}

// sayf is talk.
func (a *app) messagef(format string, args ...any) {
	_, _ = io.WriteString(a.stderr, sanitize(fmt.Sprintf(format, args...)))
}

// printf is what was asked for.
func (a *app) resultf(format string, args ...any) {
	_, _ = io.WriteString(a.stdout, sanitize(fmt.Sprintf(format, args...)))
}

// object prints a value as a line of JSON.
func (a *app) printJSON(v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil { // our own types: a mistake of ours
		panic(err)
	}
	_, _ = io.WriteString(a.stdout, escapeUnprintable(b.String(), func(r rune) string {
		var s strings.Builder
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&s, `\u%04x`, u)
		}
		return s.String()
	}))
}

// clean makes text harmless to a terminal: what a gateway or a driver put into
// a name or a message must not move the cursor.
func sanitize(s string) string {
	return escapeUnprintable(strings.ToValidUTF8(s, "\ufffd"), func(r rune) string {
		if r < 0x100 {
			return fmt.Sprintf(`\x%02x`, r)
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

// escape rewrites the runes that are not to be seen; the newline stays.
func escapeUnprintable(s string, form func(rune) string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(form(r))
	}
	return b.String()
}

// table is lines of cells.
type table struct {
	rows [][]string
}

func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

func (t *table) addRow(cells ...string) { t.rows = append(t.rows, cells) }

// table prints a table. Cells are cleaned one by one: a tab or a newline in one
// must not make another.
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
	_ = w.Flush() // the stream remembers a failure
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
