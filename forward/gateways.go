package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/gateway"
)

// hookPeriod is how often Config.Gateways is called besides calls that need it.
const hookPeriod = 30 * time.Second

// hookRoutes is what a call of Config.Gateways returned.
type hookRoutes struct {
	call     uint64 // its number, so that the result of an older call replaces no newer one
	gateways []discover.Gateway
	err      error
}

// find returns the default route of a family.
func (r *hookRoutes) find(fam family, iface string) (discover.Gateway, error) {
	if r == nil {
		return discover.Gateway{}, errors.New("Config.Gateways was not called yet")
	}
	if r.err != nil {
		return discover.Gateway{}, fmt.Errorf("Config.Gateways: %w", r.err)
	}
	for _, gw := range r.gateways {
		if gw.Addr.IsValid() && familyOf(gw.Addr) == fam && (iface == "" || gw.Interface == iface) {
			if !gw.Local.IsValid() {
				gw.Local, _ = localToward(gw.Addr) // without it, it is not known
			}
			return gw, nil
		}
	}
	return discover.Gateway{}, fmt.Errorf("Config.Gateways: %w", discover.ErrNoRoute)
}

// callHook calls Config.Gateways, if there is one, and keeps what it returns. An error does
// not replace routes. If the result differs from the one before, all routes are compared.
func (f *Forwarder) callHook(ctx context.Context) {
	hook := f.config.Gateways
	if hook == nil {
		return
	}
	now := &hookRoutes{call: f.hookCalls.Add(1)}
	bounded, cancel := context.WithTimeoutCause(ctx, f.config.DiscoveryTimeout, &gateway.TimeoutError{After: f.config.DiscoveryTimeout})
	defer cancel()
	func() {
		defer func() {
			if p := recover(); p != nil {
				now.err = fmt.Errorf("panic: %v", p)
			}
		}()
		gateways, err := hook(bounded)
		now.gateways, now.err = slices.Clone(gateways), err
	}()
	if ctx.Err() != nil && now.err != nil {
		return // the caller gave up, which says nothing of the routes
	}
	for {
		before := f.hook.Load()
		if before != nil && (before.call > now.call || now.err != nil && before.err == nil) {
			f.logHook(now.err)
			return
		}
		if f.hook.CompareAndSwap(before, now) {
			if before != nil && (!slices.Equal(before.gateways, now.gateways) || fmt.Sprint(before.err) != fmt.Sprint(now.err)) {
				f.loop.Post(func() { f.look("") })
			}
			return
		}
	}
}

// logHook logs that the routes that are known may be old.
func (f *Forwarder) logHook(err error) {
	if err != nil {
		f.log.Warn("Config.Gateways failed: the routes that it returned before stay in use", "err", err)
	}
}

// followHook calls Config.Gateways regularly, until ctx ends.
func (f *Forwarder) followHook(ctx context.Context, _ func()) error {
	for {
		if err := ctxsync.Sleep(ctx, hookPeriod); err != nil {
			return err
		}
		f.callHook(ctx)
	}
}
