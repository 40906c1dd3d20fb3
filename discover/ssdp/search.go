package ssdp

import (
	"cmp"
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

// The groups at which devices receive searches and to which they send notifications
// (UPnP Device Architecture 1.1, sections 1.1 and A.2). Multicast6 is link-local.
var (
	Multicast  = netip.MustParseAddrPort("239.255.255.250:1900")
	Multicast6 = netip.MustParseAddrPort("[ff02::c]:1900")
)

// Targets returns the search targets to which gateways respond: InternetGatewayDevice:1 and
// :2, WANIPConnection:1 and :2, WANPPPConnection:1, upnp:rootdevice and ssdp:all, in this
// order. An IGD:2 should respond to a search for version 1 too, but some gateways respond
// only to their own version, and others only to a service or to ssdp:all.
func Targets() []string {
	return []string{
		"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
		"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
		"urn:schemas-upnp-org:service:WANIPConnection:1",
		"urn:schemas-upnp-org:service:WANIPConnection:2",
		"urn:schemas-upnp-org:service:WANPPPConnection:1",
		"upnp:rootdevice",
		"ssdp:all",
	}
}

// Search searches for devices (UPnP Device Architecture 1.1, section 1.3). The zero
// Search searches the network for gateways.
type Search struct {
	// Targets are the search targets (ST). If Targets is empty, Search uses those of
	// the function Targets.
	Targets []string
	// To are the destinations, multicast or unicast. Search sends every target to each
	// of them. If To is empty, the destination is Multicast. A link-local address
	// without a zone gets Interface as its zone.
	To []netip.AddrPort
	// Interface is the outgoing interface. If it is empty, the kernel chooses.
	Interface string
	// Source is the local address to send from, for destinations of its address
	// family. The zero Addr means that the kernel chooses. If Interface is empty,
	// multicast leaves through the interface that has this address.
	Source netip.Addr
	// MX is the time within which devices respond; each device chooses a random delay
	// up to MX, so that they do not respond all at once. Zero means 1 s. Search sends
	// it as 1 to 5 whole seconds, rounded up.
	MX time.Duration
	// Sends is the number of times that Search sends each request, because datagrams
	// get lost. Zero means 3. The first requests are sent at once, the next ones 250 ms
	// later, then 500 ms later and so on, at most 4 s apart.
	Sends int
}

// Responses sends the searches and yields the responses as they arrive, until ctx ends
// or the caller leaves the loop. It yields nothing after ctx has ended. When the loop
// ends, Responses has closed its sockets and its goroutines have returned. Each loop is
// a separate search.
//
// Responses yields a response only once. A response is a repetition if the sender's
// address, the location and the device are equal to those of an earlier one. Malformed
// datagrams are ignored. If the loop is slow, no response is lost that is within the
// limits of the package.
//
// Responses yields an error at most once, with the zero Response, and then stops. It
// fails if the Search is invalid, or if it can send to none of the destinations.
func (s Search) Responses(ctx context.Context) iter.Seq2[Response, error] {
	return s.responses(ctx, openSearchSocket)
}

// responses is Responses with the function that opens the sockets.
func (s Search) responses(ctx context.Context, open openFunc) iter.Seq2[Response, error] {
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

// run sends the searches and yields the responses. It closes the sockets of the
// destinations.
func (s Search) run(ctx context.Context, to []destination, yield func(Response, error) bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer closeAll(to)
	defer cancel()

	d := newDedup(s.To)
	for _, conn := range sockets(to) {
		wg.Go(func() { readDatagrams(ctx, conn, d.add) })
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
		case r := <-d.responses:
			if ctx.Err() != nil || !yield(r, nil) {
				return
			}
		}
	}
}

// prepare validates the search, replaces zero values by their defaults, and looks up
// the interface. It returns a nil interface if none is named.
func (s Search) prepare() (Search, *net.Interface, error) {
	s.Targets = slices.Clone(s.Targets)
	if len(s.Targets) == 0 {
		s.Targets = Targets()
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
		s.To[i] = netip.AddrPortFrom(withZone(to.Addr().Unmap(), s.Interface), to.Port())
	}
	if s.MX < 0 || s.Sends < 0 {
		return s, nil, errors.New("negative MX or Sends")
	}
	s.Sends, s.Source = cmp.Or(s.Sends, 3), s.Source.Unmap()
	if s.Interface == "" {
		return s, nil, nil
	}
	ifi, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return s, nil, fmt.Errorf("interface %q: %w", s.Interface, err)
	}
	return s, ifi, nil
}

// withZone adds the zone to an IPv6 link-local address that has none.
func withZone(addr netip.Addr, zone string) netip.Addr {
	if addr.Is6() && addr.Zone() == "" && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast()) {
		return addr.WithZone(zone)
	}
	return addr
}

// destination is an address to which searches are sent, with the socket for it, or the
// error if the socket could not be opened.
type destination struct {
	addr netip.AddrPort
	conn packetConn
	err  error
}

