package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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
)

// family is that of a gateway's address.
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

// place is a gateway, and from where on this host it is asked.
type gatewayPath struct {
	gateway netip.AddrPort // with the port that was named, or 0
	iface   string
	source  netip.Addr // as configured or found
	local   netip.Addr // the effective source; the zero Addr: not known
}

// key identifies the owner of the place's gateway.
func (p gatewayPath) ownerKey() gateway.Key {
	addr := p.gateway.Addr().Unmap()
	return gateway.Key{Gateway: netip.AddrPortFrom(addr, cmp.Or(p.gateway.Port(), natpmp.Port)), Local: p.local}
}

// route leads to a gateway. The loop owns it, but for what never changes.
type route struct {
	path     gatewayPath     // never changes; zero for ready-made backends
	client   *gateway.Client // never changes
	unusable string          // why it is not the default route, or empty
	users    int             // calls that use it
}

// selectGateway returns the route to use, on which at least one backend answers. It is
// in use until done is called.
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

// attach makes the owner of a mapping's gateway answer for it, which requests it at a
// time, unless that is zero.
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

// currentRoute compares the route in use with the default route, and returns the one to
// use. It runs on the loop, which alone compares routes.
func (f *Forwarder) currentRoute(fam family) (*route, error) {
	var (
		p   gatewayPath
		err error
	)
	if len(f.config.Backends) > 0 {
		fam = ipv4 // whatever the family: they do not tell
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

// move attaches the mappings of a route to another.
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

// join returns the route to a place. One that is returned to is asked anew what it speaks:
// another network can look just like it.
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
	}
	if len(configs) == 0 {
		return nil, fmt.Errorf("forward: %w: no gateway at %v speaks %s", backends.ErrUnsupported, p.gateway.Addr(), strings.Join(f.config.Protocols, " or "))
	}
	c, err := f.registry.Join(key, configs, sink{f})
	if err != nil {
		return nil, err
	}
	r := &route{path: p, client: c}
	f.routes = append(f.routes, r)
	f.store.restore(r)
	return r, nil
}

