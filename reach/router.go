package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover/ssdp"
	"github.com/natforward/goforward/internal/ctxsync"
)

const (
	// routerTimeout is how long the prober waits for what the router sends.
	routerTimeout = 3 * time.Second
	// subscriptionTime is how long a subscription lasts that cannot be ended, because the
	// router's response is lost.
	subscriptionTime = time.Minute
	// probeTimeout bounds one measurement. A router may take long for each response.
	probeTimeout = 6 * time.Second
	// unsubscribeTimeout bounds the end of a subscription. It is not part of the caller's time.
	unsubscribeTimeout = time.Second
)

// Router returns a prober that makes the router connect to this host: LevelLAN. For TCP, it
// subscribes to the events of the router's UPnP device, which then connects to the internal
// port. For UDP, it sends a multicast search from the internal port, and the router answers. For
// the firewall of this host, both are new flows. If another program has the internal port, the
// prober uses another port, and the evidence is Inferred.
//
// A subscription that the router accepted, and no connection at the socket of the program, is
// Unreachable. Every other failure is Unknown, because many routers have no UPnP or no events,
// datagrams get lost, and a port on which no program listens may be forwarded to a container.
func Router() Prober { return router{} }

type router struct{}

// Name implements Prober.
func (router) Name() string { return "router" }

// Probe implements Prober.
func (router) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelLAN}
	switch {
	case catcher.Owner() == OwnerNone:
		return e, cmp.Or(catcher.Observing(), errNotObserved)
	case catcher.Owner() != OwnerOther && catcher.Observing() != nil: // the program would get what the router sends
		return e, catcher.Observing()
	case !t.Gateway.IsValid():
		return e, fmt.Errorf("%w: there is no router that could connect to this host", backends.ErrUnsupported)
	case t.Protocol == backends.UDP && repliesAdmitted:
		return e, fmt.Errorf("%w: the firewall of this system admits answers to multicast at ports that are closed", backends.ErrUnsupported)
	}
	if catcher.Owner() == OwnerOther {
		// Other programs do not expect the router's requests. Some ban hosts that send such.
		own, err := openAny(ctx, t)
		if err != nil {
			return e, fmt.Errorf("another program has the port, and no other one can be opened: %w", err)
		}
		defer own.Close()
		catcher, t.Internal, e.Inferred = own, own.target.Internal, true
	}
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errSlow)
	defer cancel()
	measure := t.subscribe
	if t.Protocol == backends.UDP {
		measure = t.searchFromPort
	}
	err := measure(ctx, catcher, &e)
	return e, err
}

var errSlow = fmt.Errorf("%w: the router took too long to answer", backends.ErrNoReply)

// repliesAdmitted is true on Windows: for a few seconds after a multicast datagram, its firewall
// admits all unicast datagrams to the source port.
const repliesAdmitted = runtime.GOOS == "windows"

// otherPort begins the errors of inferred evidence.
const otherPort = "another program has the port; measured at another one: "

// subscribe makes the router connect to the internal port, and completes the evidence.
func (t Target) subscribe(ctx context.Context, catcher Catcher, e *Evidence) error {
	client, err := t.eventClient(ctx)
	if err != nil {
		return err
	}
	path := "/" + NewNonce()
	arrivals, stop := catcher.Expect(Expectation{ // routers do not repeat a connection that fails
		First:  "NOTIFY " + path,
		Answer: []byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
	})
	defer stop()
	begun := time.Now()
	to := netip.AddrPortFrom(t.Internal.Addr().Unmap().WithZone(""), t.Internal.Port())
	sid, err := client.Subscribe(ctx, "http://"+to.String()+path, subscriptionTime)
	if sid != "" {
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unsubscribeTimeout)
			defer cancel()
			_ = client.Unsubscribe(ctx, sid)
		}()
	}
	wait := routerTimeout
	if err != nil {
		wait = 0 // the connection may have arrived, although the response is lost
	}
	a, ended := await(ctx, arrivals, wait)
	miss := fmt.Sprintf("the router's connection to tcp port %d did not arrive: this host's firewall probably drops or rejects it", t.Internal.Port())
	switch {
	case a.From.IsValid():
		return t.arrived(e, a, begun)
	case ended != nil:
		return ended
	case err != nil:
		return fmt.Errorf("the router does not connect to this host: %w", err)
	case e.Inferred:
		return errors.New(otherPort + miss)
	case catcher.Owner() == OwnerTemporary:
		return fmt.Errorf("%s, or %w", miss, errDiverted)
	}
	e.Verdict, e.Detail = Unreachable, miss
	return nil
}

// errDiverted means that a socket in place of a program received nothing. A rule may forward the port
// to a container or to another port, which the table of sockets does not show.
var errDiverted = errors.New("this host forwards the port to a container or to another port")

