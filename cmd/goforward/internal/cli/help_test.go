package cli

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestExamples checks that every example of --help is a valid command line.
func TestExamples(t *testing.T) {
	t.Parallel()
	n := 0
	root := newApp(io.Discard, io.Discard).root()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" { // cobra adds it
			continue
		}
		if cmd.Example == "" || cmd.Long == "" {
			t.Errorf("%s has no help", cmd.Name())
		}
		examples := strings.Split(cmd.Example, "\n")
		for line := range strings.SplitSeq(rootHelp, "\n") {
			if strings.HasPrefix(line, "  goforward "+cmd.Name()+" ") {
				line, _, _ = strings.Cut(line[2:], "   ")
				examples = append(examples, line)
			}
		}
		for _, example := range examples {
			n++
			example, _, _ = strings.Cut(example, "#")
			args, err := splitCommand(example)
			if err != nil {
				t.Errorf("%q: %v", example, err)
				continue
			}
			checkExample(t, cmd.Name(), args)
		}
	}
	if n < 20 {
		t.Errorf("only %d examples found", n)
	}
}

func checkExample(t *testing.T, name string, args []string) {
	t.Helper()
	root := newApp(io.Discard, io.Discard).root() // a new one, because flags keep their values
	cmd, rest, err := root.Find(args[1:])
	if err != nil || args[0] != "goforward" || cmd.Name() != name {
		t.Errorf("%q: %s, %v", args, cmd.Name(), err)
		return
	}
	parsed := false
	cmd.RunE = func(*cobra.Command, []string) error { parsed = true; return nil }
	root.SetArgs(append([]string{name}, rest...))
	if err := root.Execute(); err != nil || !parsed {
		t.Errorf("%q: %v", args, err)
	}
	if name != "map" && name != "unmap" {
		return
	}
	var w spec
	again := &cobra.Command{}
	w.register(again)
	again.Flags().AddFlagSet(root.PersistentFlags())
	new(holdFlags).register(again)
	for _, name := range []string{"foreign", "dry-run"} {
		again.Flags().Bool(name, false, "")
	}
	if err := again.ParseFlags(rest); err != nil {
		t.Errorf("%q: %v", args, err)
	}
	if _, err := w.parseArgs(again.Flags().Args()); err != nil {
		t.Errorf("%q: %v", args, err)
	}
}
