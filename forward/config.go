package forward

import (
	"cmp"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/netbind"
)

// The defaults of Config.
const (
	DefaultWait     = 3 * time.Second
	DefaultTimeout  = 15 * time.Second
	DefaultLifetime = 2 * time.Hour
)

// Config says how a Forwarder works. Nil and the zero value are valid.
type Config struct {
	// Wait bounds the discovery: how long to wait for a gateway to answer. Zero:
	// DefaultWait.
	Wait time.Duration
	// Timeout bounds a call whose context has no deadline, and each attempt in
	// the background; giving back what a failed attempt got can take a second
	// more. Zero: DefaultTimeout.
	Timeout time.Duration
	// Order names the protocols to use, the preferred first. Nil: "natpmp",
	// "pcp", "upnp".
	Order []string
	// Backends are ready-made ones to use in place of what Order names, in this
	// order, without looking for a gateway. Closing them stays with the caller.
	Backends []backends.Backend
	// Gateway is the gateway to ask; port 0 is the protocol's own. The zero
	// value: the one that the kernel uses to reach the internet.
	Gateway netip.AddrPort
	// Interface is the interface to leave by. Empty: the one that leads to the
	// gateway.
	Interface string
	// Source is the local address to ask from, which is the one that gets the
	// mappings. Calls that need a gateway of its family fail with
	// backends.ErrInvalid while this host does not have it. The zero Addr: the one
	// that the kernel uses.
	Source netip.Addr
	// IGD is the URL of a UPnP root description, with an IP address as its host. That
	// device is used, and no other is searched for. If Gateway is zero, the host is the
	// gateway. Empty: the device of the gateway, or else the best one.
	IGD string
	// These addresses are for tests. Announcements of gateways are received at
	// Announce; zero: 224.0.0.1:5350. UPnP devices are searched at SSDP; zero: port 1900
	// of the gateway, and 239.255.255.250:1900. Their notifications are received at
	// Notify; zero: 239.255.255.250:1900. For a gateway on loopback, zero is none.
	Announce, SSDP, Notify netip.AddrPort
	// Lifetime is what mappings are asked for, unless an option says otherwise.
	// Zero: DefaultLifetime.
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
	// panic in it is logged and harms nothing. Nil: none.
	OnEvent func(Event)
}

// check returns a copy with the defaults filled in, or ErrInvalid.
func (c *Config) check() (Config, error) {
	var out Config
	if c != nil {
		out = *c
	}
	out.Order, out.Backends, out.NonceKey = slices.Clone(out.Order), slices.Clone(out.Backends), slices.Clone(out.NonceKey)
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Wait", out.Wait}, {"Timeout", out.Timeout}, {"Lifetime", out.Lifetime}} {
		if d.value < 0 {
			return Config{}, invalid("Config.%s is negative", d.name)
		}
	}
	for _, name := range out.Order {
		if !slices.Contains(gateway.Protocols, name) {
			return Config{}, invalid("Config.Order: no protocol %q, there is %v", name, gateway.Protocols)
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
	if out.IGD != "" {
		host, err := igdHost(out.IGD)
		if err != nil {
			return Config{}, invalid("Config.IGD: %v", err)
		}
		if !out.Gateway.IsValid() {
			out.Gateway = netip.AddrPortFrom(host.Unmap(), 0)
		}
	}
	if gw := out.Gateway.Addr(); out.Source.IsValid() && gw.IsValid() && familyOf(out.Source) != familyOf(gw) {
		return Config{}, invalid("Config.Source %v and Config.Gateway %v are of different families", out.Source, gw)
	}
	out.Wait = cmp.Or(out.Wait, DefaultWait)
	out.Timeout = cmp.Or(out.Timeout, DefaultTimeout)
	out.Lifetime = cmp.Or(out.Lifetime, DefaultLifetime)
	out.Description = cmp.Or(out.Description, "goforward")
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	if out.Order == nil {
		out.Order = gateway.Protocols
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
