package cli

import (
	"cmp"
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

// holdFlags are the flags of map and run that do not describe a mapping.
type holdFlags struct {
	hold        bool
	wait        bool          // keep trying if the first attempt fails
	forChild    bool          // run: the mappings are for its command, and stdout is the command's
	command     []string      // command of --exec; nil: none
	execTimeout time.Duration // bounds the command
	portFile    string        // file for the external port; empty: none
	verify      verifyFlags
}

// register adds the flags to a command.
func (hf *holdFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&hf.hold, "hold", false, "keep the mappings alive until Ctrl-C, then delete them")
	f.BoolVar(&hf.wait, "wait", false, "with --hold, keep trying if the first attempt fails")
	registerExec(cmd, &hf.command, &hf.execTimeout, "with --hold, run this command for each new external endpoint")
	f.StringVar(&hf.portFile, "port-file", "", "write the external port to this `FILE`; with --hold, update it")
	_ = cmd.RegisterFlagCompletionFunc("port-file", completeFiles)
	hf.verify.registerForMap(cmd)
}

// check returns an error if the flags do not fit together, or do not fit the mappings.
func (hf *holdFlags) check(cmd *cobra.Command, specs []*spec) error {
	for _, name := range []string{"wait", "exec", "exec-timeout"} {
		if cmd.Flags().Changed(name) && !hf.hold {
			return usagef("--%s needs --hold", name)
		}
	}
	v := &hf.verify
	switch {
	case v.every != 0 && (!hf.hold || !v.ofMap):
		return usagef("--every needs --hold and --verify; to measure a mapping again and again, use goforward verify")
	case v.isTooOften():
		return errTooOften
	case v.uses(viaPhone) && hf.hold:
		return usagef("--verify=phone and --hold exclude each other: use goforward verify --via phone")
	case v.ofMap && specs[0].to.IsValid():
		return usagef("--verify and --to exclude each other: only the other host can observe what arrives there")
	case cmd.Flags().Changed("exec-timeout") && hf.command == nil:
		return usagef("--exec-timeout needs --exec")
	case !cmd.Flags().Changed("port-file"):
		return nil
	case hf.portFile == "":
		return usagef("--port-file needs a file name")
	case len(specs) > 1:
		return usagef("--port-file holds one port: name one mapping, or use --exec")
	}
	return (&portFile{path: hf.portFile}).check()
}

// unmapTimeout is how long map --hold and run wait for a reply to a deletion, unless --timeout
// is set. Some UPnP routers need seconds to reply.
const unmapTimeout = 3 * time.Second

// hold keeps mappings alive until body returns, and then deletes them. The context of body
// ends if ctx ends, or if a request turns out to be invalid. Without --wait, hold fails if the
// first attempt for one of the mappings fails, so that it reports a mistake at once. It then
// keeps none of them.
func (a *app) hold(ctx context.Context, specs []*spec, hf *holdFlags, body func(context.Context, *holdSession) error) error {
	s := &holdSession{
		app: a, flags: hf, done: make(chan struct{}), changed: make(chan struct{}, 1),
		granted: make([][]backends.Mapping, len(specs)),
	}
	for _, one := range specs {
		s.mappings = append(s.mappings, &heldMapping{session: s, spec: one, events: make(chan forward.Event), ended: make(chan struct{})})
	}
	config := a.config()
	config.NonceKey, config.CloseTimeout = a.nonceKey(), cmp.Or(a.settings.timeout, unmapTimeout)
	if hf.verify.ofMap {
		config.Verify, config.VerifyEvery = a.newProbers(&hf.verify), hf.verify.every
	}
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	if s.portFile = a.newPortFile(hf.portFile); s.portFile != nil {
		if err := s.portFile.removeStale(); err != nil {
			a.failuref("--port-file: cannot remove the port of an earlier run: %s\n", oneLine(err.Error()))
		}
	}
	if err := s.enable(ctx, f); err != nil {
		for _, h := range s.mappings {
			close(h.ended)
		}
		if ctx.Err() != nil {
			a.printInterrupted()
			return interruptedError(f.Close())
		}
		wasGranted := s.wasGranted()
		if wasGranted {
			a.messagef("deleting the other mappings\n")
		}
		if closeErr := f.Close(); closeErr != nil && wasGranted { // without a grant, err says enough
			a.failuref("not unmapped: %s\n", oneLine(errorText(closeErr)))
		}
		return err
	}
	a.remember(f) // now: the program may be killed later
	stop := s.startHooks(ctx)
	err = s.follow(ctx, body)
	if ctx.Err() != nil && s.wasGranted() {
		s.printDeleting()
	}
	close(s.done)
	stop()
	err = errors.Join(err, s.unmap(context.WithoutCancel(ctx), f))
	s.running.Wait()
	if s.portFile != nil {
		if err := s.portFile.remove(); err != nil {
			a.failuref("--port-file: cannot remove the port: %s\n", oneLine(err.Error()))
		}
	}
	if ctx.Err() != nil && !s.wasGranted() {
		return errors.Join(errInterrupted, err)
	}
	return err
}

