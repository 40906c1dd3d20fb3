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

	"github.com/natforward/goforward/internal/ctxsync"
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

// destination is who is asked, and the socket for it or the reason why there is
// none.
type destination struct {
	addr netip.AddrPort
	conn packetConn
	err  error
}

// destinations opens one socket for each family. One that cannot be opened is
// the matter of its destinations alone.
func (s Search) destinations(ctx context.Context, ifi *net.Interface, open opener) []destination {
	var out []destination
	for _, to := range s.To {
		d := destination{addr: to}
		for _, other := range out {
			if other.addr.Addr().Is4() == to.Addr().Is4() {
				d.conn, d.err = other.conn, other.err
			}
		}
		if d.conn == nil && d.err == nil {
			d.conn, d.err = open(ctx, s.seat(to.Addr().Is4(), ifi))
		}
		out = append(out, d)
	}
	return out
}

// seat is where the socket of a family is to be.
func (s Search) seat(is4 bool, ifi *net.Interface) seat {
	at := seat{network: "udp6", local: netip.IPv6Unspecified(), ifi: ifi}
	if is4 {
		at.network, at.local = "udp4", netip.IPv4Unspecified()
	}
	if s.Source.IsValid() && s.Source.Is4() == is4 {
		at.local = s.Source
	}
	for _, to := range s.To {
		at.multicast = at.multicast || to.Addr().IsMulticast() && to.Addr().Is4() == is4
	}
	return at
}

// sockets are the destinations' sockets, each once.
func sockets(to []destination) []packetConn {
	var out []packetConn
	seen := map[packetConn]bool{}
	for _, d := range to {
		if d.conn != nil && !seen[d.conn] {
			seen[d.conn] = true
			out = append(out, d.conn)
		}
	}
	return out
}

func closeAll(to []destination) {
	for _, conn := range sockets(to) {
		_ = conn.Close()
	}
}

// send sends all searches as often as they are to be sent. It fails where the
// first time none of them could be.
func (s Search) send(ctx context.Context, to []destination) error {
	for i := range s.Sends {
		if i > 0 && ctxsync.Sleep(ctx, gap(i)) != nil {
			return nil
		}
		if err := s.burst(to); err != nil && i == 0 {
			return err
		}
	}
	return nil
}

// gap is the time before the i-th repetition.
func gap(i int) time.Duration { return 250 * time.Millisecond << min(i-1, 4) }

// burst sends every search once. It fails where nothing could be sent, with what
// kept it from each destination.
func (s Search) burst(to []destination) error {
	errs := make([]error, len(to))
	sent := false
	for _, target := range s.Targets {
		for i, d := range to {
			err := d.err
			if err == nil {
				_, err = d.conn.WriteToUDPAddrPort(s.request(target, d.addr), d.addr)
			}
			if err != nil && errs[i] == nil {
				errs[i] = err
			}
			sent = sent || err == nil
		}
	}
	if sent {
		return nil
	}
	return errors.Join(errs...)
}

// request is a search for one target (UPnP Device Architecture 1.1, section
// 1.3.2). What 2.0 adds to it is left out: small parsers choke on less. MX means
// nothing in a unicast search, and does no harm.
func (s Search) request(target string, to netip.AddrPort) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: %d\r\nST: %s\r\n\r\n",
		netip.AddrPortFrom(to.Addr().WithZone(""), to.Port()), s.mx(), target)
}

// mx is MX as on the wire.
func (s Search) mx() int {
	const most = 5
	if s.MX >= most*time.Second {
		return most
	}
	return max(1, int((s.MX+time.Second-1)/time.Second))
}

// How many distinct answers are believed to be real: from one address, and from
// all those together that were not asked by their own address.
const (
	maxPerAddr   = 64
	maxStrangers = 256
)

// inbox holds the answers that wait for the loop, and knows those it had.
type inbox struct {
	// answers has room for all that the bounds let in, so that a stranger cannot
	// crowd out an answer while the loop is slow, and sending never blocks.
	answers chan Response

	mu        sync.Mutex
	seen      map[answerKey]struct{}
	perAddr   map[netip.Addr]int
	asked     map[netip.Addr]bool
	strangers int
}

// answerKey is what makes answers distinct: a device answers for each target and
// each repetition.
type answerKey struct {
	from          netip.Addr
	location, udn string
}

func newInbox(to []netip.AddrPort) *inbox {
	in := &inbox{
		seen:    map[answerKey]struct{}{},
		perAddr: map[netip.Addr]int{},
		asked:   map[netip.Addr]bool{},
	}
	for _, d := range to {
		if !d.Addr().IsMulticast() {
			in.asked[d.Addr()] = true
		}
	}
	in.answers = make(chan Response, maxStrangers+maxPerAddr*len(in.asked))
	return in
}

// take keeps a datagram if it is an answer, a new one, and within the bounds.
func (in *inbox) take(datagram []byte, from netip.AddrPort) {
	a, err := ParseResponse(datagram)
	if err != nil {
		return
	}
	a.From = from
	addr := from.Addr()
	key := answerKey{addr, a.Location, a.UDN()}

	in.mu.Lock()
	defer in.mu.Unlock()
	_, known := in.seen[key]
	stranger := !in.asked[addr]
	if known || in.perAddr[addr] == maxPerAddr || stranger && in.strangers == maxStrangers {
		return
	}
	in.seen[key] = struct{}{}
	in.perAddr[addr]++
	if stranger {
		in.strangers++
	}
	in.answers <- a
}