// await returns the first arrival, the zero Arrival if there is none in this time, or the cause if
// ctx ends.
func await(ctx context.Context, arrivals <-chan Arrival, d time.Duration) (Arrival, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case a := <-arrivals:
		return a, nil
	case <-ctx.Done():
	case <-timer.C:
	}
	select {
	case a := <-arrivals:
		return a, nil
	default:
		return Arrival{}, context.Cause(ctx)
	}
}

// arrived completes the evidence with what the router sent.
func (t Target) arrived(e *Evidence, a Arrival, begun time.Time) error {
	e.From, e.To, e.At, e.RTT = a.From, t.Internal, a.At, a.At.Sub(begun)
	if a.From.Addr().Is4() && !t.isGateway(a.From.Addr()) || !t.mayBeRouter()(a.From.Addr()) {
		return fmt.Errorf("the connection for the router came from %v, not from the router", a.From)
	}
	what := "the router's connection to tcp port"
	if t.Protocol == backends.UDP {
		what = "the router's answer to udp port"
	}
	e.Verdict, e.Detail = Reachable, fmt.Sprintf("%s %d arrived, from %v", what, t.Internal.Port(), a.From)
	return nil
}

func (t Target) isGateway(a netip.Addr) bool {
	return a.Unmap().WithZone("") == t.Gateway.Unmap().WithZone("")
}

// mayBeRouter returns a function that reports whether an address can be the source of what the
// router sends: it is the gateway, or in a network of the internal address.
//
// An IPv6 router has several addresses, and chooses one of them as its source. The gateway is
// usually its link-local address, but its source is usually an address of the same scope as the
// internal address. No message ties these addresses to each other. But each host of this network
// that sends to the internal port proves LevelLAN just as well.
func (t Target) mayBeRouter() func(netip.Addr) bool {
	internal := t.Internal.Addr().Unmap().WithZone("")
	var networks []netip.Prefix
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(internal) {
			networks = append(networks, p)
		}
	}
	return func(a netip.Addr) bool {
		a = a.WithZone("")
		return t.isGateway(a) || a != internal && (a.Is6() && a.IsLinkLocalUnicast() || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }))
	}
}

// routerSource returns a function that reports whether an answer to a search comes from the router.
func (t Target) routerSource() func(netip.Addr) bool {
	if t.Internal.Addr().Unmap().Is4() {
		return t.isGateway
	}
	return t.mayBeRouter()
}

// eventClient returns a client for a service of the gateway's UPnP device that has events.
func (t Target) eventClient(ctx context.Context) (*upnp.Client, error) {
	d, err := t.device(ctx)
	if err != nil {
		return nil, fmt.Errorf("the router cannot be asked by UPnP to connect to this host: %w", err)
	}
	for _, s := range d.Services {
		if s.EventURL == "" {
			continue
		}
		if client, err := upnp.NewClient(s, t.clientConfig()); err == nil {
			return client, nil
		}
	}
	return nil, fmt.Errorf("%w: the router's UPnP device has no events", backends.ErrUnsupported)
}

func (t Target) clientConfig() upnp.ClientConfig {
	return upnp.ClientConfig{Interface: t.Interface, Source: t.Internal.Addr().Unmap(), Timeout: routerTimeout}
}

