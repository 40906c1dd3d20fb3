package ssdp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Port is the UDP port of SSDP, for multicast and unicast alike.
const Port = 1900

// Where devices listen for searches and announce themselves (UPnP Device
// Architecture 1.1, sections 1.1 and A.2). Multicast6 is of the link.
var (
	Multicast  = netip.MustParseAddrPort("239.255.255.250:1900")
	Multicast6 = netip.MustParseAddrPort("[ff02::c]:1900")
)

// defaultTargets are what gateways answer. An IGD:2 answers a search for version 1
// too, but some gateways answer only what they are, and some only ssdp:all.
var defaultTargets = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
	"upnp:rootdevice",
	"ssdp:all",
}

// Search looks for devices (UPnP Device Architecture 1.1, section 1.3). The zero
// Search asks the network for gateways.
type Search struct {
	// Targets are what is searched for (ST). Empty: the targets that gateways
	// answer, InternetGatewayDevice:1 and :2, WANIPConnection:1 and :2,
	// WANPPPConnection:1, upnp:rootdevice and ssdp:all, in this order.
	Targets []string
	// To are the destinations, multicast or unicast; each gets every target. Empty:
	// Multicast. A link-local address without a zone gets Interface as its zone.
	To []netip.AddrPort
	// Interface is the interface to leave by; empty is the kernel's choice.
	Interface string
	// Source is the local address to send from, for destinations of its family;
	// the zero Addr is the kernel's choice. With Interface empty, multicast leaves
	// by the interface that has it.
	Source netip.Addr
	// MX is how long devices may take to answer, so that not all do at once: zero
	// is 1 s. It is sent as 1 to 5 whole seconds, rounded up.
	MX time.Duration
	// Sends is how often each search is sent, since datagrams get lost: zero is 3.
	// The first go out at once, the next 250 ms later, then 500 ms and so on, at
	// most 4 s apart.
	Sends int
}

// Responses sends the searches and yields the answers as they come, until ctx ends
// or the loop is left. Nothing is yielded once ctx has ended. Neither a goroutine
// nor a socket outlives the loop; each loop is a search of its own.
//
// An answer that differs from an earlier one neither in its sender's address nor
// in its location and device is not yielded again. Malformed datagrams are
// ignored. A slow loop loses no answers that the bounds of the package let in.
//
// An error comes once, with the zero Answer, and is the end: the Search is not
// valid, or none of the destinations could be sent to.
func (s Search) Responses(ctx context.Context) iter.Seq2[Response, error] {
	return s.responses(ctx, openSearch)
}

func (s Search) responses(ctx context.Context, open opener) iter.Seq2[Response, error] {
	return func(yield func(Response, error) bool) {
		if ctx.Err() != nil {
			return
		}
		s, ifi, err := s.prepare()
		if err != nil {
			yield(Response{}, fmt.Errorf("ssdp: search: %w", err))
			return
		}
		s.run(ctx, s.destinations(ctx, ifi, open), yield)
	}
}

// run searches. The destinations' sockets are its own.
func (s Search) run(ctx context.Context, to []destination, yield func(Response, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer closeAll(to)
	defer cancel()

	in := newInbox(s.To)
	for _, conn := range sockets(to) {
		wg.Go(func() { read(ctx, conn, in.take) })
	}
	failed := make(chan error, 1)
	wg.Go(func() {
		if err := s.send(ctx, to); err != nil {
			failed <- err
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-failed:
			if ctx.Err() == nil {
				yield(Response{}, fmt.Errorf("ssdp: search: %w", err))
			}
			return
		case a := <-in.answers:
			if ctx.Err() != nil || !yield(a, nil) {
				return
			}
		}
	}
}

// prepare checks the search, fills in its zero values and finds its interface,
// which is nil where none is named.
func (s Search) prepare() (Search, *net.Interface, error) {
	s.Targets = slices.Clone(s.Targets)
	if len(s.Targets) == 0 {
		s.Targets = defaultTargets
	}
	for _, target := range s.Targets {
		if target == "" || strings.ContainsFunc(target, unicode.IsControl) {
			return s, nil, fmt.Errorf("invalid target %q", target)
		}
	}
	s.To = slices.Clone(s.To)
	if len(s.To) == 0 {
		s.To = []netip.AddrPort{Multicast}
	}
	for i, to := range s.To {
		if !to.IsValid() || to.Port() == 0 || to.Addr().IsUnspecified() {
			return s, nil, fmt.Errorf("invalid destination %v", to)
		}
		s.To[i] = netip.AddrPortFrom(scoped(to.Addr().Unmap(), s.Interface), to.Port())
	}
	if s.MX < 0 || s.Sends < 0 {
		return s, nil, errors.New("negative MX or Sends")
	}
	if s.Sends == 0 {
		s.Sends = 3
	}
	s.Source = s.Source.Unmap()
	if s.Interface == "" {
		return s, nil, nil
	}
	ifi, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return s, nil, fmt.Errorf("interface %q: %w", s.Interface, err)
	}
	return s, ifi, nil
}

// scoped gives an address that means nothing without an interface its zone.
func scoped(addr netip.Addr, zone string) netip.Addr {
	if addr.Is6() && addr.Zone() == "" && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast()) {
		return addr.WithZone(zone)
	}
	return addr
}
