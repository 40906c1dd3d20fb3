package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lazyregexp"
)

func (a *app) runCommand() *cobra.Command {
	var (
		s       spec
		args    []string // the arguments of -p
		wait    bool
		restart bool
	)
	cmd := &cobra.Command{
		Use:     "run -p [EXTERNAL:]INTERNAL[/PROTOCOL]... [flags] -- COMMAND [ARGUMENT...]",
		Short:   "Run a command while ports are forwarded to it",
		Long:    runHelp,
		Example: runExamples,
		RunE: func(cmd *cobra.Command, argv []string) error {
			named, err := parsePortArgs(args)
			if err != nil {
				return err
			}
			if err := a.setFamily(&s); err != nil {
				return err
			}
			specs, err := s.forPorts(named)
			if err != nil {
				return err
			}
			a.spec = specs[0]
			r := &runner{app: a, argv: argv, restart: restart}
			switch {
			case len(argv) == 0:
				return usagef("no command is named: goforward run -p 8080 -- COMMAND")
			case len(named) == 0 && !s.samePort:
				return usagef("no port is named: use -p, as in goforward run -p 8080 -- %s", argv[0])
			case a.settings.json:
				return usagef("run has no --json: its output is the output of the command")
			}
			if err := r.check(len(specs)); err != nil {
				return err
			}
			if err := a.settings.checkSource(); err != nil && !wait {
				return err
			}
			err = a.hold(cmd.Context(), specs, &holdFlags{wait: wait, forChild: true}, r.run)
			switch {
			case r.ended:
				return &commandEnded{r.code, err}
			case err == nil:
				return errInterrupted
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // the flags after the name of the command are the command's
	f.StringArrayVarP(&args, "port", "p", nil, "forward this `PORT`, as in 8080, 80:8080, 27015/udp or 8000-8010; may be repeated")
	f.BoolVar(&wait, "wait", false, "keep trying until the ports are forwarded, and then start the command")
	f.BoolVar(&restart, "restart-on-change", false, "stop the command and start it again if an external endpoint changes")
	s.registerOptions(cmd)
	_ = cmd.RegisterFlagCompletionFunc("port", cobra.NoFileCompletions)
	return cmd
}

// commandEnded is the result of run after its command has ended: the exit code of the command,
// and the error of goforward itself, or nil.
type commandEnded struct {
	code int
	err  error
}

func (e *commandEnded) Error() string {
	return fmt.Sprintf("the command ended with exit code %d", e.code)
}
func (e *commandEnded) Unwrap() error { return e.err }

// The exit codes of run if the command cannot be started, as in shells.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// stopTimeout is how long a command has to end before it is killed, if it is to be restarted.
const stopTimeout = 10 * time.Second

// lateSignal is how long a signal of the terminal takes at most to arrive here after the command,
// which received it too, has ended.
const lateSignal = 250 * time.Millisecond

// runner runs the command of run while the mappings are kept.
type runner struct {
	app     *app
	argv    []string
	restart bool // start the command again if an endpoint changes

	ended bool // the command has run, or cannot be started
	code  int  // its exit code
}

// placeholder is a part of an argument that is replaced, such as {port} or {port2}.
var placeholder = lazyregexp.New(`\{(port|ip)([0-9]*)\}`)

// check returns an error if the command cannot be started, or refers to more ports than there
// are.
func (r *runner) check(count int) error {
	for _, arg := range r.argv[1:] {
		for _, match := range placeholder().FindAllStringSubmatch(arg, -1) {
			if n, err := strconv.Atoi(match[2]); match[2] != "" && (err != nil || n < 1 || n > count) {
				return usagef("%s: the last of the ports has the number %d", match[0], count)
			}
		}
	}
	if _, err := exec.LookPath(r.argv[0]); err != nil {
		return &commandEnded{startCode(err), startError(err)}
	}
	return nil
}

func startError(err error) error { return fmt.Errorf("cannot run the command: %w", err) }

// startCode returns the exit code if a command cannot be started.
func startCode(err error) int {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound
	}
	return exitNotExecutable
}

// run is the body of hold: it runs the command when all mappings are granted, until it ends.
func (r *runner) run(ctx context.Context, s *holdSession) error {
	for s.endpoints() == nil {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil
		}
	}
	signals := make(chan os.Signal, cap(r.app.signals.incoming))
	defer r.app.signals.passTo(signals)()
	for again := true; again; {
		if ctx.Err() != nil {
			return nil
		}
		var err error
		if again, err = r.runOnce(ctx, s, signals); err != nil {
			return err
		}
	}
	return nil
}

// runOnce starts the command and waits until it ends. It returns true if the command is to be
// started again.
func (r *runner) runOnce(ctx context.Context, s *holdSession, signals <-chan os.Signal) (again bool, err error) {
	granted := s.endpoints()
	argv, err := r.arguments(granted)
	if err != nil {
		return false, err
	}
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it gets the signals, and ends by itself
	cmd.Env = append(inheritedEnvironment(), environment(granted)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, r.app.stdout.w, r.app.stderr.w
	r.ended = true
	if err := cmd.Start(); err != nil {
		r.code = startCode(err)
		return false, startError(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	kill := time.NewTimer(0)
	kill.Stop()
	defer kill.Stop()
	ctxDone := ctx.Done()
	for {
		select {
		case err := <-exited:
			if again && !isToEnd(signals) {
				return true, nil
			}
			r.code = exitCode(cmd.ProcessState)
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				err = nil
			}
			return false, err
		case sig := <-signals:
			again = again && !endsProcess(sig)
			if !sentByTerminal(sig) {
				_ = cmd.Process.Signal(sig) // it fails if the command has ended
			}
		case <-s.changed:
			now := s.endpoints()
			if again || sameEndpoints(granted, now) {
				continue
			}
			if !r.restart {
				granted = now
				r.app.messagef("An external endpoint changed, and the command continues: --restart-on-change would restart it.\n")
				continue
			}
			r.app.messagef("An external endpoint changed: the command is restarted.\n")
			again = true
			terminate(cmd.Process)
			kill.Reset(stopTimeout)
		case <-kill.C:
			_ = cmd.Process.Kill()
		case <-ctxDone:
			ctxDone = nil
			terminate(cmd.Process)
			kill.Reset(stopTimeout)
		}
	}
}

// isToEnd waits for signals that arrive late, and reports whether one of them asks goforward to
// end.
func isToEnd(signals <-chan os.Signal) bool {
	timeout := time.After(lateSignal)
	for {
		select {
		case sig := <-signals:
			if endsProcess(sig) {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

// sameEndpoints reports whether the external and internal endpoints are the same.
func sameEndpoints(a, b [][]backends.Mapping) bool {
	return slices.EqualFunc(a, b, func(a, b []backends.Mapping) bool {
		return a[0].External == b[0].External && a[0].Internal.Port() == b[0].Internal.Port()
	})
}

// arguments returns the words of the command, with the placeholders replaced.
func (r *runner) arguments(granted [][]backends.Mapping) ([]string, error) {
	argv := slices.Clone(r.argv)
	var failure error
	for i := range argv[1:] {
		argv[i+1] = placeholder().ReplaceAllStringFunc(argv[i+1], func(text string) string {
			match := placeholder().FindStringSubmatch(text)
			n, err := strconv.Atoi(match[2])
			if err != nil {
				n = 1
			}
			external := granted[n-1][0].External
			if match[1] == "port" {
				return strconv.Itoa(int(external.Port()))
			}
			if !external.Addr().IsValid() {
				failure = fmt.Errorf("the command needs %s, but the gateway does not report its external address", text)
			}
			return addrText(external.Addr())
		})
	}
	return argv, failure
}

// environment returns the variables that describe the endpoints to the command of run. The
// names for the second and later mappings end with a number.
func environment(granted [][]backends.Mapping) (env []string) {
	for i, ms := range granted {
		suffix := ""
		if i > 0 {
			suffix = strconv.Itoa(i + 1)
		}
		env = append(env, endpointVariables(ms, suffix)...)
	}
	return env
}
