package lab

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"
)

// transcript records all actions of a lab. It is logged if the test fails.
type transcript struct {
	mu      sync.Mutex
	start   time.Time
	lines   []string
	dropped int
}

// maxTranscriptLines limits the size of a transcript, because daemons log a lot.
const maxTranscriptLines = 2000

func newTranscript() *transcript { return &transcript{start: time.Now()} }

func (tr *transcript) record(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	tr.mu.Lock()
	defer tr.mu.Unlock()
	stamp := fmt.Sprintf("%8.3f ", time.Since(tr.start).Seconds())
	tr.lines = append(tr.lines, stamp+strings.ReplaceAll(text, "\n", "\n         | "))
	if n := len(tr.lines) - maxTranscriptLines; n > 0 {
		tr.lines = tr.lines[n:]
		tr.dropped += n
	}
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var b strings.Builder
	if tr.dropped > 0 {
		fmt.Fprintf(&b, "(%d earlier lines dropped)\n", tr.dropped)
	}
	b.WriteString(strings.Join(tr.lines, "\n"))
	return b.String()
}

// lineWriter passes the text that is written to it to emit, line by line. An os/exec
// command that has it as both outputs writes from one goroutine.
type lineWriter struct {
	mu   sync.Mutex
	rest []byte
	emit func(line string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.emit(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

// flush emits a last line without a newline.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		w.emit(string(w.rest))
		w.rest = nil
	}
}
