package cli

import (
	"bytes"
	"strings"
	"time"
)

// longestLine is where a line of a command's output is cut in two.
const maxLineLength = 4096

// lineWriter says what is written to it line by line.
type lineWriter struct {
	emit  func(string)
	line []byte
}

func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		whole := end >= 0
		if !whole {
			end = len(b)
		}
		if room := maxLineLength - len(w.line); end > room {
			whole = false
			end = room
		}
		w.line = append(w.line, b[:end]...)
		b = b[end:]
		if whole {
			b = b[1:]
		}
		if whole || len(w.line) == maxLineLength {
			w.endLine()
		}
	}
	return n, nil
}

// end says the line.
func (w *lineWriter) endLine() {
	line := strings.TrimSuffix(string(w.line), "\r")
	w.emit(strings.ReplaceAll(line, "\t", "    "))
	w.line = w.line[:0]
}

// flush says what is left without a newline.
func (w *lineWriter) flush() {
	if len(w.line) > 0 {
		w.endLine()
	}
}

// oneLine makes a line of a text of several, as errors of several attempts are.
func oneLine(text string) string {
	var out string
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case out == "" || strings.HasSuffix(out, ":"):
			out = strings.TrimPrefix(out+" "+line, " ")
		default:
			out += "; " + line
		}
	}
	return out
}

// errorText is what people are told of an error.
func errorText(err error) string { return trimPackage(err.Error()) }

// plain leaves out of an error's text which package it is of.
func trimPackage(text string) string {
	return strings.ReplaceAll(strings.TrimPrefix(text, "forward: "), ": forward: ", ": ")
}

// clock is a time at the beginning of a line for people.
func clockText(at time.Time) string { return at.Local().Format(time.TimeOnly) }

// stamp is a time in JSON; none is "".
func jsonTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// nextText is when something is tried again, for people; never is "".
func nextAttemptText(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return "; next try at " + clockText(at)
}