// backendConfigs returns how to make the backends that the config names for a place.
func (f *Forwarder) backendConfigs(p gatewayPath) []gateway.BackendConfig {
	fam := familyOf(p.gateway.Addr())
	common := gateway.BackendConfig{
		Interface: p.iface, Nonce: string(f.config.NonceKey), Only: p.gateway == f.config.Gateway,
		Announce: f.config.Test.Announce, SSDP: f.config.Test.SSDP, Notify: f.config.Test.Notify,
		Wait: f.config.DiscoveryTimeout - f.config.DiscoveryTimeout/8, // what a search has found by then is better than nothing
	}
	if host, err := upnpHost(f.config.UPnPURL); err == nil && familyOf(host) == fam {
		common.URL = f.config.UPnPURL
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

// upnpHost is the address in the URL of a root description.
func upnpHost(raw string) (netip.Addr, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" {
		return netip.Addr{}, fmt.Errorf("%q is no plain http URL", raw)
	}
	return netip.ParseAddr(u.Hostname())
}

// locate finds the gateway to use. A gateway that was named is that of its own family;
// for the other, the default route's is.
func (f *Forwarder) findPath(fam family) (gatewayPath, error) {
	if familyOf(f.config.Source) == fam {
		if err := f.config.checkSource(); err != nil {
			return gatewayPath{}, err
		}
	}
	if gw := f.config.Gateway; gw.IsValid() && familyOf(gw.Addr()) == fam {
		p := gatewayPath{gateway: gw, iface: f.config.Interface, source: f.config.Source, local: f.config.Source}
		if !p.local.IsValid() && p.iface == "" {
			p.local, _ = localAddrFor(gw.Addr()) // without it, it is not known
		}
		return p, nil
	}
	gw, err := f.defaultRoute(fam)
	switch {
	case err != nil:
		return gatewayPath{}, fmt.Errorf("%w: %w\n  → connect this host to a network, or name the gateway", ErrNoGateway, err)
	case !gw.Addr.IsValid():
		return gatewayPath{}, fmt.Errorf("%w: the default route, by %s, has no next hop, as in a tunnel\n  → name the gateway: the VPN's provider tells its address",
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

// defaultRoute is the default route that Config.Gateways or the kernel tells or, if an
// interface is named, the best through that.
func (f *Forwarder) defaultRoute(fam family) (discover.Gateway, error) {
	if f.config.Gateways != nil {
		return f.hook.Load().find(fam, f.config.Interface)
	}
	if f.config.Interface == "" {
		return f.defaultRoutes[fam]()
	}
	return discover.Through(f.config.Interface, fam == ipv6)
}

// localToward returns the local address that the kernel uses toward another. It
// sends nothing.
func localAddrFor(addr netip.Addr) (netip.Addr, error) {
	const anyPort = 9 // connecting a datagram socket sends nothing
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, anyPort)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return local.Addr().Unmap(), err
}

// whyNowhere says why no route is usable.
func (f *Forwarder) unusableReason(err error) string {
	if errors.Is(err, backends.ErrInvalid) {
		return fmt.Sprintf("this host no longer has the address %v", f.config.Source)
	}
	return "there is no default route"
}

// whyElsewhere says how the route to use differs from the one before.
func moveReason(before, now gatewayPath) string {
	if before.gateway == now.gateway && before.iface == now.iface {
		return fmt.Sprintf("this host's address is another: %v", now.local)
	}
	return fmt.Sprintf("the default route is another: %v by %s", now.gateway.Addr(), now.iface)
}

// setUnusable records that a route is not the default route, or for another reason.
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

// setUsable records that a route is the default route again.
func (f *Forwarder) setUsable(r *route) {
	if r.unusable != "" {
		r.unusable = ""
		r.client.SetUsable("the default route is back", f.verifyLimit.Next(time.Now()))
	}
}

// tidy leaves the gateways that are neither in use nor on the default route.
func (f *Forwarder) closeUnusedRoutes() {
	f.routes = slices.DeleteFunc(f.routes, func(r *route) bool {
		inUse := r.users > 0 || slices.Contains(f.current[:], r) || r.client.InUse()
		if !inUse {
			f.work.Go(func() {
				ctx, cancel := context.WithTimeoutCause(context.Background(), routeCloseTimeout, &gateway.TimeoutError{After: routeCloseTimeout})
				defer cancel()
				if err := f.closeRoute(ctx, r); err != nil {
					f.log.Warn("a mapping remains at a gateway that was left", "gateway", r.path.gateway.Addr(), "err", err)
				}
			})
		}
		return !inUse
	})
}

// leaveTime bounds the wait for a gateway that was left.
const routeCloseTimeout = time.Second

// leave deletes what is left at the gateway of a route, and keeps records of what remains.
func (f *Forwarder) closeRoute(ctx context.Context, r *route) error {
	records, err := r.client.Close(ctx)
	f.loop.Do(func() { f.store.unassigned = append(f.store.unassigned, records...) })
	return err
}

// The machine slept, or its clock was set, if the wall clock has gone on by more than
// the monotonic one, which stands still in sleep on most systems: the timers are late
// then.
const (
	clockPeriod    = 30 * time.Second
	clockTolerance = 5 * time.Second
)

func (f *Forwarder) startClock() {
	f.clockCheckedAt = time.Now()
	f.loop.Arm(&f.clockTimer, f.clockCheckedAt.Add(clockPeriod))
}

// compareClocks notices that the machine slept.
func (f *Forwarder) compareClocks() {
	now := time.Now()
	if wall := now.Round(0).Sub(f.clockCheckedAt.Round(0)); (wall - now.Sub(f.clockCheckedAt)).Abs() > clockTolerance {
		f.compareRoutes("the machine slept, or its clock was set")
	} else {
		f.compareRoutesIfUnrouted()
	}
	f.startClock()
}

// look compares the routes in use with the default routes, and attaches what had none. A
// reason says what happened to all mappings.
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

// lookIfUnrouted compares routes if mappings are without one: there may be one by now.
func (f *Forwarder) compareRoutesIfUnrouted() {
	if slices.ContainsFunc(f.held, func(m *Mapping) bool { return m.handle.Client() == nil }) ||
		slices.ContainsFunc(f.current[:], func(r *route) bool { return r != nil && r.unusable != "" }) {
		f.compareRoutes("")
	}
}

// followNetwork compares routes at each change of the network, until the Forwarder
// ends. A watch that failed is started again.
func (f *Forwarder) followNetwork() {
	look := func() { f.loop.Post(func() { f.compareRoutes("") }) }
	restarted := false
	gateway.KeepRunning(f.ctx, f.jitter, func(ctx context.Context) error {
		if restarted {
			look()
		}
		return f.watch(ctx, look)
	}, func(err error) {
		if !restarted {
			f.log.Warn("the network is not watched for a while: changes are noticed late", "err", err)
		}
		restarted = true
	})
}

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
				gw.Local, _ = localAddrFor(gw.Addr) // without it, it is not known
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
		return // the caller gave up, which says nothing of the routes
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
