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
	"github.com/natforward/goforward/reach"
)

// The defaults of Config.
const (
	DefaultDiscoveryTimeout = 3 * time.Second
	DefaultRequestTimeout   = 15 * time.Second
	DefaultCloseTimeout     = 2 * time.Second
	DefaultLifetime         = 2 * time.Hour
)

// DefaultCheckEvery is the default of Config.CheckEvery.
const DefaultCheckEvery = 30 * time.Second

// Config configures a Forwarder. A nil Config and the zero value are valid.
type Config struct {
	// DiscoveryTimeout bounds the search for a gateway. Zero means DefaultDiscoveryTimeout.
	DiscoveryTimeout time.Duration
	// RequestTimeout bounds a call whose context has no deadline, and each attempt in the
	// background. If an attempt fails in part, deleting what the gateway granted can take
	// another second. Zero means DefaultRequestTimeout.
	RequestTimeout time.Duration
	// CloseTimeout bounds each Close of a Forwarder, Mapping, Listener or PacketConn if the
	// gateway does not reply. While the gateway keeps replying and deletions remain, Close
	// takes up to 15 seconds, or CloseTimeout if that is longer. Zero means
	// DefaultCloseTimeout.
	CloseTimeout time.Duration
	// Protocols names the protocols to use, the preferred one first. Nil means "natpmp",
	// "pcp", "upnp".
	Protocols []string
	// Backends are ready-made backends to use instead of Protocols, in this order. The
	// Forwarder then does not search for a gateway. The caller closes the backends.
	Backends []backends.Backend
	// Gateway is the address of the gateway to use. If its port is 0, each protocol uses its
	// own port. The zero value means the gateway that the kernel uses to reach the internet.
	Gateway netip.AddrPort
	// Gateways returns the default routes of this host, in place of the kernel's: at most one
	// for each address family. Set it on systems on which an app may not read routes, such as
	// Android and iOS, and read the routes from the system's API. An empty list means that
	// there is no network. After an error, the routes that it returned before stay in use.
	//
	// Gateways is called before requests and every 30 seconds, also by several goroutines at
	// once. Each call is bounded by DiscoveryTimeout. Enable with Background, Listen and
	// Close wait for it too, so it must obey its context and must not use the Forwarder. Call
	// Refresh if the system reports a change of network. Nil means that the Forwarder reads
	// the kernel's routes.
	Gateways func(context.Context) ([]discover.Gateway, error)
	// Interface is the interface from which to send requests. Empty means the interface
	// toward the gateway.
	Interface string
	// Source is the local address from which to send requests. Mappings forward to this
	// address. While this host does not have the address, calls that need a gateway of its
	// family fail with backends.ErrInvalid. The zero Addr means the address that the kernel
	// selects.
	Source netip.Addr
	// UPnPURL is the URL of a UPnP root description, with an IP address as its host. The
	// Forwarder then uses that device and searches for no other, also for pinholes if the
	// host is an IPv4 address. If Gateway is zero, the host of the URL is the gateway. Empty
	// means the UPnP device of the gateway. If it has none, another device is used.
	UPnPURL string
	// Choices are results of [Forwarder.Choices] in an earlier run of the program. A protocol
	// that a gateway supported is then asked before the others. If it does not reply within
	// 10 ms, or six round trips if they take longer, the others are probed too. Choices for
	// other gateways or for protocols that are not in Protocols have no effect, and so has a URL
	// with another host than the gateway. With ready-made Backends, Choices has no effect. An
	// entry without a gateway or with an unknown protocol is invalid. Nil means that nothing is
	// known.
	Choices []Choice
	// Lifetime is the lifetime to request if no option sets another. Zero means
	// DefaultLifetime.
	Lifetime time.Duration
	// CheckEvery is the interval at which each gateway with mappings is checked, whether it
	// still has them. Many gateways do not announce a restart, and announcements get lost. A
	// check sends one to four small requests. If a gateway does not reply, it is checked at a
	// quarter of that rate after 15 minutes. If several Forwarders use one gateway, the
	// shortest interval applies. Zero means DefaultCheckEvery. If it is negative, this
	// Forwarder wants no checks, and a lost mapping is noticed only by an announcement or at
	// the next renewal. The interval is at least one second.
	CheckEvery time.Duration
	// Verify are the probers that measure whether the internet reaches a mapping, such as
	// reach.Reflector, reach.SSH, reach.STUN or reach.Path. They contact the hosts that they name. If
	// there are any, each mapping is verified in the background after it is granted, after its endpoint
	// changes, and every VerifyEvery: see EventVerified and EventUnreachable. A mapping that was proven
	// reachable and no longer is gets deleted and requested again once. Verify in the background opens
	// no port. Nil means the probers of reach.Default, which contact only the gateway, and no
	// verification in the background unless VerifyEvery is set.
	Verify []reach.Prober
	// VerifyEvery is the interval of the verifications in the background, at least ten seconds.
	// Zero means DefaultVerifyEvery if Verify has probers, and otherwise no verification in the
	// background.
	VerifyEvery time.Duration
	// Description is the text that the gateway shows in its table, if the protocol supports
	// one. Empty means "goforward".
	Description string
	// NonceKey is a secret from which PCP nonces are derived. A later process with the same
	// key can renew and delete the mappings of this one. If it is nil, only this process can.
	NonceKey []byte
	// StateFile is the path of a file in which the Forwarder records its mappings and the
	// secrets that are needed to renew them. After a crash, the next run of the program
	// resumes the mappings with the same external ports. It deletes those that are not
	// enabled again within 30 seconds.
	//
	// The file is written atomically, and only its owner can read it. It is locked: one
	// Forwarder uses it at a time, and another waits until the lock is free. If the contents
	// are invalid, the file is renamed: the suffix ".damaged" is added, or ".damaged.2" and
	// so on. Such a file, and one that cannot be read or written at the moment, is logged,
	// but no call fails. Empty means no state file.
	StateFile string
	// Logger receives log records about the Forwarder's work. Nil means that nothing is
	// logged.
	Logger *slog.Logger
	// OnEvent is called for each event. Calls are made one after another, in the order of the
	// events, on a separate goroutine. OnEvent may block and may call any function of this
	// package, including Close. A panic in it is logged and has no other effect. Nil means no
	// calls. See also [OnChange].
	OnEvent func(Event)
	// Test is for tests. The method Config of a gatewaytest.Gateway sets it. The zero value
	// has no effect.
	Test TestNetwork
}

