package cli

import (
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
		{"without an end", []string{"a\nb"}, []string{"a", "b"}},
		{"empty", []string{"\n\n"}, []string{"", ""}},
		{"of Windows, with a tab", []string{"a\tb\r\n"}, []string{"a    b"}},
		{"as long as can be", []string{long + "\n"}, []string{long}},
		{"longer", []string{long + "y\n"}, []string{long, "y"}},
		{"much longer, in pieces", []string{long[1:], "yz", long, "\na"}, []string{long[1:] + "y", "z" + long[1:], "x", "a"}},
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
