package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// The interval between two requests for the external address, and the timeout of each. Not
// every gateway announces a new address.
const (
	pollInterval = time.Minute
	pollTimeout  = 2 * time.Second
)

func (a *app) watchCommand() *cobra.Command {
	var (
		argv    []string // command of --exec; nil: none
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:     "watch",
		Short:   "Report restarts and changes of the gateway, until Ctrl-C",
		Long:    watchHelp,
		Example: watchExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("exec-timeout") && argv == nil {
				return usagef("--exec-timeout needs --exec")
			}
			if err := a.checkWatchSettings(); err != nil {
				return err
			}
			a.printShellWarning(cmd)
			a.watch(cmd.Context(), argv, timeout)
			return nil
		},
	}
	registerExec(cmd, &argv, &timeout, "run this command for each event, except errors")
	return cmd
}

// checkWatchSettings returns an error if watch cannot follow a gateway with these flags on any
// network. It sends nothing.
func (a *app) checkWatchSettings() error {
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	_ = f.Close()
	named := a.settings.namedGateway().Addr()
	if named.Is6() && !slices.ContainsFunc(a.selectedProtocols(), func(p protocol) bool { return p.ipv6 }) {
		return usagef("--backend %s does not support IPv6, but the gateway is %v", strings.Join(a.settings.backends, ","), named)
	}
	return nil
}

// errRouteChanged ends the watch of a gateway when the route changes.
var errRouteChanged = errors.New("the route changed")

// watch follows the gateway, and any gateway that replaces it, until the context ends. It runs
// argv, if it is not nil, for each event.
func (a *app) watch(ctx context.Context, argv []string, timeout time.Duration) {
	a.logWarnings = true
	w := &watchSession{app: a, networkChanged: make(chan struct{}, 1)}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	work.Go(func() { w.watchNetwork(ctx) })
	if argv != nil {
		w.exec = a.newExecQueue(argv, timeout)
		work.Go(func() { w.exec.run(ctx) })
	}
	w.follow(ctx)
	cancel()
	work.Wait()
	if w.exec != nil {
		w.exec.reportRest()
	}
}

// watchSession prints what happens to the gateways.
type watchSession struct {
	app            *app
	exec           *execQueue          // nil: there is no command
	networkChanged chan struct{}       // receives a value when the network changes
	route          route               // the last route printed
	protocols      []string            // the protocols that its gateway supports; nil: not known
	failure        string              // the reason of the last error, if no other gateway was printed since
	external       netip.Addr          // the last address printed
	changed        time.Time           // time of the last change printed
	kind           backends.ChangeKind // its kind
}

// follow follows the gateway until the context ends or the output cannot be written. After a
// failure it tries again.
func (w *watchSession) follow(ctx context.Context) {
	w.route = w.app.currentRoute(&w.app.settings)
	for pause := retryDelay; !w.stopped(ctx); {
		err := w.attempt(ctx)
		switch {
		case w.stopped(ctx):
			return
		case errors.Is(err, errRouteChanged):
			pause = retryDelay
			continue
		}
		w.printError(err, time.Now().Add(pause))
		if w.wait(ctx, pause) {
			pause = retryDelay
		} else {
			pause = min(2*pause, maxRetryDelay)
		}
	}
}

// stopped reports whether the context ended or the output cannot be written.
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

// watchNetwork watches for network changes until the context ends.
func (w *watchSession) watchNetwork(ctx context.Context) {
	err := w.app.watchNetwork(ctx, func() {
		select {
		case w.networkChanged <- struct{}{}:
		default:
		}
	})
	if ctx.Err() == nil {
		w.app.failuref("Network changes cannot be detected: %s\n", errorText(err))
	}
}

// wait waits for d, or until the route changes, the context ends or the output cannot be
// written. It reports whether the route changed.
func (w *watchSession) wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return false
		case <-w.app.stdout.broken:
			return false
		case <-ctx.Done():
			return false
		case <-w.networkChanged:
			if w.checkRoute() {
				return true
			}
		}
	}
}