// device returns the gateway's UPnP device. A device that has moved since UPnPURL was found, or
// has restarted, is searched for.
func (t Target) device(ctx context.Context) (*upnp.Device, error) {
	var err error
	if t.UPnPURL != "" {
		var at string
		if at, err = t.atGateway(t.UPnPURL); err == nil {
			var d *upnp.Device
			if d, err = upnp.Describe(ctx, at, t.clientConfig()); err == nil {
				return d, nil
			}
		}
		if ctx.Err() != nil || !upnp.Moved(err) {
			return nil, err
		}
	}
	bounded, cancel := context.WithTimeout(ctx, routerTimeout)
	defer cancel()
	tried := map[string]bool{}
	for response, searchErr := range t.search().Responses(bounded) {
		if searchErr != nil {
			return nil, searchErr
		}
		at, urlErr := t.atGateway(response.Location)
		if urlErr != nil || tried[at] || len(tried) == maxDescriptions {
			err = cmp.Or(err, urlErr)
			continue
		}
		tried[at] = true
		d, describeErr := upnp.Describe(bounded, at, t.clientConfig())
		if describeErr == nil {
			return d, nil
		}
		err = describeErr
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, cmp.Or(err, errNoAnswer)
}

// maxDescriptions is the maximum number of descriptions that are fetched from the gateway.
const maxDescriptions = 4

var errNoAnswer = fmt.Errorf("%w: no answer to UPnP searches arrived from the router", backends.ErrNoReply)

// searchTargets returns the gateway devices, and the service that nearly all of them have.
func searchTargets() []string { return ssdp.Targets()[:3] }

// search returns a search for the gateway's device, from a port that the system chooses.
func (t Target) search() ssdp.Search {
	s := ssdp.Search{Targets: searchTargets(), Interface: t.Interface, Source: t.Internal.Addr().Unmap()}
	if t.SSDP.IsValid() {
		s.To = []netip.AddrPort{t.SSDP}
		return s
	}
	s.To = []netip.AddrPort{netip.AddrPortFrom(t.Gateway, ssdp.Port), t.group()}
	return s
}

// atGateway returns a URL with the address of the gateway as its host, so that no other device is
// asked. The host of an IPv4 URL must be the gateway. An IPv6 router has several addresses, and
// one at which its IPv4 URL is served too, if it has UPnP over IPv6.
func (t Target) atGateway(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("%w: not a URL", backends.ErrInvalid)
	}
	host, err := netip.ParseAddr(u.Hostname())
	if t.Gateway.Unmap().Is4() && (err != nil || !t.isGateway(host)) {
		return "", fmt.Errorf("%w: the UPnP device at %.64q is not the gateway, %v", backends.ErrUnsupported, u.Hostname(), t.Gateway)
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if err != nil {
		return "", fmt.Errorf("%w: port %.8q", backends.ErrInvalid, u.Port())
	}
	u.Host = netip.AddrPortFrom(t.Gateway.Unmap(), uint16(port)).String()
	return u.String(), nil
}

// group returns the multicast group to which searches are sent.
func (t Target) group() netip.AddrPort {
	if t.Internal.Addr().Unmap().Is4() {
		return ssdp.Multicast
	}
	zone := cmp.Or(t.Interface, t.Gateway.Zone())
	return netip.AddrPortFrom(ssdp.Multicast6.Addr().WithZone(zone), ssdp.Multicast6.Port())
}

// searches is the number of times that a search is sent. The first ones are sent at once, the
// next ones 250 ms later, then 500 ms later.
const searches = 3

// maxDelay is the time within which devices answer a search (MX), and their datagrams arrive.
const maxDelay = 1200 * time.Millisecond

// searchFromPort makes the router send a datagram to the internal port, and completes the
// evidence.
func (t Target) searchFromPort(ctx context.Context, catcher Catcher, e *Evidence) error {
	to := t.group()
	host := netip.AddrPortFrom(to.Addr().WithZone(""), to.Port())
	if t.SSDP.IsValid() {
		to = t.SSDP
	}
	var requests [][]byte
	for _, target := range searchTargets() {
		requests = append(requests, fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: %s\r\n\r\n", host, target))
	}
	from := t.routerSource()
	// The router answers each request. A program must not get the answers, so there is an
	// expectation for each. The first one receives the first answer.
	var first <-chan Arrival
	for i := range 2 * searches * len(requests) {
		arrivals, stop := catcher.Expect(Expectation{First: "HTTP/1.1 200", From: from})
		defer stop()
		if i == 0 {
			first = arrivals
		}
	}
	a, begun, err := sendSearches(ctx, catcher, requests, to, first)
	other := ""
	if e.Inferred {
		other = otherPort
	}
	switch {
	case err != nil:
		return err
	case a.From.IsValid():
		if catcher.Owner() == OwnerProgram {
			_ = ctxsync.Sleep(ctx, maxDelay) // the other answers
		}
		return t.arrived(e, a, begun)
	case t.answersSearch(ctx):
		return fmt.Errorf("%sthe router answers searches from other ports, but its answer to udp port %d did not arrive: this host's firewall probably drops it, or multicast gets lost on this network", other, t.Internal.Port())
	}
	return cmp.Or(context.Cause(ctx), errNoAnswer)
}

// sendSearches sends the searches until an answer arrives. It returns the zero Arrival if none
// does.
func sendSearches(ctx context.Context, catcher Catcher, requests [][]byte, to netip.AddrPort, answer <-chan Arrival) (Arrival, time.Time, error) {
	begun, pause := time.Now(), 250*time.Millisecond
	for i := range searches {
		for _, r := range requests {
			if err := catcher.Send(r, to); err != nil {
				return Arrival{}, begun, fmt.Errorf("a search cannot be sent from the port: %w", err)
			}
		}
		if i == searches-1 {
			pause = routerTimeout - time.Since(begun)
		}
		if a, err := await(ctx, answer, pause); err != nil || a.From.IsValid() {
			return a, begun, err
		}
		pause *= 2
	}
	return Arrival{}, begun, nil
}

// answersSearch reports whether the router answers a search that comes from another port.
func (t Target) answersSearch(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, maxDelay)
	defer cancel()
	from := t.routerSource()
	for response, err := range t.search().Responses(ctx) {
		if err == nil && from(response.From.Addr()) {
			return true
		}
	}
	return false
}
