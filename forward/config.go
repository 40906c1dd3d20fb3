package forward

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/netbind"
)

// The defaults of Config.
const (
	DefaultDiscoveryTimeout = 3 * time.Second
	DefaultRequestTimeout   = 15 * time.Second
	DefaultCloseTimeout     = 2 * time.Second
	DefaultLifetime         = 2 * time.Hour
)

// Config says how a Forwarder works. Nil and the zero value are valid.
type Config struct {
	// DiscoveryTimeout bounds the search for a gateway that answers. Zero:
	// DefaultDiscoveryTimeout.
	DiscoveryTimeout time.Duration
	// RequestTimeout bounds a call whose context has no deadline, and each attempt in
	// the background. Deleting what a failed attempt was granted can take a second
	// more. Zero: DefaultRequestTimeout.
	RequestTimeout time.Duration
	// CloseTimeout bounds each Close, of a Forwarder, Mapping, Listener or PacketConn, if
	// the gateway does not answer. While it keeps answering and deletions remain, Close
	// takes up to 15 seconds, or CloseTimeout if that is longer. Zero:
	// DefaultCloseTimeout.
	CloseTimeout time.Duration
	// Protocols names the protocols to use, the preferred first. Nil: "natpmp", "pcp",
	// "upnp".
	Protocols []string
	// Backends are ready-made backends to use instead of Protocols, in this order. No
	// gateway is searched for. The caller closes them.
	Backends []backends.Backend
	// Gateway is the address of the gateway to ask. A bare address, which has port 0, is
	// asked at the port of each protocol. The zero value: the gateway that the kernel
	// uses to reach the internet.
	Gateway netip.AddrPort
	// Gateways returns the default routes of this host, at most one of each address
	// family, in place of the kernel's. It is for systems on which an app may not read
	// routes, such as Android and iOS: read them from the system's API. An empty list says
	// that there is no network. After an error, what it returned before stays in use.
	//
	// It is called before requests and every 30 seconds, within DiscoveryTimeout, also by
	// several goroutines at once. Enable with Background, Listen and Close wait for it too,
	// so it must obey its context, and may not use the Forwarder. Call Refresh when the system reports another network. Nil: the kernel is asked.
	Gateways func(context.Context) ([]discover.Gateway, error)
	// Interface is the interface to send requests by. Empty: the one that leads to the
	// gateway.
	Interface string
	// Source is the local address to send requests from, which is the one that gets the
	// mappings. Calls that need a gateway of its family fail with backends.ErrInvalid
	// while this host does not have it. The zero Addr: the one that the kernel uses.
	Source netip.Addr
	// UPnPURL is the URL of a UPnP root description, with an IP address as its host. That
	// device is used, and no other is searched for. If Gateway is zero, the host is the
	// gateway. Empty: the device of the gateway, or else the best one.
	UPnPURL string
	// Lifetime is the lifetime to request, if no option names another. Zero:
	// DefaultLifetime.
	Lifetime time.Duration
	// Description is what the gateway shows in its table, if the protocol has one.
	// Empty: "goforward".
	Description string
	// NonceKey is a secret from which PCP nonces are derived. A later process with the
	// same key can renew and delete what this one mapped. Nil: only this process can.
	NonceKey []byte
	// StateFile is the path of a file that records the mappings, with the secrets that
	// renew them. The next run of the program takes them over, with their external
	// ports, and deletes what is not enabled again within half a minute. The file is
	// written atomically and is readable by its owner alone. It is locked: one Forwarder
	// uses it at a time, and another waits until it is free. A file with invalid contents
	// is renamed to end in ".damaged", or ".damaged.2" and so on. That, and a file that
	// cannot be read or written now, is logged, and nothing fails. Empty: none.
	StateFile string
	// Logger logs what the Forwarder does. Nil: nothing is logged.
	Logger *slog.Logger
	// OnEvent is called for each event, in the order in which they happened, one after
	// another, on a goroutine of its own. It may block and call anything, also Close. A
	// panic in it is logged and harms nothing. Nil: none. See also [OnChange].
	OnEvent func(Event)
	// Test is for tests: gatewaytest's Gateway.Config fills it. The zero value: none.
	Test TestNetwork
}

// TestNetwork has addresses that replace those that the standards fix, so that a test
// router can be used on loopback.
type TestNetwork struct {
	// Announce is where announcements of gateways are received. Zero: 224.0.0.1:5350.
	// For a gateway on loopback: nowhere.
	Announce netip.AddrPort
	// SSDP is where UPnP devices are searched. Zero: port 1900 of the gateway, and
	// 239.255.255.250:1900. For a gateway on loopback: nowhere.
	SSDP netip.AddrPort
	// Notify is where notifications of UPnP devices are received. Zero:
	// 239.255.255.250:1900. For a gateway on loopback: nowhere.
	Notify netip.AddrPort
}

// check returns a copy with the defaults filled in, or ErrInvalid.
func (c *Config) check() (Config, error) {
	var out Config
	if c != nil {
		out = *c
	}
	out.Protocols, out.Backends, out.NonceKey = slices.Clone(out.Protocols), slices.Clone(out.Backends), slices.Clone(out.NonceKey)
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"DiscoveryTimeout", out.DiscoveryTimeout}, {"RequestTimeout", out.RequestTimeout}, {"CloseTimeout", out.CloseTimeout}, {"Lifetime", out.Lifetime}} {
		if d.value < 0 {
			return Config{}, invalid("Config.%s is negative", d.name)
		}
	}
	for _, name := range out.Protocols {
		if _, is := gateway.Find(name); !is {
			return Config{}, invalid("Config.Protocols: no protocol %q, there is %v", name, gateway.Names())
		}
	}
	for _, b := range out.Backends {
		if b == nil || !reflect.TypeOf(b).Comparable() {
			return Config{}, invalid("Config.Backends: a backend must be a pointer")
		}
	}
	if gw := out.Gateway; gw != (netip.AddrPort{}) && (!gw.Addr().IsValid() || gw.Addr().IsUnspecified()) {
		return Config{}, invalid("Config.Gateway has no address")
	}
	if out.UPnPURL != "" {
		host, err := upnpHost(out.UPnPURL)
		if err != nil {
			return Config{}, invalid("Config.UPnPURL: %v", err)
		}
		if !out.Gateway.IsValid() {
			out.Gateway = netip.AddrPortFrom(host.Unmap(), 0)
		}
	}
	if gw := out.Gateway.Addr(); out.Source.IsValid() && gw.IsValid() && familyOf(out.Source) != familyOf(gw) {
		return Config{}, invalid("Config.Source %v and Config.Gateway %v are of different families", out.Source, gw)
	}
	out.DiscoveryTimeout = cmp.Or(out.DiscoveryTimeout, DefaultDiscoveryTimeout)
	out.RequestTimeout = cmp.Or(out.RequestTimeout, DefaultRequestTimeout)
	out.CloseTimeout = cmp.Or(out.CloseTimeout, DefaultCloseTimeout)
	out.Lifetime = cmp.Or(out.Lifetime, DefaultLifetime)
	out.Description = cmp.Or(out.Description, "goforward")
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	if out.Protocols == nil {
		out.Protocols = gateway.Names()
	}
	return out, nil
}

// checkSource returns ErrInvalid if Source is not an address of this host now. Without
// this check, a public address of another host would count as one that needs no
// mapping.
func (c *Config) checkSource() error {
	if c.Source.IsValid() && !netbind.HasAddr(c.Source) {
		return invalid("the source address %v is %w", c.Source, netbind.ErrNotHere)
	}
	return nil
}
