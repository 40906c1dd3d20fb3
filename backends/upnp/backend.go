package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// DefaultWait is the default of Config.Wait. DefaultLifetime is the lifetime that a Backend
// requests if the request has none.
const (
	DefaultWait     = 3 * time.Second
	DefaultLifetime = 2 * time.Hour
)

// Config contains the parameters for finding and reaching the gateway device.
// Either Gateway or URL is required.
type Config struct {
	// Gateway is the address of the gateway. A device at this address is used,
	// or another one only if there is none at this address. An IPv4 gateway
	// forwards ports, an IPv6 gateway opens pinholes, possibly through a device
	// that is reached over the other family. If Gateway is the zero Addr, Source
	// determines the family, or else URL.
	Gateway netip.Addr
	// Gateway4 is the IPv4 address of an IPv6 gateway, if it is known. A device
	// at this address counts as the gateway's.
	Gateway4 netip.Addr
	// Interface is the interface from which to send. If it is empty, the kernel
	// chooses.
	Interface string
	// Only makes the search ignore devices that are not at the address Gateway.
	// If several routers share that address, their devices are at other
	// addresses, and Only would exclude them.
	Only bool
	// Source is the local address from which to send to devices of its family,
	// and the internal address of requests without one. For a pinhole, it must
	// be the address that is opened. If it is the zero Addr, the kernel
	// chooses; a pinhole through an IPv4 device then needs an internal address.
	Source netip.Addr
	// URL is the URL of the root description of the device to use. Its host is
	// an IP address. If it is set, no search is sent.
	URL string
	// SSDP contains the addresses to which searches are sent. If it is nil,
	// they are sent to port 1900 of the gateway and to the multicast group; if
	// the gateway is on loopback, no search is sent then.
	SSDP []netip.AddrPort
	// Notify is the address on which Watch listens for notifications. The zero
	// value means the multicast group, or no address if the gateway is on
	// loopback.
	Notify netip.AddrPort
	// Announce is the address on which Watch listens for NAT-PMP and PCP
	// announcements. The zero value means the standard multicast group, or no
	// address if the gateway is on loopback.
	Announce netip.AddrPort
	// Wait bounds a search. Zero means DefaultWait.
	Wait time.Duration
	// Timeout is the Timeout of ClientConfig. Zero means DefaultTimeout.
	Timeout time.Duration
	// Logger receives a debug message for each step. If it is nil, nothing is
	// logged.
	Logger *slog.Logger
}

