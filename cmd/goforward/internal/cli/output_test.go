package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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

// TestNotice checks that a command which prints nothing for a second prints why it waits,
// once, and only on a terminal.
func TestNotice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings settings
		pipe     bool          // stderr is no terminal
		prints   bool          // the command prints a result before
		ends     time.Duration // when the command ends
		want     string
	}{
		{name: "a slow gateway", ends: time.Minute, want: "Waiting for a reply from the gateway; Ctrl-C ends this.\n"},
		{name: "a named gateway", settings: settings{gateway: netip.MustParseAddrPort("10.2.0.1:5351")}, ends: time.Minute, want: "Waiting for a reply from 10.2.0.1:5351; Ctrl-C ends this.\n"},
		{name: "a name", settings: settings{gatewayName: hostPort{host: "router.local"}}, ends: time.Minute, want: "Waiting for router.local; Ctrl-C ends this.\n"},
		{name: "fast", ends: time.Second - 1},
		{name: "a result before", prints: true, ends: time.Minute},
		{name: "no terminal", pipe: true, ends: time.Minute},
		{name: "--quiet", settings: settings{quiet: true}, ends: time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var stdout, stderr bytes.Buffer
				a := newApp(&stdout, &stderr)
				a.settings = tt.settings
				a.isTerminal = func() bool { return !tt.pipe }
				stop := a.startNotice()
				a.settings.gateway = netip.MustParseAddrPort("10.2.0.1:5351") // as after the lookup of a name
				if tt.prints {
					a.resultf("45.45.45.1:8080\n")
				}
				time.Sleep(tt.ends)
				stop()
				if got := stderr.String(); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
		})
	}
}

// TestNoticeOfCommand checks that a command starts the notice.
func TestNoticeOfCommand(t *testing.T) {
	t.Parallel()
	asked := 0
	got := run(t, func(a *app) { a.isTerminal = func() bool { asked++; return false } }, "version")
	if got.code != exitDone || asked != 1 {
		t.Errorf("%+v, asked %d times", got, asked)
	}
}
