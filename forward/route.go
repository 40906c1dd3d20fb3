package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/netbind"
)

// family is the address family of a gateway.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// gatewayPath is a gateway together with the interface and the source address that this host
// uses to reach it.
type gatewayPath struct {
	gateway netip.AddrPort // with the port from Config.Gateway, or 0
	iface   string
	source  netip.Addr // the configured address, or the one that was found
	local   netip.Addr // the effective source address; the zero Addr if it is unknown
}

// ownerKey returns the key of the gateway's owner.
func (p gatewayPath) ownerKey() gateway.Key {
	addr := p.gateway.Addr().Unmap()
	return gateway.Key{Gateway: netip.AddrPortFrom(addr, cmp.Or(p.gateway.Port(), natpmp.Port)), Local: p.local}
}

// route connects a gatewayPath to the owner of its gateway. Only code on the loop uses the
// mutable fields.
type route struct {
	path     gatewayPath     // immutable; the zero value for ready-made backends
	client   *gateway.Client // immutable
	unusable string          // why the route cannot be used, or empty
	users    int             // the number of calls that use it
}

// selectGateway returns the current route after at least one of its backends has replied. The
// caller must call done when it no longer uses the route.
func (f *Forwarder) selectGateway(ctx context.Context, fam family) (_ *route, done func(), err error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	f.callHook(ctx)
	var r *route
	f.loop.Do(func() {
		if r, err = f.currentRoute(fam); err == nil {
			r.users++
		}
	})
	if err != nil {
		return nil, nil, err
	}
	done = func() {
		f.loop.Post(func() {
			r.users--
			f.closeUnusedRoutes()
		})
	}
	if err := r.client.Probe(ctx, f.config.DiscoveryTimeout); err != nil {
		done()
		return nil, nil, err
	}
	return r, done, nil
}

// attach attaches a mapping to the owner of its gateway. The owner requests the mapping at
// the given time; the zero time means that a call will request it.
func (f *Forwarder) attach(m *Mapping, at time.Time, reason string) error {
	r, err := f.currentRoute(m.family)
	switch {
	case m.handle.IsClosed():
		return errClosed("mapping")
	case err != nil:
		m.handle.Fail(err, f.clockCheckedAt.Add(clockPeriod))
		return err
	case m.handle.Client() != r.client:
		r.client.Attach(m.handle, at, reason)
	}
	return nil
}

// currentRoute compares the route in use with the default route, and returns the route to
// use. It runs on the loop. No other code compares routes.
func (f *Forwarder) currentRoute(fam family) (*route, error) {
	var (
		p   gatewayPath
		err error
	)
	if len(f.config.Backends) > 0 {
		fam = ipv4 // the family of ready-made backends is unknown
	} else {
		p, err = f.findPath(fam)
	}
	cur := f.current[fam]
	switch {
	case err != nil && cur != nil:
		f.setUnusable(cur, err, f.unusableReason(err))
		return nil, err
	case err != nil:
		return nil, err
	case cur != nil && cur.path == p:
		f.setUsable(cur)
		return cur, nil
	}
	r, err := f.addRoute(p)
	if err != nil {
		return nil, err
	}
	f.current[fam] = r
	f.setUsable(r)
	if cur != nil {
		f.move(cur, r, moveReason(cur.path, p))
	}
	return r, nil
}

// move attaches the mappings of one route to another route.
func (f *Forwarder) move(from, to *route, reason string) {
	f.setUnusable(from, nil, reason)
	at := f.verifyLimit.Next(time.Now())
	for _, m := range f.held {
		if m.handle.Client() == from.client && !m.status().Spec.Once {
			to.client.Attach(m.handle, at, reason)
		}
	}
	f.closeUnusedRoutes()
}

