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

// The limits of a search. The gateway has separate limits, so that other devices
// cannot use them up.
const (
	betterWait           = 100 * time.Millisecond  // how long a usable device waits for a better one
	allResponsesWait     = 1200 * time.Millisecond // a search permits devices to delay their response by a second
	maxNonGateways       = 16                      // descriptions of devices that are not the gateway
	maxConcurrentFetches = 8                       // concurrent fetches of these descriptions
	maxPerNonGateway     = 2                       // descriptions from one responding address
	maxPerGateway        = 8                       // descriptions from the gateway's address
)

// gateway returns the result of findGateway. If the device has changed, it
// sends a hint to the watchers.
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

// findGateway returns the current device. If there is none, it searches for it.
// Concurrent callers share one search.
func (b *Backend) findGateway(ctx context.Context) (*gateway, error) {
	select {
	case b.searchLock <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("upnp: searching for a gateway device: %w", context.Cause(ctx))
	}
	defer func() { <-b.searchLock }()
	b.mu.Lock()
	g := b.current
	b.mu.Unlock()
	if g != nil {
		return g, nil
	}
	gateways, err := b.search(ctx, untilBest)
	if err != nil {
		return nil, err
	}
	g = gateways[0]
	b.log.Debug("upnp: device chosen", "url", g.Device.URL, "model", g.Device.Model, "service", g.Service.Type, "reason", g.Reason)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = g
	return g, nil
}

// forget makes the next call search for a device, if g is the current device. A
// later query of the same device (requery) makes no difference.
func (b *Backend) forget(g *gateway) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && b.current.Device == g.Device {
		b.current = nil
	}
}

// Gateways searches for gateway devices until Config.Wait has elapsed, and
// returns all of them, the preferred one first.
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

// searchMode determines when a search ends.
type searchMode bool

const (
	untilBest    searchMode = false // when no better device is expected
	untilTimeout searchMode = true  // when Config.Wait has elapsed
)

// inspectResult is the result of inspecting one candidate.
type inspectResult struct {
	candidate candidate
	gateway   *gateway
	err       error
}

// search returns the gateway devices that it finds, the best first. If there is
// none, the error wraps backends.ErrNoReply or explains why the gateway's
// device cannot be used.
func (b *Backend) search(ctx context.Context, mode searchMode) ([]*gateway, error) {
	parent := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Wait, fmt.Errorf("%w within %v", backends.ErrNoReply, b.config.Wait))
	defer cancel()
	s := &searchState{backend: b, results: make(chan inspectResult, maxNonGateways+maxPerGateway), fetchSlots: make(chan struct{}, maxConcurrentFetches)}
	if b.config.URL != "" {
		s.startInspection(ctx, candidate{url: b.config.URL, isGateway: true})
	}
	defer func() { b.usable.Add(-int32(len(s.gateways))) }() //nolint:gosec // the number is small
	responses := make(chan ssdp.Response)
	searchErr := make(chan error, 1)
	go func() { searchErr <- b.runSearches(ctx, responses) }() // awaited below
	s.collect(ctx, responses, mode)
	cancel()
	err := <-searchErr
	s.drain()
	if parent.Err() != nil {
		return nil, fmt.Errorf("upnp: searching for a gateway device: %w", context.Cause(parent))
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

// firstTargets is the number of targets of the first search: the two versions of
// InternetGatewayDevice. Most gateways respond to either. Common gateways respond
// slowly to the other targets, so the search for these starts only if the first
// one has not found a working gateway.
const firstTargets = 2

// The generic search starts after genericSearchDelay. While a description is
// being fetched, it is postponed, but not beyond maxGenericDelays times that
// delay.
const (
	genericSearchDelay = 250 * time.Millisecond
	maxGenericDelays   = 4
)

// runSearches sends the searches and passes on the responses. If Config.URL is
// set, it sends none. It returns an error if no search can be sent.
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
	searches.Go(func() { errs[0] = b.searchTargets(ctx, ssdp.Targets()[:firstTargets], responses) })
	searches.Go(func() {
		for n := 1; ctxsync.Sleep(ctx, genericSearchDelay) == nil; n++ {
			// A generic search slows down a device that is being inspected.
			// Other devices must not wait for it too long, however.
			if b.fetches.Load() == 0 || n == maxGenericDelays {
				errs[1] = b.searchTargets(ctx, ssdp.Targets()[firstTargets:], responses)
				return
			}
		}
	})
	searches.Wait()
	return cmp.Or(errs...)
}

// searchTargets searches for the targets until the context ends.
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

// errLoopbackGateway is returned if the gateway is on loopback and Config.SSDP
// is not set. Multicast does not reach loopback. Such gateways exist only in
// tests, which can set Config.SSDP.
var errLoopbackGateway = errors.New("no search is sent to a gateway on loopback: name the URL of its UPnP description")

// destinations returns the addresses to which searches are sent.
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

// candidate is the URL of a description, from a search response or from
// Config.URL.
type candidate struct {
	url       string
	isGateway bool // the device of the configured gateway
	bootID    ssdp.ID
}

// searchState is the state of one search: the devices that responded and the
// results of their inspection.
type searchState struct {
	backend    *Backend
	results    chan inspectResult // has room for all candidates, so that sending never blocks
	fetchSlots chan struct{}      // semaphore for fetching descriptions from other devices
	fetches    sync.WaitGroup

	// The fields below are used only by the goroutine of search.
	seen           map[string]bool    // the URLs of the candidates
	perResponder   map[netip.Addr]int // candidates for each responding address
	nonGateways    int                // candidates from other addresses than the gateway's
	pending        int                // inspections in progress
	pendingGateway int                // inspections of the gateway's device in progress
	gateways       []*gateway
	gatewayErr     error // from the inspection of the gateway's device
	unsuitable     int   // number of devices that cannot be used
}

// collect processes responses and results until the search is decided or its
// time is over.
func (s *searchState) collect(ctx context.Context, responses <-chan ssdp.Response, mode searchMode) {
	var timer <-chan time.Time
	var deadline time.Time
	waited := false // the wait for a better device is over, except for the gateway's own device
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
			default: // the shortest wait decides
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

// handleResponse starts the inspection of a device that responded, unless a limit
// is reached.
func (s *searchState) handleResponse(ctx context.Context, resp ssdp.Response) {
	b := s.backend
	from := resp.From.Addr().Unmap()
	fromGateway := b.isGateway(from)
	url, err := rewriteLocation(resp.Location, resp.From, b.config.Gateway, b.onLink)
	if err != nil {
		b.log.Debug("upnp: response ignored", "from", resp.From, "location", resp.Location, "err", err)
		return
	}
	// A gateway may respond from an address other than the one at which it
	// serves its description.
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

// hostOf returns the address in a URL that has been validated.
func hostOf(url string) netip.Addr {
	e, err := parseIPURL(url)
	if err != nil {
		return netip.Addr{}
	}
	return e.addr.Addr()
}

// startInspection inspects a candidate in a new goroutine.
func (s *searchState) startInspection(ctx context.Context, c candidate) {
	s.pending++
	if c.isGateway {
		s.pendingGateway++
	}
	s.backend.fetches.Add(1)
	s.fetches.Go(func() {
		defer s.backend.fetches.Add(-1)
		if !c.isGateway { // slow devices must not delay the gateway's device
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

// record stores the result of an inspection.
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

// drain waits for the inspections in progress, and records their results. Their
// context has ended.
func (s *searchState) drain() {
	s.fetches.Wait()
	for len(s.results) > 0 {
		s.record(<-s.results)
	}
}
