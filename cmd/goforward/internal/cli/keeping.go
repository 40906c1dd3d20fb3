package cli

import (
	"time"

	"github.com/spf13/cobra"
)

// execTime bounds a command of --exec, unless --exec-timeout does.
const execTime = 30 * time.Second

// keeping is what map does beside mapping.
type keeping struct {
	hold     bool
	wait     bool          // until the gateway grants it
	command  []string      // to run for each endpoint; nil: none
	bound    time.Duration // of the command
	portFile string        // to write the external port to; empty: none
}

// register makes the flags.
func (k *keeping) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&k.hold, "hold", false, "keep it alive until Ctrl-C, then take it away")
	f.BoolVar(&k.wait, "wait", false, "with --hold, keep trying where it cannot be had at first")
	f.Var(&value[[]string]{to: &k.command, kind: "COMMAND", parse: splitCommand}, "exec",
		"with --hold, run this when the endpoint is known, and whenever it is another")
	k.bound = execTime
	f.Var(&value[time.Duration]{to: &k.bound, kind: "SECONDS", parse: parseSeconds}, "exec-timeout",
		"how long the command may take, in seconds or as a duration (default 30s)")
	f.StringVar(&k.portFile, "port-file", "", "write the external port to this `FILE`; with --hold, keep it right, and remove it at the end")
	_ = cmd.RegisterFlagCompletionFunc("exec", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("port-file", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("exec-timeout", cobra.NoFileCompletions)
}

// check refuses what makes no sense.
func (k *keeping) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("port-file") && k.portFile == "" {
		return usagef("--port-file without a name")
	}
	for _, name := range []string{"wait", "exec", "exec-timeout"} {
		if cmd.Flags().Changed(name) && !k.hold {
			return usagef("--%s goes with --hold", name)
		}
	}
	if cmd.Flags().Changed("exec-timeout") && k.command == nil {
		return usagef("--exec-timeout goes with --exec")
	}
	return nil
}

// checkFile refuses a port file that cannot have a port.
func (k *keeping) checkFile() error {
	if k.portFile == "" {
		return nil
	}
	return (&portFile{path: k.portFile}).check()
}

func completeFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}
