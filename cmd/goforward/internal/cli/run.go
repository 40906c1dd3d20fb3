package cli

import (
	"context"
	"errors"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/discover"
)

// Run executes a command line, without the program's name, and returns the exit
// code. The end of the context is the interrupt: it ends whatever is under way,
// and lets map --hold take its mapping away.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return newApp(stdout, stderr).run(ctx, args)
}

// app is one execution.
type app struct {
	stdout, stderr *stream
	settings       settings
	started        bool // the command line was understood

	// What the outside world is asked through.
	openers []opener
	keyFile func() (string, error)
	routes  func() (all, used []discover.Gateway, err error)
	wayOut  func(*settings) wayOut
	network func(ctx context.Context, notify func()) error // discover.Watch

	watchEvery time.Duration // how often watch asks
	warns      bool          // also without -v
}

func newApp(stdout, stderr io.Writer) *app {
	return &app{
		stdout:  newStream(stdout),
		stderr:  newStream(stderr),
		openers: openers,
		keyFile: keyFile,
		routes:  systemRoutes,
		wayOut:  wayOutOf,
		network: discover.Watch,

		watchEvery: watchEvery,
	}
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would be those of the process
	err := root.ExecuteContext(ctx)
	// That the output cannot be written is not to be taken for a word of cobra's.
	if failure := a.stdout.failure(); failure != nil && (err == nil || !a.started) {
		err = failure
	} else if err != nil && !a.started {
		err = understood(err)
		a.settings.json = a.settings.json || slices.Contains(args, "--json")
	}
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		usage.command = commandOf(root, args)
	}
	return a.report(ctx, err)
}

// understood makes what cobra says of a command line an error of ours.
func understood(err error) error {
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return err
	}
	return usagef("%v", err)
}

// commandOf is what to ask for help about.
func commandOf(root *cobra.Command, args []string) string {
	if cmd, _, err := root.Find(args); err == nil {
		return cmd.CommandPath()
	}
	return root.CommandPath()
}

// root is the whole tree of commands, with no state but the app's.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:     "goforward",
		Short:   "Ask your router to forward a port to this host",
		Long:    rootHelp,
		Version: version(),
		PersistentPreRun: func(*cobra.Command, []string) {
			a.started = true
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.Flags().SortFlags = false
	a.settings.register(root, a.openers)
	root.AddCommand(a.mapCommand(), a.unmapCommand(), a.listCommand(), a.ipCommand(), a.gatewaysCommand(),
		a.watchCommand(), a.demoCommand())
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error { // cobra would print what it does not know, and exit with 0
			_, _, err := root.Find(args)
			return err
		}
	}
	return root
}

// version is that of the module, as the go command recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown version)"
}
