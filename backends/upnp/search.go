package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
	"github.com/natforward/goforward/internal/ctxsync"
)

// The bounds of a search. Strangers may fill their own shares, not the
// gateway's.
const (
	betterWait           = 100 * time.Millisecond  // how long a device waits for better ones
	allResponsesWait     = 1200 * time.Millisecond // searches allow devices a second
	maxNonGateways       = 16                      // descriptions of devices that are not the gateway
	maxConcurrentFetches = 8                       // of those, fetched at once
	maxPerNonGateway     = 2
	maxPerGateway        = 8
)

// gateway is find, and those who watch hear of it where the device has changed.
func (b *Backend) gateway(ctx context.Context) (*gateway, error) {
	b.mu.Lock()
	g := b.current
	b.mu.Unlock()
	if g != nil {
		return g, nil
	}
	g, err := b.findGateway(ctx)
	if err == nil {
		b.recordFound(g)
	}
	return g, err
}

// find returns the device to use, looking for it where none is known. Callers at
// the same time share one search.
func (b *Backend) findGateway(ctx context.Context) (*gateway, error) {
	select {
	case b.searchLock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("upnp: looking for a gateway device: %w", context.Cause(ctx))
	}
	defer func() { <-b.searchLock }()
	b.mu.Lock()
	g := b.current
	b.mu.Unlock()
	if g != nil {
		return g, nil
	}
	all, err := b.search(ctx, untilBest)
	if err != nil {
		return nil, err
	}
	g = all[0]
	b.log.Debug("upnp: device chosen", "url", g.Device.URL, "model", g.Device.Model, "service", g.Service.Type, "reason", g.Reason)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = g
	if g.externalQueried {
		b.external, b.externalTime = g.External, time.Now()
	}
	return g, nil
}

// lose forgets a device, whenever it was asked last, so that the next call looks
// for it.
func (b *Backend) forget(g *gateway) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && b.current.Device == g.Device {
		b.current = nil
	}
}

// Gateways looks for all gateway devices until Config.Wait is over, and returns
// them with the preferred one first.
func (b *Backend) Gateways(ctx context.Context) ([]Gateway, error) {
	ctx, end, err := b.calls.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	gateways, err := b.search(ctx, untilTimeout)
	if err != nil {
		return nil, err
	}
	var out []Gateway
	for _, g := range gateways {
		out = append(out, g.Gateway)
	}
	return out, nil
}

// thoroughness is when a search is over.
type searchMode bool

const (
	untilBest    searchMode = false // when nothing better can be waited for
	untilTimeout searchMode = true  // when its time is
)

// outcome is what became of one description.
type inspectResult struct {
	candidate candidate
	gateway   *gateway
	err       error
}

// search finds gateway devices, the best first. Without any, the error wraps
// backends.ErrNoReply or says what was wrong with those that answered.
func (b *Backend) search(ctx context.Context, mode searchMode) ([]*gateway, error) {
	parent := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Wait, fmt.Errorf("%w within %v", backends.ErrNoReply, b.config.Wait))
	defer cancel()
	s := &searchState{backend: b, results: make(chan inspectResult, maxNonGateways+maxPerGateway), fetchSlots: make(chan struct{}, maxConcurrentFetches)}
	if b.config.URL != "" {
		s.startInspection(ctx, candidate{url: b.config.URL, isGateway: true})
	}
	defer func() { b.usable.Add(-int32(len(s.gateways))) }() //nolint:gosec // there are few
	responses := make(chan ssdp.Response)
	listenErr := make(chan error, 1)
	go func() { listenErr <- b.runSearches(ctx, responses) }() // waited for below
	s.collect(ctx, responses, mode)
	cancel()
	err := <-listenErr
	s.drain()
	if parent.Err() != nil {
		return nil, fmt.Errorf("upnp: looking for a gateway device: %w", context.Cause(parent))
	}
	slices.SortStableFunc(s.gateways, (*gateway).compare)
	switch {
	case len(s.gateways) > 0:
		setReasons(s.gateways)
		return s.gateways, nil
	case s.gatewayErr != nil:
		return nil, s.gatewayErr
	case err != nil:
		return nil, fmt.Errorf("upnp: searching: %w: %w", backends.ErrNoReply, err)
	case s.unsuitable > 0:
		return nil, fmt.Errorf("upnp: %w: %d devices answered the search, none of them a working gateway", backends.ErrNoReply, s.unsuitable)
	}
	return nil, fmt.Errorf("upnp: %w: no device answered the search", backends.ErrNoReply)
}