// Backend uses the best gateway device that it finds, and meets the contract of
// package backends. It searches for the device when the first call needs it,
// and again if the device has moved or no longer responds.
type Backend struct {
	config        Config
	is6           bool
	log           *slog.Logger
	clientConfig  ClientConfig
	searchLock    chan struct{} // a semaphore: one search at a time
	fetches       atomic.Int32  // the number of descriptions that are being fetched
	refused       atomic.Bool   // the gateway refused datagrams to the port of SSDP
	externalAge   time.Duration // maxExternalAge, except in tests
	queryInterval time.Duration // the minimum time between queries after hints
	tryFirstWait  time.Duration // for the description named by TryFirst, before a search is sent
	retryDelay    time.Duration // the pause before a request is repeated after an unexplained failure
	slowReply     time.Duration // the time of a reply from which several rows of a table are requested at a time

	calls ctxsync.Calls

	mu        sync.Mutex
	current   *gateway
	tryFirst  string             // the URL of a description that the next search fetches first, or empty
	noReplies int                // consecutive calls without a reply from current
	quirks    map[string]*quirks // for each service
	lastSeen  deviceState
	watchers  map[chan hint]struct{} // one channel for each call of Watch
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Checker = (*Backend)(nil)
	_ backends.Indexer = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New checks the config and does no I/O. Its errors wrap backends.ErrInvalid.
func New(config Config) (*Backend, error) {
	family, host := config.Gateway.Unmap(), config.Gateway.Unmap()
	if config.URL != "" {
		e, err := parseIPURL(config.URL)
		if err != nil {
			return nil, fmt.Errorf("upnp: %w", err)
		}
		host = e.addr.Addr()
		family = cmp.Or(family, config.Source.Unmap(), host)
	}
	switch {
	case !host.IsValid() || host.IsUnspecified():
		return nil, fmt.Errorf("upnp: %w: no gateway address", backends.ErrInvalid)
	case config.Source.IsValid() && config.Source.Unmap().Is4() != family.Is4():
		return nil, fmt.Errorf("upnp: %w: source %v and gateway %v are of different families", backends.ErrInvalid, config.Source, family)
	case config.Wait < 0 || config.Timeout < 0:
		return nil, fmt.Errorf("upnp: %w: negative duration", backends.ErrInvalid)
	}
	config.Gateway = host
	config.Source, config.Gateway4 = config.Source.Unmap(), config.Gateway4.Unmap()
	config.Wait = cmp.Or(config.Wait, DefaultWait)
	b := &Backend{
		config:        config,
		is6:           family.Is6(),
		log:           cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		searchLock:    make(chan struct{}, 1),
		externalAge:   maxExternalAge,
		queryInterval: queryInterval,
		retryDelay:    retryDelay,
		tryFirstWait:  tryFirstWait,
		slowReply:     slowReply,
		quirks:        map[string]*quirks{},
		watchers:      map[chan hint]struct{}{},
	}
	b.clientConfig = ClientConfig{Interface: config.Interface, Source: config.Source, Timeout: config.Timeout, Logger: config.Logger}
	return b, nil
}

// clientConfigFor returns the config for a device at an address. Source cannot
// be the source of a connection of the other family.
func (b *Backend) clientConfigFor(a netip.Addr) ClientConfig {
	config := b.clientConfig
	if config.Source.Is4() != a.Is4() {
		config.Source = netip.Addr{}
	}
	return config
}

// String returns Name.
func (b *Backend) String() string { return Name }

// Close cancels all running calls with net.ErrClosed and waits for them. It
// does not wait for the body of a loop over List or for the notify function of
// Watch, because these may call Close. It does not delete mappings. A second
// call only waits.
func (b *Backend) Close() error {
	b.calls.Close(fmt.Errorf("upnp: %w", net.ErrClosed))
	return nil
}

// Supports returns an error if UPnP cannot express the request. The device
// itself may still refuse a request that Supports accepts.
func (b *Backend) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	reason := ""
	switch {
	case r.Protocol != backends.TCP && r.Protocol != backends.UDP && !b.is6:
		reason = "it maps only TCP and UDP"
	case b.isOtherFamily(r.Internal.Addr()) || b.isOtherFamily(r.Remote.Addr()):
		reason = "the address is not of the gateway's family"
	case b.is6 && r.Exact && r.External.Port() != r.Internal.Port():
		reason = "an IPv6 pinhole does not translate ports"
	case b.is6 && r.Lifetime == backends.Forever:
		reason = "an IPv6 pinhole lasts at most one day"
	case !b.is6 && r.Remote.Port() != 0:
		reason = "it cannot restrict a mapping to one port of a peer"
	case !b.is6 && r.Exact && r.External.Addr().IsValid() && !r.External.Addr().IsUnspecified():
		reason = "it cannot choose the external address"
	default:
		return nil
	}
	return fmt.Errorf("upnp: %w: %s", backends.ErrUnsupported, reason)
}

// isOtherFamily reports whether a valid address is not of the gateway's family.
func (b *Backend) isOtherFamily(a netip.Addr) bool {
	return a.IsValid() && a.Unmap().Is6() != b.is6
}

// Promising reports whether a running search should continue. It returns false if
// the gateway has refused port 1900, and no description is being fetched.
func (b *Backend) Promising() bool { return b.fetches.Load() > 0 || !b.refused.Load() }