// TestNetwork has addresses that replace the fixed addresses of the standards, so that a test
// router can run on loopback.
type TestNetwork struct {
	// Announce is the address on which announcements of gateways are received. The zero value
	// means 224.0.0.1:5350, or [ff02::1]:5350 for an IPv6 gateway. No multicast reaches
	// loopback, so a gateway on loopback needs another address.
	Announce netip.AddrPort
	// SSDP is the address to which searches for UPnP devices are sent. The zero value means
	// port 1900 of the gateway and 239.255.255.250:1900, or none for a gateway on loopback.
	SSDP netip.AddrPort
	// Notify is the address on which notifications of UPnP devices are received. The zero
	// value means 239.255.255.250:1900, or none for a gateway on loopback.
	Notify netip.AddrPort
}

// check returns a copy of the config with the defaults, or an error that wraps ErrInvalid.
func (c *Config) check() (Config, error) {
	var out Config
	if c != nil {
		out = *c
	}
	out.Protocols, out.Backends, out.NonceKey = slices.Clone(out.Protocols), slices.Clone(out.Backends), slices.Clone(out.NonceKey)
	out.Choices, out.Verify = slices.Clone(out.Choices), slices.Clone(out.Verify)
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"DiscoveryTimeout", out.DiscoveryTimeout}, {"RequestTimeout", out.RequestTimeout}, {"CloseTimeout", out.CloseTimeout}, {"Lifetime", out.Lifetime}, {"VerifyEvery", out.VerifyEvery}} {
		if d.value < 0 {
			return Config{}, invalid("Config.%s is negative", d.name)
		}
	}
	for _, name := range out.Protocols {
		if _, is := gateway.Find(name); !is {
			return Config{}, invalid("Config.Protocols: no protocol %q, the protocols are %v", name, gateway.Names())
		}
	}
	for _, choice := range out.Choices {
		if err := choice.check(); err != nil {
			return Config{}, err
		}
	}
	for _, b := range out.Backends {
		if b == nil || !reflect.TypeOf(b).Comparable() {
			return Config{}, invalid("Config.Backends: a backend must be a pointer")
		}
	}
	if gw := out.Gateway; gw != (netip.AddrPort{}) && (!gw.Addr().IsValid() || gw.Addr().IsUnspecified()) {
		return Config{}, invalid("Config.Gateway must have the address of a gateway")
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
	if gw := out.Gateway.Addr(); out.UPnPURL == "" && out.Source.IsValid() && gw.IsValid() && familyOf(out.Source) != familyOf(gw) {
		return Config{}, invalid("Config.Source %v and Config.Gateway %v are of different families", out.Source, gw)
	}
	out.DiscoveryTimeout = cmp.Or(out.DiscoveryTimeout, DefaultDiscoveryTimeout)
	out.RequestTimeout = cmp.Or(out.RequestTimeout, DefaultRequestTimeout)
	out.CloseTimeout = cmp.Or(out.CloseTimeout, DefaultCloseTimeout)
	out.Lifetime = cmp.Or(out.Lifetime, DefaultLifetime)
	if out.CheckEvery = cmp.Or(out.CheckEvery, DefaultCheckEvery); out.CheckEvery > 0 {
		out.CheckEvery = max(out.CheckEvery, time.Second)
	}
	if slices.Contains(out.Verify, nil) {
		return Config{}, invalid("Config.Verify has a nil prober")
	}
	if len(out.Verify) > 0 {
		out.VerifyEvery = cmp.Or(out.VerifyEvery, DefaultVerifyEvery)
	}
	if out.VerifyEvery > 0 {
		out.VerifyEvery = max(out.VerifyEvery, minVerifyEvery)
	}
	out.Description = cmp.Or(out.Description, "goforward")
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	if out.Protocols == nil {
		out.Protocols = gateway.Names()
	}
	return out, nil
}

// checkSource returns an error that wraps ErrInvalid if this host does not have the address
// Source now. Without this check, a public address of another host would count as one that
// needs no mapping.
func (c *Config) checkSource() error {
	if c.Source.IsValid() && !netbind.HasAddr(c.Source) {
		return invalid("the source address %v is %w", c.Source, netbind.ErrNotHere)
	}
	return nil
}
