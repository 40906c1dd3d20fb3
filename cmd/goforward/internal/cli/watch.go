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
	watchEvery   = time.Minute
	watchPatient = 2 * time.Second
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
var errMoved = errors.New("the way out is another")

// watch follows the gateway, and whichever takes its place, until the context
// ends. There has to be one at first.
func (a *app) watch(ctx context.Context) error {
	a.warns = true
	w := &watching{app: a, moved: make(chan struct{}, 1)}
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work.Go(func() { w.followNetwork(ctx) })
	w.at = a.wayOut(&a.settings)
	err := w.visit(ctx)
	if err != nil && !errors.Is(err, errMoved) && !w.ends(ctx) {
		return err
	}
	for pause := errandPause; !w.ends(ctx); {
		switch {
		case errors.Is(err, errMoved):
			pause = errandPause
		case w.at.reason == "":
			w.sayFailure(err, time.Now().Add(pause))
			w.rest(ctx, pause)
			pause = min(2*pause, longestErrandPause)
		}
		for w.at.reason != "" && !w.ends(ctx) { // nobody can be asked
			w.rest(ctx, longestErrandPause)
			w.look()
		}
		err = w.visit(ctx)
	}
	return nil
}

// watching tells what happens to gateways.
type watching struct {
	app      *app
	moved    chan struct{} // the network changed
	at       wayOut        // as last told
	external netip.Addr    // as last told
}

// ends reports whether nobody wants to know any more.
func (w *watching) ends(ctx context.Context) bool {
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
func (w *watching) followNetwork(ctx context.Context) {
	err := w.app.network(ctx, func() {
		select {
		case w.moved <- struct{}{}:
		default:
		}
	})
	if ctx.Err() == nil {
		w.app.sayf("Changes of the network are not noticed: %v\n", err)
	}
}

// rest waits until it is worth another try.
func (w *watching) rest(ctx context.Context, d time.Duration) {
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
		case <-w.moved:
			if w.look() {
				return
			}
		}
	}
}

// look tells of the way out where it is another, and reports whether it is.
func (w *watching) look() bool {
	now := w.app.wayOut(&w.app.settings)
	if now == w.at {
		return false
	}
	w.at = now
	w.external = netip.Addr{} // of another gateway
	w.sayGateway(nil)
	return true
}

// visit follows one gateway, until the way out is another or the context ends.
func (w *watching) visit(ctx context.Context) error {
	return w.app.withBackends(ctx, inquiry{
		most: forward.DefaultRequestTimeout,
		do: func(asking context.Context, s *survey) error {
			w.sayGateway(s.found)
			w.ask(asking, s)
			return w.follow(ctx, s)
		},
	})
}

// noticed is a change that a backend noticed.
type noticed struct {
	by     found
	change backends.Change
}

// follow tells what the backends notice.
func (w *watching) follow(ctx context.Context, s *survey) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan noticed)
	for _, b := range s.found {
		work.Go(func() { w.followBackend(ctx, b, changes) })
	}
	tick := time.NewTicker(w.app.watchEvery)
	defer tick.Stop()
	for {
		select {
		case n := <-changes:
			w.sayChange(n)
		case <-tick.C:
			w.poll(ctx, s)
		case <-w.moved:
			if w.look() {
				return errMoved
			}
		case <-w.app.stdout.broken:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// followBackend passes on what a backend notices until the context ends.
func (w *watching) followBackend(ctx context.Context, b found, to chan<- noticed) {
	watcher, is := b.Backend.(backends.Watcher)
	if !is {
		return
	}
	err := watcher.Watch(ctx, func(c backends.Change) {
		select {
		case to <- noticed{b, c}:
		case <-ctx.Done():
		}
	})
	if ctx.Err() == nil {
		w.app.sayf("%s: not followed any more: %v\n", b.title, err)
	}
}

// ask tells the external address, by the first that knows it.
func (w *watching) ask(ctx context.Context, s *survey) {
	var failures []error
	for _, b := range s.found {
		addr, err := b.ExternalAddr(ctx)
		if err == nil {
			w.sayAddress(b, addr)
			return
		}
		failures = append(failures, err)
	}
	if ctx.Err() == nil {
		w.app.sayf("The external address is not known: %s\n", oneLine(errors.Join(failures...).Error()))
	}
}

// poll looks whether the external address is another. PCP has no question for
// it, but is heard of what its gateway announces.
func (w *watching) poll(ctx context.Context, s *survey) {
	ctx, cancel := within(ctx, watchPatient)
	defer cancel()
	for _, b := range s.found {
		if b.keyed {
			continue
		}
		if addr, err := b.ExternalAddr(ctx); err == nil && addr != w.external {
			w.sayChange(noticed{b, backends.Change{
				Kind: backends.AddressChanged, External: addr, Reason: "the gateway tells another address",
			}})
			return
		}
	}
}