// untilInterrupt is the body of map --hold.
func untilInterrupt(ctx context.Context, s *holdSession) error {
	select {
	case <-ctx.Done():
	case <-s.app.stdout.broken:
	}
	return nil
}

// holdSession keeps the mappings of map --hold or run. Each mapping has a goroutine that
// handles its events.
type holdSession struct {
	app      *app
	flags    *holdFlags
	mappings []*heldMapping
	done     chan struct{} // closed when the session ends: the file of --port-file is not written any more
	running  sync.WaitGroup
	portFile *portFile     // nil: none
	changed  chan struct{} // receives a value if the result of endpoints has changed

	mu      sync.Mutex
	granted [][]backends.Mapping // the last grants of each of the mappings; nil: none yet
}

// heldMapping is one of the mappings: it prints what happens to the mapping and runs the hooks.
// Only onEvent may be called from several goroutines.
type heldMapping struct {
	session *holdSession
	spec    *spec
	mapping *forward.Mapping
	events  chan forward.Event
	ended   chan struct{} // closed when no events are received any more
	hooks   []*hook

	granted        []backends.Mapping // the last grants; nil: none yet
	active         bool               // the mapping is not lost, according to the events so far
	failing        bool               // the last attempt failed
	measured       bool               // a result of --verify was printed
	reportedNext   time.Time          // time of the next attempt in the last reported failure
	reportedReason string             // reason of the last reported failure; empty: there is none
}

// enable enables all mappings.
func (s *holdSession) enable(ctx context.Context, f *forward.Forwarder) error {
	var specs []*spec
	for _, h := range s.mappings {
		specs = append(specs, h.spec)
	}
	var failures mapErrors
	for i, one := range enableAll(ctx, f, specs, func(i int) []forward.Option { return s.mappings[i].options() }) {
		<-one.done
		if s.mappings[i].mapping = one.mapping; one.err != nil {
			failures = append(failures, mapError{one.spec, one.err})
		}
	}
	return s.app.mapFailure(specs, failures)
}

func (h *heldMapping) options() []forward.Option {
	opts := append(h.spec.options(), forward.OnChange(h.onEvent))
	if h.session.flags.wait {
		opts = append(opts, forward.Background())
	}
	return opts
}

// startHooks starts the hooks for new endpoints. The returned function stops them, and
// s.running.Wait waits until they have stopped.
func (s *holdSession) startHooks(ctx context.Context) (stop context.CancelFunc) {
	ctx, stop = context.WithCancel(context.WithoutCancel(ctx))
	turn := make(chan struct{}, 1) // one command of --exec runs at a time
	for _, h := range s.mappings {
		if s.portFile != nil {
			h.hooks = append(h.hooks, s.portFile.hook(s.app, s.done))
		}
		if s.flags.command != nil {
			h.hooks = append(h.hooks, inTurn(s.app.execHook(s.flags.command, s.flags.execTimeout), turn))
		}
		for _, hook := range h.hooks {
			s.running.Go(func() { hook.run(ctx) })
		}
	}
	return stop
}

