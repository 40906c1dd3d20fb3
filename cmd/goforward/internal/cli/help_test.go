package cli

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// helpLines is the largest number of lines of a help text: two screens and a half.
const helpLines = 60

// helpNames returns the arguments of help for every command and topic.
func helpNames(t *testing.T) (names []string) {
	t.Helper()
	names = append(names, "")
	for _, cmd := range newApp(io.Discard, io.Discard).root().Commands() {
		names = append(names, cmd.Name())
	}
	return append(names, topicNames()...)
}

// TestHelpSize checks that every help text fits on the screen.
func TestHelpSize(t *testing.T) {
	t.Parallel()
	for _, name := range helpNames(t) {
		got := run(t, nil, append([]string{"help"}, strings.Fields(name)...)...)
		if got.code != exitDone || got.stderr != "" {
			t.Fatalf("help %s: exit code %d, %s", name, got.code, got.stderr)
		}
		lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
		if len(lines) < 4 || len(lines) > helpLines {
			t.Errorf("help %s has %d lines, want 4 to %d", name, len(lines), helpLines)
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > helpWidth || strings.Contains(line, "\t") {
				t.Errorf("help %s: the line has a tab or more than %d columns: %q", name, helpWidth, line)
			}
		}
	}
}

// TestHelpOfMap checks that the first screen has what most people need.
func TestHelpOfMap(t *testing.T) {
	t.Parallel()
	got := run(t, nil, "map", "--help")
	lines := strings.Split(got.stdout, "\n")
	if len(lines) > 50 {
		t.Errorf("%d lines do not fit on a screen", len(lines))
	}
	screen := strings.Join(lines[:24], "\n")
	for _, want := range []string{"\nUsage:\n  goforward map ", "\nSee also:\n  goforward help ports | hold"} {
		if !strings.Contains(screen, want) {
			t.Errorf("the first 24 lines do not contain %q", want)
		}
	}
	if n := strings.Count(screen, "\n  goforward map "); n < 7 { // with the usage
		t.Errorf("the first 24 lines have only %d examples", n-1)
	}
}

// TestTopics checks that the name of a topic is no command, and that the help names it.
func TestTopics(t *testing.T) {
	t.Parallel()
	commands := helpNames(t)[:len(helpNames(t))-len(topics)]
	root := run(t, nil, "help").stdout
	seen := map[string]bool{}
	for _, topic := range topics {
		for _, name := range append(slices.Clone(topic.aliases), topic.name) {
			if slices.Contains(commands, name) || seen[name] {
				t.Errorf("%s is a command or another topic", name)
			}
			seen[name] = true
			if got := run(t, nil, "help", name); got.stdout != topic.text+"\n" {
				t.Errorf("help %s: exit code %d, %q", name, got.code, got.stdout)
			}
		}
		if !strings.Contains(root, "\n  "+topic.name+" ") {
			t.Errorf("goforward help does not list %s", topic.name)
		}
	}
}

// TestExamples checks that every example of the help is a valid command line. A line that starts
// with "  goforward " is an example.
func TestExamples(t *testing.T) {
	t.Parallel()
	texts := []string{rootHelp}
	for _, cmd := range newApp(io.Discard, io.Discard).root().Commands() {
		if cmd.Example == "" || cmd.Long == "" {
			t.Errorf("%s has no help", cmd.Name())
		}
		for line := range strings.SplitSeq(strings.ReplaceAll(cmd.Example, "\\\n", ""), "\n") {
			if !strings.HasPrefix(line, "  goforward "+cmd.Name()) {
				t.Errorf("%s: %q is no example", cmd.Name(), line)
			}
		}
		texts = append(texts, cmd.Long, cmd.Example)
	}
	for _, topic := range topics {
		texts = append(texts, topic.text)
	}
	n := 0
	for _, text := range texts {
		for line := range strings.SplitSeq(strings.ReplaceAll(text, "\\\n", ""), "\n") {
			example, found := strings.CutPrefix(line, "  goforward ")
			if !found {
				continue
			}
			n++
			example, _, _ = strings.Cut(example, "#")
			if before, _, described := strings.Cut(example, "   "); described && text == rootHelp {
				example = before
			}
			example = strings.TrimSpace(example)
			if err := checkExample(example); err != nil {
				t.Errorf("%q: %v", example, err)
			}
		}
	}
	if n < 80 {
		t.Errorf("%d examples found", n)
	}
}

// checkExample returns an error if the command line is not valid.
func checkExample(example string) error {
	args, err := splitCommand(example)
	if err != nil {
		return err
	}
	a := newApp(io.Discard, io.Discard) // a new one, because flags keep their values
	a.lookupHost = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.168.1.1")}, nil
	}
	root := a.root()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd != root {
		parsed := false
		cmd.RunE = func(*cobra.Command, []string) error { parsed = true; return nil }
		root.SetArgs(args)
		if err := root.ExecuteContext(context.Background()); err != nil {
			return err
		}
		if !parsed {
			return errors.New("the command does not run")
		}
	}
	if cmd.Name() != "map" && cmd.Name() != "unmap" {
		return nil
	}
	var w spec
	again := &cobra.Command{}
	w.register(again)
	again.Flags().AddFlagSet(root.PersistentFlags())
	new(holdFlags).register(again)
	for _, name := range []string{"all", "dry-run", "force", "foreign"} {
		again.Flags().Bool(name, false, "")
	}
	if err := again.ParseFlags(rest); err != nil {
		return err
	}
	_, err = w.parseArgs(again.Flags().Args())
	return err
}
