package cli

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestLineWriter(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxLineLength)
	for _, tt := range []struct {
		name   string
		writes []string
		want   []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"a", "b"}},
		{"in pieces", []string{"a", "b\nc", "", "d", "\n"}, []string{"ab", "cd"}},
		{"without a newline at the end", []string{"a\nb"}, []string{"a", "b"}},
		{"empty", []string{"\n\n"}, []string{"", ""}},
		{"CRLF and a tab", []string{"a\tb\r\n"}, []string{"a    b"}},
		{"maximal length", []string{long + "\n"}, []string{long}},
		{"too long", []string{long + "y\n"}, []string{long, "y"}},
		{"far too long, in pieces", []string{long[1:], "yz", long, "\na"}, []string{long[1:] + "y", "z" + long[1:], "x", "a"}},
	} {
		var got []string
		w := &lineWriter{emit: func(line string) { got = append(got, line) }}
		for _, s := range tt.writes {
			if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("%s: %d, %v", tt.name, n, err)
			}
		}
		w.flush()
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %d lines %.50q, want %d", tt.name, len(got), got, len(tt.want))
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":    "",
		"a":   "a",
		"a\n": "a",
		"the gateway refuses:\n  natpmp: no\n  pcp: silent\n  → ask": "the gateway refuses: natpmp: no; pcp: silent; → ask",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestSanitize checks that control characters from the network are escaped in messages and in
// JSON.
func TestSanitize(t *testing.T) {
	t.Parallel()
	const hostile = "a\x1b[2J\x07\r\u009b31m\u202eb\xff\U000e0001 → ü\n"
	var stdout, stderr bytes.Buffer
	a := newApp(&stdout, &stderr)
	a.messagef("%s", hostile)
	if got, want := stderr.String(), `a\x1b[2J\x07\x0d\x9b31m\u202eb`+"\ufffd"+`\ue0001 → ü`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.printJSON(hostile)
	if got, want := stdout.String(), `"a\u001b[2J\u0007\r\u009b31m\u202eb`+"\ufffd"+`\udb40\udc01 → ü\n"`+"\n"; got != want && got != `"a\u001b[2J\u0007\r\u009b31m\u202eb\ufffd\udb40\udc01 → ü\n"`+"\n" {
		t.Errorf("got %q, want %q", got, want)
	}
	var text string
	if err := json.Unmarshal(stdout.Bytes(), &text); err != nil || text != "a\x1b[2J\x07\r\u009b31m\u202eb\ufffd\U000e0001 → ü\n" {
		t.Errorf("%v: %q", err, text)
	}
}
