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
	"unique"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
)

// opener makes the backend of one protocol for a way, without I/O, and the
// question that tells whether the gateway speaks it.
type opener struct {
	name string
	open func(*Forwarder, wayKey) (backends.Backend, func(context.Context) error, error)
	// ipv4 and ipv6 are the families of gateways that the protocol is for.
	ipv4, ipv6 bool
	// searches is whether the gateway is not simply asked: its device is searched
	// for, by a socket of its own.
	searches bool
}

// openers are the protocols that there are, the preferred first.
var openers = []opener{
	{name: natpmp.Name, open: openNATPMP, ipv4: true},
	{name: pcp.Name, open: openPCP, ipv4: true, ipv6: true},
	{name: upnp.Name, open: openUPnP, ipv4: true, ipv6: true, searches: true},
}

func openerNames() []string {
	var names []string
	for _, o := range openers {
		names = append(names, o.name)
	}
	return names
}

// How a request is repeated: some leases last a minute, and a link that loses
// packets loses several in a row. The longest wait is for how long a transmission
// holds the gateway's queue; all of them together take fourteen seconds, in which
// a slow gateway answers.
const (
	longestWait   = time.Second
	transmissions = 15
)

func openNATPMP(f *Forwarder, k wayKey) (backends.Backend, func(context.Context) error, error) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: k.gateway, Interface: k.iface, Source: k.source, Transmissions: transmissions, LongestWait: longestWait,
		Announce: f.config.Announce, Logger: f.config.Logger,
	})
	if err != nil {
		return nil, nil, err
	}
	return b, b.Probe, nil
}

func openPCP(f *Forwarder, k wayKey) (backends.Backend, func(context.Context) error, error) {
	config := pcp.Config{
		Gateway: k.gateway, Interface: k.iface, Source: k.source,
		// The standard's pace is for requests that nobody waits for.
		FirstWait: natpmp.DefaultFirstWait, Transmissions: transmissions, LongestWait: longestWait,
		Announce: f.config.Announce, Logger: f.config.Logger,
	}
	if key := f.config.NonceKey; key != nil {
		config.Nonce = func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce(key, gateway, p, internal)
		}
	}
	b, err := pcp.New(config)
	if err != nil {
		return nil, nil, err
	}
	return b, b.Probe, nil
}

func openUPnP(f *Forwarder, k wayKey) (backends.Backend, func(context.Context) error, error) {
	config := upnp.Config{
		Gateway: k.gateway.Addr(), Interface: k.iface, Source: k.source,
		Only: k.gateway == f.config.Gateway, Notify: f.config.Notify, Logger: f.config.Logger,
		Wait: f.config.Wait - f.config.Wait/8, // what it has found by then is better than nothing
	}
	if host, err := igdHost(f.config.IGD); err == nil && familyOf(host) == familyOf(k.gateway.Addr()) {
		config.URL = f.config.IGD
	}
	if f.config.SSDP.IsValid() {
		config.SSDP = []netip.AddrPort{f.config.SSDP}
	}
	b, err := upnp.New(config)
	if err != nil {
		return nil, nil, err
	}
	return b, b.Probe, nil
}

// igdHost is the address in the URL of a root description.
func igdHost(raw string) (netip.Addr, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" {
		return netip.Addr{}, fmt.Errorf("%q is no plain http URL", raw)
	}
	return netip.ParseAddr(u.Hostname())
}

// wayKey tells ways apart: one address can be another gateway on another
// interface.
type wayKey struct {
	gateway netip.AddrPort
	iface   string
	source  netip.Addr
}

// way leads to a gateway, with the backends that could work there.
type way struct {
	key        wayKey
	local      netip.Addr   // that the gateway sees; the zero Addr where it is not known
	candidates []*candidate // the preferred first

	// Of who has the turn to choose.
	probed  time.Time // when nobody answered
	silence error     // what came of that

	// Guarded by Forwarder.mu.
	strayed string // why it no longer leads out, or empty
	stale   bool   // what leads out has the same key, and this host another address
}

// candidate is a backend of a way, and what is known of it.
type candidate struct {
	backend backends.Backend
	probe   func(context.Context) error // nil: it needs none
	opener  opener                      // the zero value for one that was ready-made
	way     *way                        // nil for one that was ready-made

	// Guarded by Forwarder.mu.
	verdict verdict
	failure error // of a probe
	judged  time.Time
	watched bool
	pace    pacer     // of recoveries
	lost    time.Time // when its gateway last lost its state, where it told
}

// verdict is what probing a candidate came to.
type verdict uint8

const (
	unknown verdict = iota
	speaks
	fails
)

// identity returns what tells a mapping apart by this candidate. However this
// host is named, it is the same one.
func (w *way) identity(c *candidate, p backends.Protocol, internal netip.AddrPort) identity {
	at := place{way: c.backend, backend: c.backend.String(), internal: internal.Addr()}
	if addr := internal.Addr().Unmap(); addr.IsUnspecified() || addr.IsValid() && addr == w.local {
		at.internal = netip.Addr{}
	}
	if gw := w.key.gateway; gw.IsValid() { // however the way was found; nobody knows the gateway of a ready-made backend
		at.way = gatewayKey{netip.AddrPortFrom(gw.Addr().Unmap(), cmp.Or(gw.Port(), natpmp.Port)), w.local}
	}
	return identity{unique.Make(at), p, internal.Port()}
}

