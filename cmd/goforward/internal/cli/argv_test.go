package cli

import (
	"slices"
	"strings"
	"testing"
)

// What a POSIX shell makes of these, variables, patterns and operators apart.
func TestSplitCommand(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{`a`, []string{"a"}},
		{"  a\tb\n c ", []string{"a", "b", "c"}},
		{`a 'b c' d`, []string{"a", "b c", "d"}},
		{`a "b c" d`, []string{"a", "b c", "d"}},
		{`a 'b "c" \d'`, []string{"a", `b "c" \d`}},
		{`a "b 'c' \"d\" \\ \e"`, []string{"a", `b 'c' "d" \ \e`}},
		{`a b\ c \'d \"e \\f \g`, []string{"a", "b c", "'d", `"e`, `\f`, "g"}},
		{`a '' "" b`, []string{"a", "", "", "b"}},
		{`a"b"'c'd`, []string{"abcd"}},
		{`a $HOME *.go | b; c`, []string{"a", "$HOME", "*.go", "|", "b;", "c"}},
		{`'C:\Program Files\x.exe' ü`, []string{`C:\Program Files\x.exe`, "ü"}},
		{`\a`, []string{"a"}},
		{`a \ `, []string{"a", " "}},
	} {
		got, err := splitCommand(tt.in)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	for in, want := range map[string]string{
		"":       "no command",
		" \t\n":  "no command",
		`''`:     "no command",
		`"" a`:   "no command",
		`a 'b`:   "quote ' is not closed",
		`a "b'c`: `quote " is not closed`,
		`a "b\"`: `quote " is not closed`,
		`a b\`:   "last backslash",
		`a "b\`:  `quote " is not closed`,
	} {
		if got, err := splitCommand(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
}

func FuzzSplitCommand(f *testing.F) {
	for _, s := range []string{`a b`, `a 'b c' "d \" e" \f`, `'`, `"\`, `''`, "a\x00b \xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitCommand(s)
		if err == nil && (len(words) == 0 || words[0] == "") {
			t.Errorf("%q: %q", s, words)
		}
		if !strings.Contains(s, "'") { // then single quotes keep it as it is
			words, err := splitCommand("a '" + s + "' b")
			if valid := strings.ToValidUTF8(s, "\ufffd"); valid == s && (err != nil || !slices.Equal(words, []string{"a", s, "b"})) {
				t.Errorf("%q in quotes: %q, %v", s, words, err)
			}
		}
	})
}