// addRoute returns the route for a path and adds it if necessary. If the path was used
// before, its backends are probed again, because another network can have the same addresses.
func (f *Forwarder) addRoute(p gatewayPath) (*route, error) {
	if i := slices.IndexFunc(f.routes, func(r *route) bool { return r.path == p }); i >= 0 {
		f.routes[i].client.ResetProbes()
		return f.routes[i], nil
	}
	var (
		configs []gateway.BackendConfig
		key     gateway.Key
	)
	for _, b := range f.config.Backends {
		configs = append(configs, gateway.BackendConfig{Ready: b})
	}
	if len(configs) == 0 {
		configs, key = f.configs(p), f.keyOf(p)
		f.registry.Suggest(key, f.hintsFor(p))
	}
	if len(configs) == 0 {
		return nil, fmt.Errorf("forward: %w: no gateway at %v supports %s\n  → add pcp or upnp to Config.Protocols", backends.ErrUnsupported, p.gateway.Addr(), strings.Join(f.config.Protocols, " or "))
	}
	c, err := f.registry.Join(key, configs, sink{f})
	if err != nil {
		return nil, err
	}
	c.SetCheckEvery(f.config.CheckEvery)
	r := &route{path: p, client: c}
	f.routes = append(f.routes, r)
	f.store.restore(r)
	return r, nil
}

// backendConfigs returns the configs of the backends for a path, as Config.Protocols names
// them.
func (f *Forwarder) backendConfigs(p gatewayPath) []gateway.BackendConfig {
	fam := familyOf(p.gateway.Addr())
	common := gateway.BackendConfig{
		Interface: p.iface, Nonce: string(f.config.NonceKey), Only: p.gateway == f.config.Gateway,
		Announce: f.config.Test.Announce, SSDP: f.config.Test.SSDP, Notify: f.config.Test.Notify,
		Wait: f.config.DiscoveryTimeout - f.config.DiscoveryTimeout/8, // shorter, so that the devices found by then can still be used
		URL:  f.config.UPnPURL,
	}
	if fam == ipv6 {
		if gw, err := f.defaultRoute(ipv4); err == nil && gw.Interface == cmp.Or(p.iface, p.gateway.Addr().Zone()) {
			common.Gateway4 = gw.Addr
		}
	}
	var configs []gateway.BackendConfig
	for _, name := range f.config.Protocols {
		if protocol, _ := gateway.Find(name); fam == ipv4 || protocol.IPv6 {
			configs = append(configs, protocol.Config(common))
		}
	}
	if fam == ipv4 && backends.ScopeOf(p.local) == backends.ScopePublic {
		configs = append(configs, gateway.BackendConfig{Protocol: gateway.Direct})
	}
	return configs
}

// upnpHost returns the address in the URL of a root description.
func upnpHost(raw string) (netip.Addr, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" {
		return netip.Addr{}, fmt.Errorf("%q is not a plain http URL", raw)
	}
	return netip.ParseAddr(u.Hostname())
}

// findPath returns the path to the gateway of a family. Config.Gateway is the gateway of its
// own family; for the other family, the default route determines the gateway.
func (f *Forwarder) findPath(fam family) (gatewayPath, error) {
	if familyOf(f.config.Source) == fam {
		if err := f.config.checkSource(); err != nil {
			return gatewayPath{}, err
		}
	}
	if gw := f.config.Gateway; gw.IsValid() && familyOf(gw.Addr()) == fam {
		p := gatewayPath{gateway: gw, iface: f.config.Interface}
		if familyOf(f.config.Source) == fam {
			p.source, p.local = f.config.Source, f.config.Source
		}
		if !p.local.IsValid() && p.iface == "" {
			p.local, _ = netbind.LocalAddr(gw.Addr()) // if this fails, the address remains unknown
		}
		return p, nil
	}
	gw, err := f.defaultRoute(fam)
	switch {
	case err != nil:
		return gatewayPath{}, fmt.Errorf("%w: %w\n  → %s", ErrNoGateway, err, routeAdvice(&f.config, fam, err))
	case !gw.Addr.IsValid():
		return gatewayPath{}, fmt.Errorf("%w: the default route, through %s, has no next hop, as in a tunnel\n  → name the gateway (Config.Gateway): the VPN provider publishes its address",
			ErrNoGateway, gw.Interface)
	}
	source := gw.Local
	if f.config.Source.IsValid() && familyOf(f.config.Source) == fam {
		source = f.config.Source
	} else if fam == ipv6 {
		source = discover.Stable(gw)
	}
	return gatewayPath{netip.AddrPortFrom(gw.Addr, 0), gw.Interface, source, source}, nil
}

// defaultRoute returns the default route according to Config.Gateways or the kernel. If
// Config names an interface, it returns the best route through that interface.
func (f *Forwarder) defaultRoute(fam family) (discover.Gateway, error) {
	if f.config.Gateways != nil {
		return f.hook.Load().find(fam, f.config.Interface)
	}
	if f.config.Interface == "" {
		return f.defaultRoutes[fam]()
	}
	return discover.Through(f.config.Interface, fam == ipv6)
}