// What is searched for, and when: gateways answer to their own kind, most of
// them to either version. To what all devices answer, some answer only. Common
// gateways are slow while they do: the second search is for where the first has
// found nothing that works.
var (
	gatewayTargets = []string{
		"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
		"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	}
	genericTargets = []string{"upnp:rootdevice", "ssdp:all"}
)

// The second search begins after a pause, or after so many where somebody who has
// answered is being asked.
const (
	genericSearchDelay = 250 * time.Millisecond
	maxGenericDelays   = 4
)

// listen sends the searches and passes the answers on. A named device needs none.
// It fails where nothing can be sent.
func (b *Backend) runSearches(ctx context.Context, responses chan<- ssdp.Response) error {
	defer close(responses)
	switch {
	case b.config.URL != "":
		return nil
	case b.config.SSDP == nil && b.config.Gateway.IsLoopback():
		return errLoopbackGateway
	}
	errs := make([]error, 2)
	var searches sync.WaitGroup
	searches.Go(func() { errs[0] = b.searchTargets(ctx, gatewayTargets, responses) })
	searches.Go(func() {
		for n := 1; ctxsync.Sleep(ctx, genericSearchDelay) == nil; n++ {
			// Who has answered is not to be kept from it, nor to keep others from it for long.
			if b.fetches.Load() == 0 || n == maxGenericDelays {
				errs[1] = b.searchTargets(ctx, genericTargets, responses)
				return
			}
		}
	})
	searches.Wait()
	return cmp.Or(errs...)
}

// pass searches until the context ends.
func (b *Backend) searchTargets(ctx context.Context, targets []string, responses chan<- ssdp.Response) error {
	s := ssdp.Search{Targets: targets, To: b.destinations(), Interface: b.config.Interface, Source: b.config.Source}
	for resp, err := range s.Responses(ctx) {
		if err != nil {
			return err
		}
		select {
		case responses <- resp:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// errNotSearched: a gateway on loopback is on no network that a multicast would
// reach, and who runs one, for a test, knows where it answers.
var errLoopbackGateway = errors.New("a gateway on loopback is not searched for")

// destinations is where searches go.
func (b *Backend) destinations() []netip.AddrPort {
	unicast := netip.AddrPortFrom(b.config.Gateway, ssdp.Port)
	switch {
	case b.config.SSDP != nil:
		return b.config.SSDP
	case b.is6:
		return []netip.AddrPort{unicast, ssdp.Multicast6}
	}
	return []netip.AddrPort{unicast, ssdp.Multicast}
}

// candidate is a description that somebody named.
type candidate struct {
	url       string
	isGateway bool // the gateway itself did
	bootID    ssdp.ID
}

// searching is one search: whom it has considered, and what came of them.
type searchState struct {
	backend    *Backend
	results    chan inspectResult // as large as all that is ever considered
	fetchSlots chan struct{}      // to fetch a description of a stranger
	fetches    sync.WaitGroup

	// Of the goroutine that searches alone.
	seen           map[string]bool
	perResponder   map[netip.Addr]int
	nonGateways    int
	pending        int // fetches under way
	pendingGateway int // of these, of the gateway's own device
	gateways       []*gateway
	gatewayErr     error // of the gateway's own device
	unsuitable     int   // devices that are of no use
}

// collect considers answers until the search is settled or its time is over.
func (s *searchState) collect(ctx context.Context, responses <-chan ssdp.Response, mode searchMode) {
	var timer <-chan time.Time
	var deadline time.Time
	waited := false // the patience is, but for the gateway's own device
	for (responses != nil || s.pending > 0) && (!waited || s.pendingGateway > 0) {
		select {
		case resp, open := <-responses:
			if !open {
				responses = nil
				continue
			}
			s.handleResponse(ctx, resp)
		case result := <-s.results:
			s.pending--
			if result.candidate.isGateway {
				s.pendingGateway--
			}
			s.record(result)
			switch {
			case mode == untilTimeout || result.gateway == nil:
			case result.gateway.isOptimal():
				return
			case waited:
			default: // the least patience counts
				if end := time.Now().Add(result.gateway.waitForBetter()); timer == nil || end.Before(deadline) {
					timer, deadline = time.After(time.Until(end)), end
				}
			}
		case <-timer:
			waited, timer = true, nil
		case <-ctx.Done():
			return
		}
	}
}

// answered considers who answered a search, within bounds.
func (s *searchState) handleResponse(ctx context.Context, resp ssdp.Response) {
	b := s.backend
	from := resp.From.Addr().Unmap()
	fromGateway := b.isGateway(from)
	url, err := rewriteLocation(resp.Location, resp.From, b.config.Gateway, b.onLink)
	if err != nil {
		b.log.Debug("upnp: answer ignored", "from", resp.From, "location", resp.Location, "err", err)
		return
	}
	// A gateway may answer from another address than the one that it serves at.
	isGateway := fromGateway || b.isGateway(hostOf(url))
	if s.seen[url] || b.config.Only && !isGateway {
		return
	}
	limit := maxPerNonGateway
	if fromGateway {
		limit = maxPerGateway
	}
	if s.perResponder[from] >= limit || !fromGateway && s.nonGateways >= maxNonGateways {
		return
	}
	if s.seen == nil {
		s.seen, s.perResponder = map[string]bool{}, map[netip.Addr]int{}
	}
	s.seen[url] = true
	s.perResponder[from]++
	if !fromGateway {
		s.nonGateways++
	}
	s.startInspection(ctx, candidate{url: url, isGateway: isGateway, bootID: resp.BootID})
}

func (b *Backend) isGateway(a netip.Addr) bool {
	return a.WithZone("") == b.config.Gateway.WithZone("")
}

// hostOf is the address in a URL that has been checked.
func hostOf(url string) netip.Addr {
	e, err := parseEndpoint(url)
	if err != nil {
		return netip.Addr{}
	}
	return e.addr.Addr()
}

// consider fetches a description and asks the services in it.
func (s *searchState) startInspection(ctx context.Context, c candidate) {
	s.pending++
	if c.isGateway {
		s.pendingGateway++
	}
	s.backend.fetches.Add(1)
	s.fetches.Go(func() {
		defer s.backend.fetches.Add(-1)
		if !c.isGateway { // strangers who are slow are not to keep the gateway waiting
			select {
			case s.fetchSlots <- struct{}{}:
				defer func() { <-s.fetchSlots }()
			case <-ctx.Done():
				s.results <- inspectResult{candidate: c, err: context.Cause(ctx)}
				return
			}
		}
		g, err := s.backend.inspect(ctx, c)
		s.results <- inspectResult{c, g, err}
	})
}

// take keeps an outcome.
func (s *searchState) record(result inspectResult) {
	switch {
	case result.gateway != nil:
		s.gateways = append(s.gateways, result.gateway)
		s.backend.usable.Add(1)
	case result.candidate.isGateway && !errors.Is(result.err, backends.ErrUnsupported):
		s.gatewayErr = cmp.Or(s.gatewayErr, result.err)
	default:
		s.unsuitable++
	}
}

// drain waits for the fetches under way, whose context has ended or who are
// bounded by their own time.
func (s *searchState) drain() {
	s.fetches.Wait()
	for len(s.results) > 0 {
		s.record(<-s.results)
	}
}
