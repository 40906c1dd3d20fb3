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

// unmapTime bounds the deletion when map --hold ends, unless --timeout does.
const unmapTime = 5 * time.Second

// hold keeps a mapping alive until the context ends, and takes it away. The
// first attempt has to succeed, unless it is to wait: who mistyped should not
// wait for ever.
func (a *app) hold(ctx context.Context, w *wish, k *keeping) error {
	h := &holding{app: a, wish: w, keeping: k, events: make(chan forward.Event), over: make(chan struct{})}
	config := a.config()
	config.OnEvent, config.NonceKey = h.onEvent, a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	if h.file = a.newPortFile(k.portFile); h.file != nil {
		if err := h.file.clear(); err != nil {
			a.sayf("--port-file: what an earlier run left: %s\n", oneLine(err.Error()))
		}
	}
	m, err := f.Enable(ctx, h.options()...)
	if err != nil {
		close(h.over)
		_ = f.Close()
		return mapFailure(ctx, err)
	}
	stop := h.startErrands(ctx)
	err = h.follow(ctx, m)
	if ctx.Err() != nil && (h.last != nil || len(m.Grants()) > 0) {
		a.sayf("removing the mapping; Ctrl-C again to leave it\n")
	}
	close(h.over)
	stop()
	err = errors.Join(err, h.end(context.WithoutCancel(ctx), f))
	h.work.Wait()
	if h.file != nil {
		if err := h.file.remove(); err != nil {
			a.sayf("--port-file: the port stays in it: %s\n", oneLine(err.Error()))
		}
	}
	return err
}

// holding tells what happens to a mapping. All but onEvent is for one goroutine.
type holding struct {
	app     *app
	wish    *wish
	keeping *keeping
	events  chan forward.Event
	over    chan struct{} // closed when no event is taken any more

	errands []*errand
	work    sync.WaitGroup
	file    *portFile // nil: none

	last     []backends.Mapping // what was last granted
	standing bool               // it is not lost, as far as told
	failing  bool               // the last attempt failed
	seen     time.Time          // when the next one was to be, as last told of a failure
	failure  string             // what was last told of it; empty: it goes well
}

func (h *holding) options() []forward.Option {
	opts := h.wish.options()
	if h.keeping.wait {
		opts = append(opts, forward.Background())
	}
	return opts
}

// startErrands starts what is to be done about new endpoints. The function that
// it returns has it end, for h.work to wait for.
func (h *holding) startErrands(ctx context.Context) (stop context.CancelFunc) {
	if h.file != nil {
		h.errands = append(h.errands, h.file.errand(h.app, h.over))
	}
	if h.keeping.command != nil {
		h.errands = append(h.errands, h.app.execErrand(h.keeping.command, h.keeping.bound))
	}
	ctx, stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, e := range h.errands {
		h.work.Go(func() { e.run(ctx) })
	}
	return stop
}

func (h *holding) onEvent(e forward.Event) {
	if e.Kind == forward.EventFailed {
		return // tellFailure tells it, with the time of the next attempt
	}
	select {
	case h.events <- e:
	case <-h.over:
	}
}

// follow tells of events and failures until the context ends, nobody reads it any
// more, or it turns out that the wish makes no sense.
func (h *holding) follow(ctx context.Context, m *forward.Mapping) error {
	if !h.keeping.wait {
		h.tell(<-h.events) // it was granted: that event is on the way
	}
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		changed := m.Changed()
		if err := h.tellFailure(m); err != nil {
			return err
		}
		look.Reset(h.pause())
		select {
		case e := <-h.events:
			h.tell(e)
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
func (h *holding) pause() time.Duration {
	if !h.failing {
		return time.Hour
	}
	return max(time.Until(h.seen), 0) + 250*time.Millisecond
}

// end takes the mapping away.
func (h *holding) end(ctx context.Context, f *forward.Forwarder) error {
	bound := unmapTime
	if t := h.app.settings.timeout; t != 0 {
		bound = t
	}
	ctx, cancel := within(ctx, bound)
	defer cancel()
	err := f.Disable(ctx)
	_ = f.Close() // after it comes no event
	if err != nil {
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	if h.last == nil {
		return nil // there never was one
	}
	now := time.Now()
	h.line(now, "unmapped", h.last, "")
	if h.app.settings.json {
		gone := slices.Clone(h.last)
		for i := range gone {
			gone[i].Lifetime, gone[i].Granted = 0, time.Time{}
		}
		h.app.records("unmapped", gone, record{Time: stamp(now)})
	}
	return nil
}

// within bounds a context by a time of ours, whose passing is the gateway's
// silence and no failure of the caller's.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %v", backends.ErrNoReply, d))
}