// OtherDevice returns the address of the device in use if it is not the gateway's.
func (b *Backend) OtherDevice() (a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && !b.current.Default {
		a = b.current.Device.Host
	}
	return a
}

// tryFirstWait is how long a search waits for the description that TryFirst named, if the search
// belongs to no probe that is repeated.
const tryFirstWait = 250 * time.Millisecond

// DeviceURL returns the URL of the root description of the device in use. It is empty if there
// is no such device, or if the device is not the gateway's.
func (b *Backend) DeviceURL() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil || !b.current.Default {
		return ""
	}
	return b.current.Device.URL
}

// TryFirst makes the next search fetch the description at this URL first, for example because
// the device had it in an earlier run of the program. If that fails, or takes long, the search
// continues as usual. The call has no effect if the host of the URL is not the gateway.
func (b *Backend) TryFirst(url string) {
	if e, err := parseIPURL(url); err != nil || !b.isGateway(e.addr.Addr()) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tryFirst = url
}

// Probe searches for the device.
func (b *Backend) Probe(ctx context.Context) error {
	ctx, end, err := b.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = b.gateway(ctx)
	return err
}

// ExternalAddr requests the external address from the device. The result is the
// zero Addr if the device does not report the address. Over IPv6, it is this
// host's own address, because nothing is translated.
func (b *Backend) ExternalAddr(ctx context.Context) (addr netip.Addr, err error) {
	err = b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		if b.is6 {
			addr = g.Device.Local
			return nil
		}
		addr, err = g.client.ExternalAddr(ctx)
		return err
	})
	return addr, err
}

// maxNoReplies is the number of consecutive calls without a reply after which
// the next call searches for the device again. A single call is not enough,
// because a search takes longer than a request, and a silent device does not
// respond to it either.
const maxNoReplies = 2

// countNoReply counts consecutive calls without a reply. It reports whether
// there were at least maxNoReplies of them.
func (b *Backend) countNoReply(err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !errors.Is(err, backends.ErrNoReply) {
		b.noReplies = 0
		return false
	}
	b.noReplies++
	return b.noReplies >= maxNoReplies
}

// withDevice calls f with the device. If the error of f shows that the device
// has moved (Moved), withDevice searches for the device and calls f once more.
func (b *Backend) withDevice(ctx context.Context, f func(context.Context, *gateway) error) error {
	ctx, end, err := b.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	g, err := b.gateway(ctx)
	if err != nil {
		return err
	}
	err = f(ctx, g)
	moved := Moved(err) && ctx.Err() == nil
	if b.countNoReply(err) || moved {
		b.forget(g) // the next call searches, because the device may have moved
	}
	if !moved {
		return err
	}
	b.log.Debug("upnp: the device has moved", "url", g.Device.URL, "err", err)
	if g, err = b.gateway(ctx); err != nil {
		return err
	}
	return f(ctx, g)
}

// maxExternalAge is the maximum age of the external address that is returned
// with a new mapping. The context can require a newer address.
const maxExternalAge = time.Minute

// recentExternal returns the external address of a service, for a mapping with the lifetime. It
// sends a request only if the last reported address is older than maxExternalAge.
func (b *Backend) recentExternal(ctx context.Context, c *Client, lifetime time.Duration) (external netip.Addr, err error) {
	const part = 4 // of the lifetime: mappings that are renewed often show a change sooner
	maxAge := min(b.externalAge, lifetime/part)
	if last := c.lastExternal.Load(); last != nil && time.Since(last.received) < maxAge && ctxsync.IsFresh(ctx, last.received) {
		return last.addr, nil
	}
	err = b.ask(ctx, c, "GetExternalIPAddress", func(ctx context.Context) (err error) {
		external, err = c.ExternalAddr(ctx)
		return err
	})
	return external, err
}
