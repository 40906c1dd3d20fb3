package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// defaultExecTimeout bounds a command of --exec, unless --exec-timeout is set.
const defaultExecTimeout = 30 * time.Second

// holdFlags are the flags of map that do not describe the mapping.
type holdFlags struct {
	hold        bool
	wait        bool          // keep trying if the first attempt fails
	command     []string      // command of --exec; nil: none
	execTimeout time.Duration // bounds the command
	portFile    string        // file for the external port; empty: none
}

// register adds the flags to a command.
func (hf *holdFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&hf.hold, "hold", false, "keep the mapping alive until Ctrl-C, then delete it")
	f.BoolVar(&hf.wait, "wait", false, "with --hold, keep trying if the first attempt fails")
	f.Var(&flagValue[[]string]{target: &hf.command, typeName: "COMMAND", parse: splitCommand}, "exec",
		"with --hold, run this command when the endpoint is known, and each time it changes")
	hf.execTimeout = defaultExecTimeout
	f.Var(&flagValue[time.Duration]{target: &hf.execTimeout, typeName: "SECONDS", parse: parseSeconds}, "exec-timeout",
		"how long the command may run: seconds or a duration (default 30s)")
	f.StringVar(&hf.portFile, "port-file", "", "write the external port to this `FILE`; with --hold, keep it up to date, and remove it at the end")
	_ = cmd.RegisterFlagCompletionFunc("exec", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("port-file", completeFiles)
	_ = cmd.RegisterFlagCompletionFunc("exec-timeout", cobra.NoFileCompletions)
}

// check returns an error if the flags do not fit together.
func (hf *holdFlags) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("port-file") && hf.portFile == "" {
		return usagef("--port-file needs a file name")
	}
	for _, name := range []string{"wait", "exec", "exec-timeout"} {
		if cmd.Flags().Changed(name) && !hf.hold {
			return usagef("--%s needs --hold", name)
		}
	}
	if cmd.Flags().Changed("exec-timeout") && hf.command == nil {
		return usagef("--exec-timeout needs --exec")
	}
	return nil
}

// checkPortFile returns an error if the port file cannot hold a port.
func (hf *holdFlags) checkPortFile() error {
	if hf.portFile == "" {
		return nil
	}
	return (&portFile{path: hf.portFile}).check()
}

// unmapTimeout bounds the deletion when map --hold ends, unless --timeout is set.
const unmapTimeout = 5 * time.Second

// hold keeps a mapping alive until the context ends, and then deletes it. Without --wait, hold
// fails if the first attempt fails, so that a user who made a mistake learns of it at once.
func (a *app) hold(ctx context.Context, s *spec, hf *holdFlags) error {
	h := &holdSession{app: a, spec: s, flags: hf, events: make(chan forward.Event), done: make(chan struct{})}
	config := a.config()
	config.OnEvent, config.NonceKey = h.onEvent, a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	if h.portFile = a.newPortFile(hf.portFile); h.portFile != nil {
		if err := h.portFile.removeStale(); err != nil {
			a.messagef("--port-file: cannot remove the port of an earlier run: %s\n", oneLine(err.Error()))
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
		a.messagef("deleting the mapping; press Ctrl-C again to leave it on the gateway\n")
	}
	close(h.done)
	stop()
	err = errors.Join(err, h.unmap(context.WithoutCancel(ctx), f))
	h.running.Wait()
	if h.portFile != nil {
		if err := h.portFile.remove(); err != nil {
			a.messagef("--port-file: cannot remove the port: %s\n", oneLine(err.Error()))
		}
	}
	return err
}

// holdSession is a mapping of map --hold: it prints what happens to the mapping and runs the
// hooks. Only onEvent may be called from several goroutines.
type holdSession struct {
	app    *app
	spec   *spec
	flags  *holdFlags
	events chan forward.Event
	done   chan struct{} // closed when the session receives no more events

	hooks    []*hook
	running  sync.WaitGroup
	portFile *portFile // nil: none

	granted        []backends.Mapping // the last grants; nil: none yet
	active         bool               // the mapping is not lost, according to the events so far
	failing        bool               // the last attempt failed
	reportedNext   time.Time          // time of the next attempt in the last reported failure
	reportedReason string             // reason of the last reported failure; empty: there is none
}

func (h *holdSession) options() []forward.Option {
	opts := h.spec.options()
	if h.flags.wait {
		opts = append(opts, forward.Background())
	}
	return opts
}

// startHooks starts the hooks for new endpoints. The returned function stops them, and
// h.running.Wait waits until they have stopped.
func (h *holdSession) startHooks(ctx context.Context) (stop context.CancelFunc) {
	if h.portFile != nil {
		h.hooks = append(h.hooks, h.portFile.hook(h.app, h.done))
	}
	if h.flags.command != nil {
		h.hooks = append(h.hooks, h.app.execHook(h.flags.command, h.flags.execTimeout))
	}
	ctx, stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, hook := range h.hooks {
		h.running.Go(func() { hook.run(ctx) })
	}
	return stop
}

func (h *holdSession) onEvent(e forward.Event) {
	if e.Kind == forward.EventFailed {
		return // printFailure reports it, with the time of the next attempt
	}
	select {
	case h.events <- e:
	case <-h.done:
	}
}

// follow prints events and failures until the context ends or the output cannot be written. It
// fails if the request turns out to be invalid.
func (h *holdSession) follow(ctx context.Context, m *forward.Mapping) error {
	if !h.flags.wait {
		h.handleEvent(<-h.events) // Enable succeeded, so the event will arrive
	}
	check := time.NewTimer(0)
	defer check.Stop()
	for {
		changed := m.Changed()
		if err := h.printFailure(m); err != nil {
			return err
		}
		check.Reset(h.pollDelay())
		select {
		case e := <-h.events:
			h.handleEvent(e)
		case <-changed:
		case <-check.C:
		case <-ctx.Done():
			return nil
		case <-h.app.stdout.broken:
			return nil
		}
	}
}

// pollDelay is the time until the next check for another failure: Changed reports only the
// first one.
func (h *holdSession) pollDelay() time.Duration {
	if !h.failing {
		return time.Hour
	}
	return max(time.Until(h.reportedNext), 0) + 250*time.Millisecond
}

// unmap deletes the mapping.
func (h *holdSession) unmap(ctx context.Context, f *forward.Forwarder) error {
	timeout := unmapTimeout
	if t := h.app.settings.timeout; t != 0 {
		timeout = t
	}
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	err := f.Disable(ctx)
	_ = f.Close() // no event follows Close
	if err != nil {
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	if h.granted == nil {
		return nil // nothing was ever granted
	}
	now := time.Now()
	h.printLine(now, "unmapped", h.granted, "")
	if h.app.settings.json {
		deleted := slices.Clone(h.granted)
		for i := range deleted {
			deleted[i].Lifetime, deleted[i].Granted = 0, time.Time{}
		}
		h.app.printRecords("unmapped", deleted, mappingRecord{Time: jsonTime(now)})
	}
	return nil
}
