package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"github.com/natforward/goforward/backends"
)

// FuzzOutput checks that no text controls the terminal, adds a line to a table, or breaks a
// JSON object, and that the object contains the exact text.
func FuzzOutput(f *testing.F) {
	for _, seed := range []string{
		"", "plain", "\x1b[2J", "a\tb\nc\r", "\u009b31m\u202e", "\xff\xfe", `"\`, "\u2028\u2029", "\U000e0041", "\ue000", strings.Repeat("x", 300),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > maxLineLength {
			t.Skip("texts of gateways are shorter")
		}
		var stdout, stderr bytes.Buffer
		a := newApp(&stdout, &stderr)
		table := newTable("A", "B")
		table.addRow(text, text)
		a.printTable(table)
		if n := strings.Count(stdout.String(), "\n"); n != 2 {
			t.Errorf("a table of %d lines: %q", n, &stdout)
		}
		a.messagef("%s\n", oneLine(text))
		if n := strings.Count(stderr.String(), "\n"); n != 1 {
			t.Errorf("%d lines: %q", n, &stderr)
		}
		a.printJSON(mappingRecord{Event: "entry", Description: text, Protocol: backends.TCP, Internal: jsonEndpointOf(netip.AddrPort{})})
		for _, r := range stdout.String() + stderr.String() {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%q is printed: %q, %q", r, &stdout, &stderr)
			}
		}
		lines := strings.SplitAfter(stdout.String(), "\n")
		var o struct{ Description string }
		if err := json.Unmarshal([]byte(lines[2]), &o); err != nil || o.Description != strings.ToValidUTF8(text, "\ufffd") && validUTF8(text) {
			t.Errorf("%v: %q is %q", err, text, o.Description)
		}
	})
}

func validUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBrokenStdout(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	code := Run(context.Background(), []string{"--version"}, brokenWriter{context.Canceled}, &stderr)
	if code != exitOther || stderr.String() != "goforward: cannot write the output: context canceled\n" {
		t.Errorf("exit code %d, stderr %q", code, &stderr)
	}
}