// gatewayKey is a gateway as this host's address sees it.
type gatewayKey struct {
	gateway netip.AddrPort
	local   netip.Addr
}

// family is that of a way's gateway.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

// way returns the way to use just now, without asking anybody on it. One that
// is come back to is asked anew: another network can look just like it.
func (f *Forwarder) way(fam family) (*way, error) {
	if f.readyMade != nil {
		return f.readyMade, nil
	}
	k, err := f.locate(fam)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.ways[k]
	if w != nil && w.stale {
		f.retire(w)
		w = nil
	}
	if w == nil {
		if w, err = f.open(k); err != nil {
			return nil, err
		}
		f.ways[k] = w
	}
	if before := f.current[fam]; w != before {
		if before != nil && before.strayed == "" { // whoever comes first notices
			before.strayed = fmt.Sprintf("the way out is another: %v by %s", k.gateway.Addr(), k.iface)
			nudge(f.strays)
		}
		f.current[fam] = w
		w.strayed = ""
		w.forget()
	}
	return w, nil
}

// retire keeps a way for what was granted on it only. Forwarder.mu is held.
func (f *Forwarder) retire(w *way) {
	delete(f.ways, w.key)
	f.retired = append(f.retired, w)
}

// forget makes the next call probe anew. Forwarder.mu is held.
func (w *way) forget() {
	for _, c := range w.candidates {
		c.verdict, c.failure = unknown, nil
	}
}

// locate finds the way to use. A gateway that was named is that of its own
// family; for the other, the kernel's is.
func (f *Forwarder) locate(fam family) (wayKey, error) {
	if familyOf(f.config.Source) == fam {
		if err := f.config.checkSource(); err != nil {
			return wayKey{}, err
		}
	}
	if gw := f.config.Gateway; gw.IsValid() && familyOf(gw.Addr()) == fam {
		return wayKey{gw, f.config.Interface, f.config.Source}, nil
	}
	gw, err := f.leadsOut(fam)
	switch {
	case err != nil:
		return wayKey{}, fmt.Errorf("%w: %w\n  → connect this host to a network, or name the gateway", ErrNoGateway, err)
	case !gw.Addr.IsValid():
		return wayKey{}, fmt.Errorf("%w: the way out, %s, has no next hop, as in a tunnel\n  → name the gateway: the VPN's provider tells its address",
			ErrNoGateway, gw.Interface)
	}
	source := gw.Local
	if f.config.Source.IsValid() && familyOf(f.config.Source) == fam {
		source = f.config.Source
	} else if fam == ipv6 {
		source = discover.Stable(gw)
	}
	return wayKey{netip.AddrPortFrom(gw.Addr, 0), gw.Interface, source}, nil
}

func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// leadsOut is the kernel's way to the internet or, where an interface is named,
// the best through that.
func (f *Forwarder) leadsOut(fam family) (discover.Gateway, error) {
	if f.config.Interface == "" {
		return f.routes[fam]()
	}
	all, err := discover.Gateways()
	if err != nil {
		return discover.Gateway{}, err
	}
	for _, gw := range all {
		if gw.Interface == f.config.Interface && familyOf(gw.Local) == fam {
			return gw, nil
		}
	}
	return discover.Gateway{}, fmt.Errorf("no default route through interface %q", f.config.Interface)
}

// open makes a way.
func (f *Forwarder) open(k wayKey) (*way, error) {
	w := &way{key: k, local: k.source}
	if !w.local.IsValid() && k.iface == "" {
		w.local, _ = localToward(f.ctx, k.gateway.Addr()) // without it, it is not known
	}
	if !k.source.IsValid() {
		k.source = w.local // what is asked on this way is asked from that address, or not at all
	}
	fam := familyOf(k.gateway.Addr())
	for _, name := range f.config.Order {
		o := openers[slices.IndexFunc(openers, func(o opener) bool { return o.name == name })]
		if fam == ipv4 && !o.ipv4 || fam == ipv6 && !o.ipv6 {
			continue
		}
		b, probe, err := o.open(f, k)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("forward: %w", err), w.close())
		}
		w.candidates = append(w.candidates, &candidate{backend: b, probe: probe, opener: o, way: w})
	}
	if fam == ipv4 && backends.ScopeOf(k.source) == backends.ScopePublic {
		w.candidates = append(w.candidates, &candidate{backend: direct{k.source}, way: w})
	}
	if len(w.candidates) == 0 {
		return nil, fmt.Errorf("forward: %w: no gateway at %v speaks %s", backends.ErrUnsupported, k.gateway.Addr(), strings.Join(f.config.Order, " or "))
	}
	return w, nil
}

// localToward returns the local address that the kernel uses toward another. It
// sends nothing.
func localToward(ctx context.Context, addr netip.Addr) (netip.Addr, error) {
	const anyPort = 9 // connecting a datagram socket sends nothing
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(addr, anyPort).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return local.Addr().Unmap(), err
}

func (w *way) close() error {
	var errs []error
	for _, c := range w.candidates {
		errs = append(errs, c.backend.Close())
	}
	return errors.Join(errs...)
}
