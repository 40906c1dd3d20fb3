package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// helper is what the probers that use a host of the internet have in common. Such a host connects
// to the external endpoint. Only what arrives here counts. What the host says about it is quoted,
// and proves nothing.
type helper struct {
	name    string
	reached reached
}

// Name implements Prober.
func (h *helper) Name() string { return h.name }

// check returns an error if the helper must not be asked about a target.
func (h *helper) check(t Target, catcher Catcher) error {
	switch err := catcher.Observing(); {
	case err != nil:
		return err // a connection or datagram would only disturb the program
	case t.External.Port() == 0:
		return fmt.Errorf("%w: the external port is not known", backends.ErrUnsupported)
	case t.External.Addr().IsValid():
		return checkReal(t)
	case t.Gateway.IsLoopback():
		return fmt.Errorf("%w: the gateway is on loopback, so its external address is not a real one", backends.ErrUnsupported)
	}
	return nil
}

// arrived completes the evidence for an arrival. The helper had connected to the external port at
// this address of the internet, by its own account.
func (h *helper) arrived(t Target, e Evidence, at netip.Addr, a Arrival, begun time.Time) (Evidence, error) {
	external := t.External.Addr().Unmap()
	switch from := a.From.Addr(); {
	case !t.IsFromInternet(from) || from == at:
		return e, fmt.Errorf("a connection by %s arrived from %v, which is not an address of the internet", h.name, a.From)
	case backends.ScopeOf(at) != backends.ScopePublic: // the helper is in the network of the provider or of a VPN
		return e, fmt.Errorf("a connection by %s arrived, but at the address %v, which is not public", h.name, at)
	case at != external && backends.ScopeOf(external) == backends.ScopePublic:
		return e, fmt.Errorf("a connection by %s arrived, but at the address %v: the router reports %v as its external address, which may be wrong", h.name, at, external)
	}
	e.Verdict, e.From, e.At, e.RTT = Reachable, a.From, a.At, a.At.Sub(begun)
	e.External = netip.AddrPortFrom(at, t.External.Port())
	h.reached.add(t.Protocol, e.External)
	e.Detail = fmt.Sprintf("a connection by %s arrived, from %v", h.name, e.From)
	if contacted.has(e.From.Addr()) { // a gateway may admit only such addresses
		e.Detail += ", an address to which this host has sent"
	}
	if external.IsValid() && at != external {
		e.Detail += fmt.Sprintf("; the router reports %v as its external address", external)
	}
	return e, nil
}

// missed returns the evidence if nothing arrived. The helper had connected to the external port at
// this address, by its own account, which is a sentence like "refused".
func (h *helper) missed(t Target, e Evidence, at netip.Addr, said string) (Evidence, error) {
	external, reported := netip.AddrPortFrom(at, t.External.Port()), t.External.Addr().Unmap()
	switch isReached := h.reached.has(t.Protocol, external); {
	case at != reported && (!isReached || backends.ScopeOf(reported) == backends.ScopePublic):
		return e, fmt.Errorf("nothing arrived: %s says %s; it sees this host at %v, and the router reports %s as its external address", h.name, said, at, addressText(t.External.Addr()))
	case !isReached:
		return e, fmt.Errorf("nothing arrived: %s says %s; it has not reached %v before, so it may be unable to", h.name, said, external)
	}
	e.Verdict = Unreachable
	e.Detail = fmt.Sprintf("nothing arrived although %s reached %v before: it says %s", h.name, external, said)
	return e, nil
}

// addressText returns an external address, or "none" if the gateway does not report it.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

// endpointOf returns an endpoint of package net, or the zero AddrPort if that is not an IP endpoint.
func endpointOf(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// errNoAddress means that a helper has no address of the family of a target.
var errNoAddress = errors.New("no address of the family of the mapping")

// dialHelper connects to a helper, from the address and through the interface of the mapping, so
// that the helper sees the external address of the mapping. The source port is another one than the
// internal port: a gateway may admit the helper's connection only because the port has sent to it.
func dialHelper(ctx context.Context, t Target, network, host string) (net.Conn, error) {
	d := net.Dialer{}
	internal := t.Internal.Addr().Unmap()
	network += map[bool]string{true: "4", false: "6"}[internal.Is4()]
	if netbind.HasAddr(internal) && !internal.IsLoopback() {
		local := netip.AddrPortFrom(internal, 0)
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
		if network[:3] == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
	}
	control := func(string, string, syscall.RawConn) error { return nil }
	if ifi, err := net.InterfaceByName(t.Interface); err == nil {
		if c, err := netbind.Control(ifi); err == nil {
			control = c
		}
	}
	d.Control = func(network, address string, c syscall.RawConn) error {
		if to, err := netip.ParseAddrPort(address); err == nil {
			contacted.add(to.Addr())
		}
		_ = control(network, address, c) // without the permission, the helper may see another address, and says so
		return nil
	}
	conn, err := d.DialContext(ctx, network, host)
	var dns *net.DNSError
	var addr *net.AddrError
	if errors.As(err, &addr) || errors.As(err, &dns) && dns.IsNotFound {
		return nil, fmt.Errorf("%w: %w", errNoAddress, err)
	}
	return conn, err
}