// destinations opens one socket for each address family. If a socket cannot be opened,
// the destinations of the other family are still usable.
func (s Search) destinations(ctx context.Context, ifi *net.Interface, open openFunc) []destination {
	var out []destination
	for _, to := range s.To {
		d := destination{addr: to}
		for _, other := range out {
			if other.addr.Addr().Is4() == to.Addr().Is4() {
				d.conn, d.err = other.conn, other.err
			}
		}
		if d.conn == nil && d.err == nil {
			d.conn, d.err = open(ctx, s.socketConfig(to.Addr().Is4(), ifi))
		}
		out = append(out, d)
	}
	return out
}

// socketConfig returns the configuration of the socket for an address family.
func (s Search) socketConfig(is4 bool, ifi *net.Interface) socketConfig {
	config := socketConfig{network: "udp6", local: netip.IPv6Unspecified(), ifi: ifi}
	if is4 {
		config.network, config.local = "udp4", netip.IPv4Unspecified()
	}
	if s.Source.IsValid() && s.Source.Is4() == is4 {
		config.local = s.Source
	}
	for _, to := range s.To {
		config.multicast = config.multicast || to.Addr().IsMulticast() && to.Addr().Is4() == is4
	}
	return config
}

// sockets returns the sockets of the destinations, without duplicates.
func sockets(to []destination) []packetConn {
	var out []packetConn
	for _, d := range to {
		if d.conn != nil && !slices.Contains(out, d.conn) {
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

// send sends all searches s.Sends times. It fails if it cannot send any search the first
// time.
func (s Search) send(ctx context.Context, to []destination) error {
	for i := range s.Sends {
		if i > 0 && ctxsync.Sleep(ctx, repeatDelay(i)) != nil {
			return nil
		}
		if err := s.sendOnce(to); err != nil && i == 0 {
			return err
		}
	}
	return nil
}

// repeatDelay returns the delay before the i-th repetition.
func repeatDelay(i int) time.Duration { return 250 * time.Millisecond << min(i-1, 4) }

// sendOnce sends every search once. If it can send none of them, it returns the error of
// each destination.
func (s Search) sendOnce(to []destination) error {
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

// request returns the search for one target (UPnP Device Architecture 1.1, section
// 1.3.2). It omits the headers that version 2.0 adds, because simple parsers may reject
// them. MX has no meaning in a unicast search, but it does no harm.
func (s Search) request(target string, to netip.AddrPort) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: %d\r\nST: %s\r\n\r\n",
		netip.AddrPortFrom(to.Addr().WithZone(""), to.Port()), s.mxSeconds(), target)
}

// mxSeconds returns MX as it is sent: 1 to 5 whole seconds, rounded up.
func (s Search) mxSeconds() int {
	return max(1, int((min(s.MX, 5*time.Second)+time.Second-1)/time.Second))
}

// The largest number of distinct responses that a search accepts: from one address, and
// in total from addresses that are not unicast destinations of the search.
const (
	maxPerAddr = 64
	maxOthers  = 256
)

// dedup passes each response on once, even if it arrives repeatedly or on several
// sockets. It also enforces the limits on the number of responses.
type dedup struct {
	// responses holds the responses that the loop has not read yet. Its capacity is the
	// sum of all limits: a send never blocks, and a flood from one host cannot displace
	// the responses of other hosts while the loop is slow.
	responses chan Response

	mu      sync.Mutex
	seen    map[responseKey]struct{}
	perAddr map[netip.Addr]int  // number of responses from each address
	unicast map[netip.Addr]bool // the unicast destinations of the search
	others  int                 // number of responses from all other addresses
}

// responseKey identifies a response. It does not contain the target, because a device
// responds once for each target and for each repetition of a request.
type responseKey struct {
	from          netip.Addr
	location, udn string
}

func newDedup(to []netip.AddrPort) *dedup {
	d := &dedup{
		seen:    map[responseKey]struct{}{},
		perAddr: map[netip.Addr]int{},
		unicast: map[netip.Addr]bool{},
	}
	for _, dst := range to {
		if !dst.Addr().IsMulticast() {
			d.unicast[dst.Addr()] = true
		}
	}
	d.responses = make(chan Response, maxOthers+maxPerAddr*len(d.unicast))
	return d
}

// add parses a datagram, and passes it on if it is a new response within the limits.
func (d *dedup) add(datagram []byte, from netip.AddrPort) {
	r, err := ParseResponse(datagram)
	if err != nil {
		return
	}
	r.From = from
	addr := from.Addr()
	key := responseKey{addr, r.Location, r.UDN()}

	d.mu.Lock()
	defer d.mu.Unlock()
	_, repeated := d.seen[key]
	other := !d.unicast[addr]
	if repeated || d.perAddr[addr] == maxPerAddr || other && d.others == maxOthers {
		return
	}
	d.seen[key] = struct{}{}
	d.perAddr[addr]++
	if other {
		d.others++
	}
	d.responses <- r
}
