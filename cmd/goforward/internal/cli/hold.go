package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/spf13/cobra"
)

// execTime bounds a command of --exec, unless --exec-timeout does.
const defaultExecTimeout = 30 * time.Second

// keeping is what map does beside mapping.
type holdFlags struct {
	hold     bool
	wait     bool          // until the gateway grants it
	command  []string      // to run for each endpoint; nil: none
	execTimeout    time.Duration // of the command
	portFile string        // to write the external port to; empty: none
}

// register makes the flags.
func (k *holdFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&k.hold, "hold", false, "keep it alive until Ctrl-C, then take it away")
	f.BoolVar(&k.wait, "wait", false, "with --hold, keep trying where it cannot be had at first")
	f.Var(&flagValue[[]string]{target: &k.command, typeName: "COMMAND", parse: splitCommand}, "exec",
		"with --hold, run this when the endpoint is known, and whenever it is another")
	k.execTimeout = defaultExecTimeout
	f.Var(&flagValue[time.Duration]{target: &k.execTimeout, typeName: "SECONDS", parse: parseSeconds}, "exec-timeout",
		"how long the command may take, in seconds or as a duration (default 30s)")
	f.StringVar(&k.portFile, "port-file", "", "write the external port to this `FILE`; with --hold, keep it right, and remove it at the end")
	_ = cmd.RegisterFlagCompletionFunc("exec", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("port-file", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("exec-timeout", cobra.NoFileCompletions)
}

// check refuses what makes no sense.
func (k *holdFlags) check(cmd *cobra.Command) error {
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
func (k *holdFlags) checkPortFile() error {
	if k.portFile == "" {
		return nil
	}
	return (&portFile{path: k.portFile}).check()
}

func completeFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// unmapTime bounds the deletion when map --hold ends, unless --timeout does.
const unmapTimeout = 5 * time.Second

// hold keeps a mapping alive until the context ends, and takes it away. The
// first attempt has to succeed, unless it is to wait: who mistyped should not
// wait for ever.
func (a *app) hold(ctx context.Context, w *spec, k *holdFlags) error {
	h := &holdSession{app: a, spec: w, flags: k, events: make(chan forward.Event), done: make(chan struct{})}
	config := a.config()
	config.OnEvent, config.NonceKey = h.onEvent, a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	if h.portFile = a.newPortFile(k.portFile); h.portFile != nil {
		if err := h.portFile.removeStale(); err != nil {
			a.messagef("--port-file: what an earlier run left: %s\n", oneLine(err.Error()))
		}
	}
	m, err := f.Enable(ctx, h.options()...)
	if err != nil {
		close(h.done)
		_ = f.Close()
		return explainInterrupt(ctx, err)
	}
	stop := h.startHooks(ctx)
	err = h.follow(ctx, m)
	if ctx.Err() != nil && (h.granted != nil || len(m.Grants()) > 0) {
		a.messagef("removing the mapping; Ctrl-C again to leave it\n")
	}
	close(h.done)
	stop()
	err = errors.Join(err, h.unmap(context.WithoutCancel(ctx), f))
	h.running.Wait()
	if h.portFile != nil {
		if err := h.portFile.remove(); err != nil {
			a.messagef("--port-file: the port stays in it: %s\n", oneLine(err.Error()))
		}
	}
	return err
}

// holding tells what happens to a mapping. All but onEvent is for one goroutine.
type holdSession struct {
	app     *app
	spec    *spec
	flags *holdFlags
	events  chan forward.Event
	done    chan struct{} // closed when no event is taken any more

	hooks []*hook
	running    sync.WaitGroup
	portFile    *portFile // nil: none

	granted     []backends.Mapping // what was last granted
	active bool               // it is not lost, as far as told
	failing  bool               // the last attempt failed
	reportedNext     time.Time          // when the next one was to be, as last told of a failure
	reportedReason  string             // what was last told of it; empty: it goes well
}

func (h *holdSession) options() []forward.Option {
	opts := h.spec.options()
	if h.flags.wait {
		opts = append(opts, forward.Background())
	}
	return opts
}

// startErrands starts what is to be done about new endpoints. The function that
// it returns has it end, for h.work to wait for.
func (h *holdSession) startHooks(ctx context.Context) (stop context.CancelFunc) {
	if h.portFile != nil {
		h.hooks = append(h.hooks, h.portFile.hook(h.app, h.done))
	}
	if h.flags.command != nil {
		h.hooks = append(h.hooks, h.app.execHook(h.flags.command, h.flags.execTimeout))
	}
	ctx, stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, e := range h.hooks {
		h.running.Go(func() { e.run(ctx) })
	}
	return stop
}

func (h *holdSession) onEvent(e forward.Event) {
	if e.Kind == forward.EventFailed {
		return // tellFailure tells it, with the time of the next attempt
	}
	select {
	case h.events <- e:
	case <-h.done:
	}
}

// follow tells of events and failures until the context ends, nobody reads it any
// more, or it turns out that the wish makes no sense.
func (h *holdSession) follow(ctx context.Context, m *forward.Mapping) error {
	if !h.flags.wait {
		h.handleEvent(<-h.events) // it was granted: that event is on the way
	}
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		changed := m.Changed()
		if err := h.printFailure(m); err != nil {
			return err
		}
		look.Reset(h.pollDelay())
		select {
		case e := <-h.events:
			h.handleEvent(e)
		case <-changed:
		case <-look.C:
		case <-ctx.Done():
			return nil
		case <-h.app.stdout.broken:
			return nil
		}
	}
}

// pause is how long to wait for a look at whether there was another failure:
// Changed is about the first one only.
func (h *holdSession) pollDelay() time.Duration {
	if !h.failing {
		return time.Hour
	}
	return max(time.Until(h.reportedNext), 0) + 250*time.Millisecond
}

// end takes the mapping away.
func (h *holdSession) unmap(ctx context.Context, f *forward.Forwarder) error {
	bound := unmapTimeout
	if t := h.app.settings.timeout; t != 0 {
		bound = t
	}
	ctx, cancel := withTimeout(ctx, bound)
	defer cancel()
	err := f.Disable(ctx)
	_ = f.Close() // after it comes no event
	if err != nil {
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	if h.granted == nil {
		return nil // there never was one
	}
	now := time.Now()
	h.printLine(now, "unmapped", h.granted, "")
	if h.app.settings.json {
		gone := slices.Clone(h.granted)
		for i := range gone {
			gone[i].Lifetime, gone[i].Granted = 0, time.Time{}
		}
		h.app.printRecords("unmapped", gone, mappingRecord{Time: jsonTime(now)})
	}
	return nil
}

// within bounds a context by a time of ours, whose passing is the gateway's
// silence and no failure of the caller's.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %v", backends.ErrNoReply, d))
}
