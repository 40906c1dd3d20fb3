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

// The defaults of Config.
const (
	DefaultWait     = 3 * time.Second
	DefaultLifetime = 2 * time.Hour
)

// Config says where the gateway device is looked for, and how it is reached.
// Either Gateway or URL is required.
type Config struct {
	// Gateway is the address of the gateway: its device is the preferred one. An
	// IPv4 gateway forwards ports, an IPv6 gateway opens pinholes.
	Gateway netip.Addr
	// Interface is the interface to leave by. Empty: the kernel's choice.
	Interface string
	// Only takes no other device than one at Gateway itself. Where routers share
	// an address, their devices answer from others.
	Only bool
	// Source is the local address to ask from. Of a pinhole it must be the address
	// that is opened. The zero Addr: the kernel's choice.
	Source netip.Addr
	// URL is the root description of the device to use: none is looked for. Its
	// host is an IP address.
	URL string
	// SSDP is where searches are sent. Nil: to port 1900 of the gateway and to the
	// multicast group, or nowhere where the gateway is on loopback.
	SSDP []netip.AddrPort
	// Notify is where notifications are listened for, while somebody calls Watch.
	// The zero value: the multicast group.
	Notify netip.AddrPort
	// Wait bounds a search. Zero: DefaultWait.
	Wait time.Duration
	// Timeout is that of ClientConfig. Zero: DefaultTimeout.
	Timeout time.Duration
	// Logger is told of each step, at debug level. Nil: nobody.
	Logger *slog.Logger
}

// Backend uses the gateway device that it finds best, and meets the contract of
// package backends. It looks for the device when it needs it first, and again
// when that has moved or has gone.
type Backend struct {
	config       Config
	is6          bool
	log          *slog.Logger
	clientConfig ClientConfig
	searchLock   chan struct{} // one looks for the device at a time
	// fetching is how many descriptions are being fetched, and met how many devices
	// have been found by searches that go on, for a better one.
	fetches, usable atomic.Int32
	queryInterval   time.Duration // the questions that hints lead to
	retryDelay      time.Duration // before a device that failed is asked again

	calls ctxsync.Calls

	mu           sync.Mutex
	current      *gateway
	noReplies    int                // of it, in a row
	quirks       map[string]*quirks // by UDN
	external     netip.Addr         // as last told
	externalTime time.Time
	lastSeen     deviceState
	watchers     map[chan hint]struct{} // of watchers
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Indexer = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New checks the config, whose errors wrap backends.ErrInvalid, and does no I/O.
func New(config Config) (*Backend, error) {
	host := config.Gateway.Unmap()
	if config.URL != "" {
		e, err := parseEndpoint(config.URL)
		if err != nil {
			return nil, fmt.Errorf("upnp: %w", err)
		}
		host = e.addr.Addr()
	}
	switch {
	case !host.IsValid() || host.IsUnspecified():
		return nil, fmt.Errorf("upnp: %w: no gateway address", backends.ErrInvalid)
	case config.Source.IsValid() && config.Source.Unmap().Is4() != host.Is4():
		return nil, fmt.Errorf("upnp: %w: source %v and gateway %v are of different families", backends.ErrInvalid, config.Source, host)
	case config.Wait < 0 || config.Timeout < 0:
		return nil, fmt.Errorf("upnp: %w: negative duration", backends.ErrInvalid)
	}
	config.Gateway = host
	config.Source = config.Source.Unmap()
	config.Wait = cmp.Or(config.Wait, DefaultWait)
	b := &Backend{
		config:        config,
		is6:           host.Is6(),
		log:           cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		searchLock:    make(chan struct{}, 1),
		queryInterval: queryInterval,
		retryDelay:    retryDelay,
		quirks:        map[string]*quirks{},
		watchers:      map[chan hint]struct{}{},
	}
	b.clientConfig = ClientConfig{Interface: config.Interface, Source: config.Source, Timeout: config.Timeout, Logger: config.Logger}
	return b, nil
}

// String returns Name.
func (b *Backend) String() string { return Name }

// Close ends the calls under way, with net.ErrClosed, and waits for them, but not
// for the body of a loop over List or the notify of Watch: both may call it. It
// deletes no mapping. A second call only waits.
func (b *Backend) Close() error {
	b.calls.Close(fmt.Errorf("upnp: %w", net.ErrClosed))
	return nil
}

// Supports says why UPnP cannot express a request, if so. What the device at
// hand can do, it tells when asked.
func (b *Backend) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	reason := ""
	switch {
	case r.Protocol != backends.TCP && r.Protocol != backends.UDP && !b.is6:
		reason = "it maps TCP and UDP only"
	case b.isOtherFamily(r.Internal.Addr()) || b.isOtherFamily(r.Remote.Addr()):
		reason = "the address is not of the gateway's family"
	case b.is6 && r.Exact && r.External.Port() != r.Internal.Port():
		reason = "an IPv6 pinhole translates no port"
	case b.is6 && r.Lifetime == backends.Forever:
		reason = "an IPv6 pinhole lasts a day at most"
	case !b.is6 && r.Remote.Port() != 0:
		reason = "it cannot admit a single port of a peer"
	case !b.is6 && r.Exact && r.External.Addr().IsValid() && !r.External.Addr().IsUnspecified():
		reason = "it cannot choose the external address"
	default:
		return nil
	}
	return fmt.Errorf("upnp: %w: %s", backends.ErrUnsupported, reason)
}