// inTurn makes the action of a hook wait until no other action with the same turn runs.
func inTurn(h *hook, turn chan struct{}) *hook {
	do := h.do
	h.do = func(ctx context.Context, e hookEvent) error {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		defer func() { <-turn }()
		return do(ctx, e)
	}
	return h
}

// follow runs body, and handles the events of the mappings until it returns. follow fails if
// body does, or if a request is invalid.
func (s *holdSession) follow(ctx context.Context, body func(context.Context, *holdSession) error) error {
	var work sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	failures := make([]error, len(s.mappings))
	for i, h := range s.mappings {
		work.Go(func() {
			if failures[i] = h.follow(ctx); failures[i] != nil {
				stop()
			}
		})
	}
	err := body(ctx, s)
	stop()
	work.Wait()
	return errors.Join(append(failures, err)...)
}

func (h *heldMapping) onEvent(e forward.Event) {
	if e.Kind == forward.EventFailed {
		return // printFailure reports it, with the time of the next attempt
	}
	select {
	case h.events <- e:
	case <-h.ended: // the events of the other mappings must not wait for this one
	}
}

// follow prints events and failures until the context ends or the output cannot be written. It
// fails if the request turns out to be invalid.
func (h *heldMapping) follow(ctx context.Context) error {
	defer close(h.ended)
	if !h.session.flags.wait {
		h.handleEvent(<-h.events) // Enable succeeded, so the event will arrive
	}
	check := time.NewTimer(0)
	defer check.Stop()
	for {
		changed := h.mapping.Changed()
		if err := h.printFailure(h.mapping); err != nil {
			return err
		}
		h.printFirstResult()
		check.Reset(h.pollDelay())
		select {
		case e := <-h.events:
			h.handleEvent(e)
		case <-changed:
		case <-check.C:
		case <-ctx.Done():
			return nil
		case <-h.session.app.stdout.broken:
			return nil
		}
	}
}

// pollDelay is the time until the next check for another failure, or for the first result of
// --verify: Changed reports neither.
func (h *heldMapping) pollDelay() time.Duration {
	switch {
	case h.session.flags.verify.ofMap && !h.measured:
		return 250 * time.Millisecond
	case !h.failing:
		return time.Hour
	}
	return max(time.Until(h.reportedNext), 0) + 250*time.Millisecond
}

// recordGrant records what the gateway granted. It prints the remarks when the last of the
// mappings is granted for the first time.
func (s *holdSession) recordGrant(h *heldMapping) {
	s.mu.Lock()
	before := s.allGranted()
	s.granted[slices.Index(s.mappings, h)] = h.granted
	now := s.allGranted()
	s.mu.Unlock()
	if before == nil && now != nil {
		s.printAllGranted(now)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// endpoints returns what the gateway granted, in the order of the mappings. It returns nil if
// some of them have not been granted yet.
func (s *holdSession) endpoints() [][]backends.Mapping {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allGranted()
}

// allGranted is endpoints for a caller that holds mu.
func (s *holdSession) allGranted() [][]backends.Mapping {
	if slices.ContainsFunc(s.granted, func(ms []backends.Mapping) bool { return ms == nil }) {
		return nil
	}
	return slices.Clone(s.granted)
}

// wasGranted reports whether the gateway has granted one of the mappings.
func (s *holdSession) wasGranted() bool {
	return slices.ContainsFunc(s.mappings, func(h *heldMapping) bool { return h.granted != nil || h.mapping != nil && len(h.mapping.Grants()) > 0 })
}

// unmap deletes the mappings.
func (s *holdSession) unmap(ctx context.Context, f *forward.Forwarder) error {
	errs := make([]error, len(s.mappings))
	var work sync.WaitGroup
	for i, h := range s.mappings {
		work.Go(func() { errs[i] = h.mapping.Shutdown(ctx) })
	}
	work.Wait()
	s.app.close(f) // no event follows
	for i, h := range s.mappings {
		if errs[i] == nil {
			h.printUnmapped()
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	return nil
}
