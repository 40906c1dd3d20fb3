package cli

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// How often the gateway is asked for its external address, and how long that may
// take: not all announce that it is another.
const (
	pollInterval   = time.Minute
	pollTimeout = 2 * time.Second
)

func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "watch",
		Short:   "Follow what happens to the gateway, until Ctrl-C",
		Long:    watchHelp,
		Example: watchExamples,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.watch(cmd.Context()) },
	}
}

// errMoved ends the watch of a gateway because the way out is another.
var errRouteChanged = errors.New("the way out is another")

// watch follows the gateway, and whichever takes its place, until the context
// ends. There has to be one at first.
func (a *app) watch(ctx context.Context) error {
	a.logWarnings = true
	w := &watchSession{app: a, networkChanged: make(chan struct{}, 1)}
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work.Go(func() { w.watchNetwork(ctx) })
	w.route = a.currentRoute(&a.settings)
	err := w.watchGateway(ctx)
	if err != nil && !errors.Is(err, errRouteChanged) && !w.stopped(ctx) {
		return err
	}
	for pause := retryDelay; !w.stopped(ctx); {
		switch {
		case errors.Is(err, errRouteChanged):
			pause = retryDelay
		case w.route.reason == "":
			w.printError(err, time.Now().Add(pause))
			w.wait(ctx, pause)
			pause = min(2*pause, maxRetryDelay)
		}
		for w.route.reason != "" && !w.stopped(ctx) { // nobody can be asked
			w.wait(ctx, maxRetryDelay)
			w.checkRoute()
		}
		err = w.watchGateway(ctx)
	}
	return nil
}

// watching tells what happens to gateways.
type watchSession struct {
	app      *app
	networkChanged    chan struct{} // the network changed
	route       route        // as last told
	external netip.Addr    // as last told
}

// ends reports whether nobody wants to know any more.
func (w *watchSession) stopped(ctx context.Context) bool {
	select {
	case <-w.app.stdout.broken:
		return true
	case <-ctx.Done():
		return true
	default:
		return false
	}
}

// followNetwork notices changes of the network until the context ends.
func (w *watchSession) watchNetwork(ctx context.Context) {
	err := w.app.watchNetwork(ctx, func() {
		select {
		case w.networkChanged <- struct{}{}:
		default:
		}
	})
	if ctx.Err() == nil {
		w.app.messagef("Changes of the network are not noticed: %v\n", err)
	}
}

// rest waits until it is worth another try.
func (w *watchSession) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return
		case <-w.app.stdout.broken:
			return
		case <-ctx.Done():
			return
		case <-w.networkChanged:
			if w.checkRoute() {
				return
			}
		}
	}
}

// look tells of the way out where it is another, and reports whether it is.
func (w *watchSession) checkRoute() bool {
	now := w.app.currentRoute(&w.app.settings)
	if now == w.route {
		return false
	}
	w.route = now
	w.external = netip.Addr{} // of another gateway
	w.printGateway(nil)
	return true
}

// visit follows one gateway, until the way out is another or the context ends.
func (w *watchSession) watchGateway(ctx context.Context) error {
	return w.app.withBackends(ctx, query{
		timeout: forward.DefaultRequestTimeout,
		do: func(asking context.Context, s *probeResult) error {
			w.printGateway(s.available)
			w.printExternal(asking, s)
			return w.watchBackends(ctx, s)
		},
	})
}

// noticed is a change that a backend noticed.
type observedChange struct {
	by     availableBackend
	change backends.Change
}

// follow tells what the backends notice.
func (w *watchSession) watchBackends(ctx context.Context, s *probeResult) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan observedChange)
	for _, b := range s.available {
		work.Go(func() { w.watchBackend(ctx, b, changes) })
	}
	tick := time.NewTicker(w.app.pollInterval)
	defer tick.Stop()
	for {
		select {
		case n := <-changes:
			w.printChange(n)
		case <-tick.C:
			w.poll(ctx, s)
		case <-w.networkChanged:
			if w.checkRoute() {
				return errRouteChanged
			}
		case <-w.app.stdout.broken:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// followBackend passes on what a backend notices until the context ends.
func (w *watchSession) watchBackend(ctx context.Context, b availableBackend, to chan<- observedChange) {
	watcher, is := b.Backend.(backends.Watcher)
	if !is {
		return
	}
	err := watcher.Watch(ctx, func(c backends.Change) {
		select {
		case to <- observedChange{b, c}:
		case <-ctx.Done():
		}
	})
	if ctx.Err() == nil {
		w.app.messagef("%s: not followed any more: %v\n", b.title, err)
	}
}

// ask tells the external address, by the first that knows it.
func (w *watchSession) printExternal(ctx context.Context, s *probeResult) {
	var failures []error
	for _, b := range s.available {
		addr, err := b.ExternalAddr(ctx)
		if err == nil {
			w.printAddress(b, addr)
			return
		}
		failures = append(failures, err)
	}
	if ctx.Err() == nil {
		w.app.messagef("The external address is not known: %s\n", oneLine(errors.Join(failures...).Error()))
	}
}

// poll looks whether the external address is another. PCP has no question for
// it, but is heard of what its gateway announces.
func (w *watchSession) poll(ctx context.Context, s *probeResult) {
	ctx, cancel := withTimeout(ctx, pollTimeout)
	defer cancel()
	for _, b := range s.available {
		if b.usesKey {
			continue
		}
		if addr, err := b.ExternalAddr(ctx); err == nil && addr != w.external {
			w.printChange(observedChange{b, backends.Change{
				Kind: backends.AddressChanged, External: addr, Reason: "the gateway tells another address",
			}})
			return
		}
	}
}