// unusableReason returns the reason why there is no usable route.
func (f *Forwarder) unusableReason(err error) string {
	if errors.Is(err, backends.ErrInvalid) {
		return fmt.Sprintf("this host no longer has the address %v", f.config.Source)
	}
	return "there is no default route"
}

// moveReason returns the difference between the previous path and the present one.
func moveReason(before, now gatewayPath) string {
	if before.gateway == now.gateway && before.iface == now.iface {
		return fmt.Sprintf("this host has another address: %v", now.local)
	}
	return fmt.Sprintf("there is another default route: %v by %s", now.gateway.Addr(), now.iface)
}

// setUnusable records that a route cannot be used, and the reason.
func (f *Forwarder) setUnusable(r *route, err error, reason string) {
	if r.unusable != reason {
		r.unusable = reason
		f.log.Info("the network changed", "gateway", r.path.gateway.Addr(), "interface", r.path.iface, "reason", reason)
		var next time.Time
		if err != nil {
			next = f.clockCheckedAt.Add(clockPeriod)
		}
		r.client.SetUnusable(err, reason, next)
	}
}

// setUsable records that a route can be used again.
func (f *Forwarder) setUsable(r *route) {
	if r.unusable != "" {
		r.unusable = ""
		r.client.SetUsable("the default route is back", f.verifyLimit.Next(time.Now()))
	}
}

// closeUnusedRoutes closes the routes that have no mappings and no calls and are not the
// current routes.
func (f *Forwarder) closeUnusedRoutes() {
	f.routes = slices.DeleteFunc(f.routes, func(r *route) bool {
		inUse := r.users > 0 || slices.Contains(f.current[:], r) || r.client.InUse()
		if !inUse {
			f.work.Go(func() {
				ctx, cancel := context.WithTimeoutCause(context.Background(), routeCloseTimeout, &gateway.TimeoutError{After: routeCloseTimeout})
				defer cancel()
				if err := f.closeRoute(ctx, r); err != nil {
					f.log.Warn("a mapping remains at a previous gateway", "gateway", r.path.gateway.Addr(), "err", err)
				}
			})
		}
		return !inUse
	})
}

// routeCloseTimeout bounds the deletions at a previous gateway.
const routeCloseTimeout = time.Second

// closeRoute deletes the pending mappings at the gateway of a route. It keeps records of
// those that remain.
func (f *Forwarder) closeRoute(ctx context.Context, r *route) error {
	records, err := r.client.Close(ctx)
	f.loop.Do(func() { f.store.unassigned = append(f.store.unassigned, records...) })
	return err
}

// If the wall clock has advanced by more than the monotonic clock, the machine slept or its
// clock was set. On most systems the monotonic clock stops during sleep, so that timers are
// late after it.
const (
	clockPeriod    = 30 * time.Second
	clockTolerance = 5 * time.Second
)

// startClock starts the timer of compareClocks.
func (f *Forwarder) startClock() {
	f.clockCheckedAt = time.Now()
	f.loop.Arm(&f.clockTimer, f.clockCheckedAt.Add(clockPeriod))
}

// compareClocks detects that the machine slept.
func (f *Forwarder) compareClocks() {
	now := time.Now()
	if wall := now.Round(0).Sub(f.clockCheckedAt.Round(0)); (wall - now.Sub(f.clockCheckedAt)).Abs() > clockTolerance {
		f.compareRoutes("the machine slept, or its clock was set")
	} else {
		f.compareRoutesIfUnrouted()
	}
	f.startClock()
}

// compareRoutes compares the routes in use with the default routes. It attaches mappings that
// have no route. If reason is not empty, all mappings are requested again.
func (f *Forwarder) compareRoutes(reason string) {
	for _, fam := range []family{ipv4, ipv6} {
		if f.current[fam] != nil {
			_, _ = f.currentRoute(fam)
		}
	}
	for _, m := range slices.Clone(f.held) {
		if m.handle.Client() == nil && m.status().Spec.Background {
			_ = f.attach(m, time.Now(), "enabled")
		}
	}
	for _, r := range f.routes {
		switch {
		case r.unusable != "":
		case reason != "":
			r.client.VerifySoon(reason, f.verifyLimit.Next(time.Now()))
		default:
			r.client.Wake("the network changed", f.wakeLimit.Next(time.Now()))
		}
	}
}

