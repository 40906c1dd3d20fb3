package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/natforward/goforward/forward"
)

// hostPort is a host name with a port. Port 0 means the default port. The zero value is no
// host.
type hostPort struct {
	host string
	port uint16
}

// parseGateway reads the value of --gateway: an address or a host name, with an optional port.
// One of the results is the zero value.
func parseGateway(s string) (netip.AddrPort, hostPort, error) {
	invalid := errors.New("want an IP address or a host name, with or without :PORT")
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() == 0 {
		return netip.AddrPort{}, hostPort{}, invalid
	}
	if ap, err := parseEndpoint(s); err == nil {
		return ap, hostPort{}, nil
	}
	host, portText, hasPort := strings.Cut(s, ":")
	var port uint64
	var err error
	if hasPort {
		port, err = strconv.ParseUint(portText, 10, 16)
	}
	if err != nil || !isHostName(host) || hasPort && port == 0 {
		return netip.AddrPort{}, hostPort{}, invalid
	}
	return netip.AddrPort{}, hostPort{host, uint16(port)}, nil
}

// isHostName reports whether a text can be a host name (RFC 1123, section 2.1), and not a
// mistyped IPv4 address. It permits the underscore, which local names contain.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(strings.ToLower(label), hostNameCharacters) != "" {
			return false
		}
	}
	return len(s) <= 253 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

const hostNameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-_"

// lookupHost returns the addresses of a host name.
func lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// lookupTimeout bounds one lookup of the gateway's name, unless --timeout is set.
const lookupTimeout = 5 * time.Second

// maxLookupDelay bounds the pause between two lookups with --wait.
const maxLookupDelay = 10 * time.Second

// lookupError is the failed lookup of the gateway's name. Without an address, there is no
// gateway.
type lookupError struct{ err error }

func (e *lookupError) Error() string {
	return fmt.Sprintf("--gateway: %v\n  → check the name, or use the IP address of the gateway", e.err)
}

func (e *lookupError) Unwrap() []error { return []error{forward.ErrNoGateway, e.err} }

// resolveGateway looks up the host name of --gateway, if there is one, and sets the address. With
// map --hold --wait and run --wait, it tries again until the name has an address or the context
// ends.
func (a *app) resolveGateway(ctx context.Context, cmd *cobra.Command) error {
	name := a.settings.gatewayName
	if name.host == "" || !usesGateway(cmd) {
		return nil
	}
	keeps := isSet(cmd, "hold") || cmd.Flags().Lookup("hold") == nil // run always keeps its mappings
	wait, ipv6 := keeps && isSet(cmd, "wait"), a.wantsIPv6(cmd)
	for pause := retryDelay; ; pause = min(2*pause, maxLookupDelay) {
		addr, err := a.lookUpGateway(ctx, name.host, ipv6)
		if err == nil {
			a.settings.gateway = netip.AddrPortFrom(addr, name.port)
			return nil
		}
		if ctx.Err() != nil || !wait {
			return err
		}
		a.printLookupFailure(err, time.Now().Add(pause))
		if !a.pause(ctx, pause) {
			return err
		}
	}
}

// lookUpGateway returns the preferred address of a host name.
func (a *app) lookUpGateway(ctx context.Context, host string, ipv6 bool) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(a.settings.timeout, lookupTimeout))
	defer cancel()
	addrs, err := a.lookupHost(ctx, host)
	if err != nil {
		return netip.Addr{}, &lookupError{err}
	}
	var best netip.Addr
	for _, addr := range addrs {
		addr = addr.Unmap()
		usable := addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast() // a filter for advertisements may return 0.0.0.0
		if usable && (!best.IsValid() || addr.Is6() == ipv6 && best.Is6() != ipv6) {
			best = addr
		}
	}
	if !best.IsValid() {
		return netip.Addr{}, &lookupError{fmt.Errorf("%s has no address of a host", host)}
	}
	return best, nil
}

// printLookupFailure prints a failed lookup, and the time of the next one.
func (a *app) printLookupFailure(err error, next time.Time) {
	now := time.Now()
	text, _, _ := strings.Cut(errorText(err), "\n")
	a.failuref("%s error %s%s\n", clockText(now), text, nextAttemptText(next))
	if a.settings.json {
		a.printJSON(watchRecord{Event: "error", Time: jsonTime(now), Reason: text, Kind: classify(err).name, Next: jsonTime(next)})
	}
}

// pause waits for d. It returns false if the context ends first, or if the output cannot be
// written.
func (a *app) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-a.stdout.broken:
	}
	return false
}

// usesGateway reports whether a command sends requests to a gateway.
func usesGateway(cmd *cobra.Command) bool {
	for ; cmd.HasParent(); cmd = cmd.Parent() {
		if !cmd.Parent().HasParent() {
			return !slices.Contains([]string{"help", "completion", "version", "demo", "probe", "reflect"}, cmd.Name())
		}
	}
	return false // the root command prints its help or the version
}

// wantsIPv6 reports whether the flags need an IPv6 gateway.
func (a *app) wantsIPv6(cmd *cobra.Command) bool {
	if isSet(cmd, "ipv6") || a.settings.source.Is6() {
		return true
	}
	for _, name := range []string{"to", "from"} {
		if f := cmd.Flags().Lookup(name); f != nil {
			if ap, err := parseEndpoint(f.Value.String()); err == nil && ap.Addr().Is6() {
				return true
			}
		}
	}
	return false
}

// isSet reports whether a command has a flag with that name, and the flag is set.
func isSet(cmd *cobra.Command, flag string) bool {
	f := cmd.Flags().Lookup(flag)
	return f != nil && f.Value.String() == "true"
}