// checkRoute compares the current route with the last one. If it changed, checkRoute prints it
// and returns true.
func (w *watchSession) checkRoute() bool {
	now := w.app.currentRoute(&w.app.settings)
	if now == w.route {
		return false
	}
	w.route = now
	w.external, w.changed = netip.Addr{}, time.Time{} // they belong to the previous gateway
	w.printGateway(nil)
	return true
}

// attempt follows the gateway of the present route. If there is no route, it fails.
func (w *watchSession) attempt(ctx context.Context) error {
	w.checkRoute()
	if w.route.reason != "" {
		return fmt.Errorf("%w: %s", forward.ErrNoGateway, w.route.reason)
	}
	return w.watchGateway(ctx)
}

// watchGateway follows one gateway until the route changes or the context ends.
func (w *watchSession) watchGateway(ctx context.Context) error {
	return w.app.withBackends(ctx, query{
		timeout: forward.DefaultRequestTimeout,
		all:     true, // a restart is noticed by a comparison of epochs
		do: func(queryCtx context.Context, result *probeResult) error {
			w.printGateway(result.available)
			w.printExternal(queryCtx, result)
			return w.watchBackends(ctx, result)
		},
	})
}

// observedChange is a change that a backend observed.
type observedChange struct {
	by     availableBackend
	change backends.Change
}

// watchBackends prints the changes that the backends observe.
func (w *watchSession) watchBackends(ctx context.Context, result *probeResult) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan observedChange)
	for _, b := range result.available {
		work.Go(func() { w.watchBackend(ctx, b, changes) })
	}
	tick := time.NewTicker(w.app.pollInterval)
	defer tick.Stop()
	for {
		select {
		case observed := <-changes:
			if !observed.change.External.IsValid() {
				_, observed.change.External = w.currentExternal(ctx, result, len(result.available) == 1)
			}
			w.printChange(observed)
		case <-tick.C:
			w.poll(ctx, result)
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

// watchBackend forwards the changes that a backend observes, until the context ends.
func (w *watchSession) watchBackend(ctx context.Context, b availableBackend, to chan<- observedChange) {
	watcher, ok := b.Backend.(backends.Watcher)
	if !ok {
		return
	}
	err := watcher.Watch(ctx, func(c backends.Change) {
		select {
		case to <- observedChange{b, c}:
		case <-ctx.Done():
		}
	})
	if ctx.Err() == nil {
		w.app.failuref("%s: no longer watched: %s\n", b.title, errorText(err))
	}
}

// printExternal prints the external address from the first backend that reports it.
func (w *watchSession) printExternal(ctx context.Context, result *probeResult) {
	var failures []error
	for _, b := range result.available {
		addr, err := b.ExternalAddr(ctx)
		if err == nil {
			w.printAddress(b, addr)
			return
		}
		failures = append(failures, err)
	}
	if ctx.Err() == nil {
		w.app.failuref("The external address is not known: %s\n", oneLine(errors.Join(failures...).Error()))
	}
}

// poll requests the external address and prints a change.
func (w *watchSession) poll(ctx context.Context, result *probeResult) {
	if b, addr := w.currentExternal(ctx, result, false); addr.IsValid() && addr != w.external {
		w.printChange(observedChange{b, backends.Change{Kind: backends.AddressChanged, External: addr, Reason: otherAddress}})
	}
}

const otherAddress = "the gateway reports another address"

// currentExternal requests the external address. PCP has no request for it, and is used only
// if mapping is true: it then creates a mapping and deletes it, even if ctx ends.
func (w *watchSession) currentExternal(ctx context.Context, result *probeResult, mapping bool) (availableBackend, netip.Addr) {
	if mapping {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := withTimeout(ctx, pollTimeout)
	defer cancel()
	for _, b := range result.available {
		if b.usesKey && !mapping {
			continue
		}
		if addr, err := b.ExternalAddr(ctx); err == nil {
			return b, addr
		}
	}
	return availableBackend{}, netip.Addr{}
}