// compareRoutesIfUnrouted compares routes if a mapping has no usable route. There may be one
// by now.
func (f *Forwarder) compareRoutesIfUnrouted() {
	if slices.ContainsFunc(f.held, func(m *Mapping) bool { return m.handle.Client() == nil }) ||
		slices.ContainsFunc(f.current[:], func(r *route) bool { return r != nil && r.unusable != "" }) {
		f.compareRoutes("")
	}
}

// followNetwork compares routes after each change of the network, until the Forwarder is
// closed. A watch that fails is started again.
func (f *Forwarder) followNetwork() {
	compare := func() { f.loop.Post(func() { f.compareRoutes("") }) }
	restarted := false
	gateway.KeepRunning(f.ctx, f.jitter, func(ctx context.Context) error {
		if restarted {
			compare()
		}
		return f.watch(ctx, compare)
	}, func(err error) {
		if !restarted {
			f.log.Warn("the network is not watched until the next attempt: changes are noticed late", "err", err)
		}
		restarted = true
	})
}

// hookPeriod is the interval between calls of Config.Gateways, in addition to the calls
// before requests.
const hookPeriod = 30 * time.Second

// hookRoutes is the result of a call of Config.Gateways.
type hookRoutes struct {
	call     uint64 // sequence number, so that an older result does not replace a newer one
	gateways []discover.Gateway
	err      error
}

// find returns the default route of a family.
func (r *hookRoutes) find(fam family, iface string) (discover.Gateway, error) {
	if r == nil {
		return discover.Gateway{}, errors.New("Config.Gateways has not been called yet")
	}
	if r.err != nil {
		return discover.Gateway{}, fmt.Errorf("Config.Gateways: %w", r.err)
	}
	for _, gw := range r.gateways {
		if gw.Addr.IsValid() && familyOf(gw.Addr) == fam && (iface == "" || gw.Interface == iface) {
			if !gw.Local.IsValid() {
				gw.Local, _ = netbind.LocalAddr(gw.Addr) // if this fails, the address remains unknown
			}
			return gw, nil
		}
	}
	return discover.Gateway{}, fmt.Errorf("Config.Gateways: %w", discover.ErrNoRoute)
}

// callHook calls Config.Gateways, if it is set, and stores the result. An error does not
// replace earlier routes. If the result has changed, all routes are compared.
func (f *Forwarder) callHook(ctx context.Context) {
	hook := f.config.Gateways
	if hook == nil {
		return
	}
	result := &hookRoutes{call: f.hookCalls.Add(1)}
	bounded, cancel := context.WithTimeoutCause(ctx, f.config.DiscoveryTimeout, &gateway.TimeoutError{After: f.config.DiscoveryTimeout})
	defer cancel()
	func() {
		defer func() {
			if p := recover(); p != nil {
				result.err = fmt.Errorf("panic: %v", p)
			}
		}()
		gateways, err := hook(bounded)
		result.gateways, result.err = slices.Clone(gateways), err
	}()
	if ctx.Err() != nil && result.err != nil {
		return // the caller gave up: this is not an error of the hook
	}
	for {
		previous := f.hook.Load()
		if previous != nil && (previous.call > result.call || result.err != nil && previous.err == nil) {
			f.logHook(result.err)
			return
		}
		if f.hook.CompareAndSwap(previous, result) {
			if previous != nil && (!slices.Equal(previous.gateways, result.gateways) || fmt.Sprint(previous.err) != fmt.Sprint(result.err)) {
				f.loop.Post(func() { f.compareRoutes("") })
			}
			return
		}
	}
}

// logHook logs an error of Config.Gateways after which the earlier routes remain in use.
func (f *Forwarder) logHook(err error) {
	if err != nil {
		f.log.Warn("Config.Gateways failed: the routes that it returned before stay in use", "err", err)
	}
}

// followHook calls Config.Gateways at intervals of hookPeriod, until ctx ends.
func (f *Forwarder) followHook(ctx context.Context, _ func()) error {
	for {
		if err := ctxsync.Sleep(ctx, hookPeriod); err != nil {
			return err
		}
		f.callHook(ctx)
	}
}