// foreign reports whether an address that was named is of the other family.
func (b *Backend) isOtherFamily(a netip.Addr) bool {
	return a.IsValid() && a.Unmap().Is6() != b.is6
}

// Promising reports whether a search is under way that somebody has answered, who
// is being asked now, or waits for a better one.
func (b *Backend) Promising() bool { return b.fetches.Load() > 0 || b.usable.Load() > 0 }

// Probe looks for the device.
func (b *Backend) Probe(ctx context.Context) error {
	ctx, end, err := b.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = b.gateway(ctx)
	return err
}

// ExternalAddr asks the device for its external address, which is the zero Addr
// where it does not know. Over IPv6 it is this host's own: nothing is translated.
func (b *Backend) ExternalAddr(ctx context.Context) (addr netip.Addr, err error) {
	err = b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		if b.is6 {
			addr = g.Device.Local
			return nil
		}
		addr, err = g.client.ExternalAddr(ctx)
		if err == nil {
			b.setExternal(addr)
		}
		return err
	})
	return addr, err
}

// giveUpAfter is how often in a row a device that is silent is asked where it was
// found: to look for it again takes longer, and finds it as silent.
const maxNoReplies = 2

// silent counts how often in a row the device did not answer, and reports whether
// that is enough.
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

// do does something with the device. Where that has moved, which refuses the
// connection, it is looked for again, once.
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
		b.forget(g) // it may be elsewhere when somebody asks again
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

// recentEnough is how old a told external address may be to go with a mapping
// granted now: mappings that are made or renewed together ask once.
const maxExternalAge = time.Second

// recentExternal returns the external address for a mapping granted now, or the
// zero Addr where the device will not tell: that is no reason not to map.
func (b *Backend) recentExternal(ctx context.Context, g *gateway) (netip.Addr, error) {
	b.mu.Lock()
	external, queried := b.external, b.externalTime
	b.mu.Unlock()
	if !queried.IsZero() && time.Since(queried) < maxExternalAge {
		return external, nil
	}
	external, err := g.client.ExternalAddr(ctx)
	if err != nil {
		if errors.Is(err, backends.ErrNoReply) || ctx.Err() != nil {
			return netip.Addr{}, err
		}
		external = netip.Addr{}
	}
	b.setExternal(external)
	return external, nil
}

func (b *Backend) setExternal(external netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.external, b.externalTime = external, time.Now()
}
