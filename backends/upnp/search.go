package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
)

// The limits of a search. The gateway has separate limits, so that other devices
// cannot use them up.
const (
	betterWait           = 100 * time.Millisecond  // how long a usable device of the gateway waits for a better one
	otherFamilyWait      = 500 * time.Millisecond  // the same for a device over IPv4 that opens pinholes
	allResponsesWait     = 1200 * time.Millisecond // a search permits devices to delay their response by a second
	maxNonGateways       = 16                      // descriptions of devices that are not the gateway
	maxConcurrentFetches = 8                       // concurrent fetches of these descriptions
	maxPerNonGateway     = 2                       // descriptions from one responding address
	maxPerGateway        = 8                       // descriptions from the gateway's address
	maxAttempts          = 3                       // requests for one description
	retryPause           = 250 * time.Millisecond  // before the second attempt; four times that before the third
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
	gateways, err := b.search(ctx, false)
	if err != nil {
		return nil, err
	}
	g = gateways[0]
	level := slog.LevelDebug
	if !g.Default {
		level = slog.LevelWarn
	}
	b.log.Log(ctx, level, "upnp: device chosen", "url", g.Device.URL, "model", g.Device.Model, "service", g.Service.Type, "reason", g.Reason)
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
	gateways, err := b.search(ctx, true)
	if err != nil {
		return nil, err
	}
	var out []Gateway
	for _, g := range gateways {
		out = append(out, g.Gateway)
	}
	return out, nil
}

// search returns the gateway devices that it finds, the preferred one first. If
// there is none, the error explains why. If the caller's context ends because of
// a timeout that wraps backends.ErrNoReply, only the search is over. If all is
// set, the search continues until Config.Wait has elapsed, otherwise until no
// better device is expected.
func (b *Backend) search(ctx context.Context, all bool) ([]*gateway, error) {
	parent := ctx
	ctx, cancel := withTimeout(ctx, b.config.Wait)
	defer cancel()
	s := &searchState{
		backend: b, results: make(chan candidate, maxNonGateways+maxPerGateway), fetchSlots: make(chan struct{}, maxConcurrentFetches),
		seen: map[string]bool{}, perResponder: map[netip.Addr]int{}, begin: make(chan struct{}),
	}
	c := candidate{url: b.config.URL, isGateway: true}
	if c.url == "" && !all {
		c.url, c.tryFirst = b.takeTryFirst(), true
	}
	if c.url != "" && s.reserve(c) {
		s.startInspection(ctx, c)
	}
	if c.url == "" || !c.tryFirst {
		close(s.begin)
	}
	responses := make(chan ssdp.Response)
	searchErr := make(chan error, 1)
	go func() { // awaited below
		s.awaitBegin(ctx)
		searchErr <- b.runSearches(ctx, responses)
	}()
	s.collect(ctx, responses, all)
	cancel()
	err := <-searchErr
	s.drain()
	if cause := context.Cause(parent); cause != nil && !errors.Is(cause, backends.ErrNoReply) {
		return nil, fmt.Errorf("upnp: searching for a gateway device: %w", cause)
	}
	if len(s.gateways) == 0 {
		return nil, s.failure(err)
	}
	slices.SortStableFunc(s.gateways, (*gateway).compare)
	setReasons(s.gateways, s.gatewayErr)
	return s.gateways, nil
}

// takeTryFirst returns the URL that TryFirst has set, and clears it.
func (b *Backend) takeTryFirst() (url string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	url, b.tryFirst = b.tryFirst, ""
	return url
}

// awaitBegin waits while the description that TryFirst named is fetched: until it cannot be
// used, until the probe to which the search belongs is repeated, or for tryFirstWait.
func (s *searchState) awaitBegin(ctx context.Context) {
	timer := time.NewTimer(s.backend.tryFirstWait)
	defer timer.Stop()
	select {
	case <-s.begin:
	case <-ctxsync.Repeat(ctx):
	case <-timer.C:
	case <-ctx.Done():
	}
}

// withTimeout bounds a context. The cause of its end wraps backends.ErrNoReply.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %v", backends.ErrNoReply, d))
}

// failure returns the reason why the search found no usable device. err is the
// error of sending the searches.
func (s *searchState) failure(err error) error {
	reason := "no device answered the search"
	switch {
	case errors.Is(s.gatewayErr, backends.ErrUnsupported):
		return notGatewayError{s.gatewayErr}
	case s.gatewayErr != nil:
		return s.gatewayErr
	case err != nil:
		return fmt.Errorf("upnp: searching: %w: %w", backends.ErrNoReply, err)
	case s.ignored != "":
		reason = s.ignored
	case s.unsuitable > 0:
		reason = fmt.Sprintf("%d devices answered the search, none of them a working gateway", s.unsuitable)
	}
	return fmt.Errorf("upnp: %w: %s", backends.ErrNoReply, reason)
}

// notGatewayError means that the gateway has only other UPnP devices. It wraps
// backends.ErrNoReply too, because no gateway device has answered.
type notGatewayError struct{ error }

func (e notGatewayError) Unwrap() []error { return []error{backends.ErrNoReply, e.error} }

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
	case b.config.SSDP == nil && b.config.Gateway.IsLoopback(): // only in tests: multicast does not reach loopback
		return errors.New("no search is sent to a gateway on loopback: name the URL of its UPnP description")
	}
	errs := make([]error, 2)
	var searches sync.WaitGroup
	b.refused.Store(false)
	searches.Go(func() { b.detectRefusal(ctx) })
	searches.Go(func() { errs[0] = b.searchTargets(ctx, ssdp.Targets()[:firstTargets], responses) })
	searches.Go(func() {
		// A generic search slows down a device that is being inspected. Other
		// devices must not wait for it too long, however.
		for n := 0; n == 0 || n < maxGenericDelays && b.fetches.Load() > 0; n++ {
			_ = ctxsync.Sleep(ctx, genericSearchDelay)
		}
		errs[1] = b.searchTargets(ctx, ssdp.Targets()[firstTargets:], responses)
	})
	searches.Wait()
	return cmp.Or(errs...)
}

// detectRefusal sets b.refused if the gateway refuses datagrams to the port of SSDP, at
// each of its addresses.
func (b *Backend) detectRefusal(ctx context.Context) {
	refused := false
	for _, to := range b.destinations() {
		if b.isGateway(to.Addr()) {
			if refused = b.refuses(ctx, to); !refused {
				break
			}
		}
	}
	b.refused.Store(refused)
}

// refuses reports whether datagrams to an address are refused. Only a connected socket
// reports that. The datagram is a notification without content, which devices ignore.
func (b *Backend) refuses(ctx context.Context, to netip.AddrPort) bool {
	conn, err := b.clientConfigFor(to.Addr()).dialer().Dial(ctx, "udp", to)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if _, err = conn.Write([]byte("NOTIFY * HTTP/1.1\r\n\r\n")); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	return errno.IsRefused(err)
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

// destinations returns the addresses to which searches are sent. Some routers
// with an IPv6 firewall support UPnP only over IPv4.
func (b *Backend) destinations() []netip.AddrPort {
	to := []netip.AddrPort{netip.AddrPortFrom(b.config.Gateway, ssdp.Port), ssdp.Multicast}
	switch {
	case b.config.SSDP != nil:
		return b.config.SSDP
	case b.is6 && b.config.Gateway4.IsValid():
		to = append(to, netip.AddrPortFrom(b.config.Gateway4, ssdp.Port), ssdp.Multicast6)
	case b.is6:
		to = append(to, ssdp.Multicast6)
	}
	return to
}

// candidate is the URL of a description, from a search response or from
// Config.URL.
type candidate struct {
	url       string
	isGateway bool       // the device of the configured gateway
	from      netip.Addr // the responding address
	bootID    ssdp.ID
	tryFirst  bool // named by TryFirst

	// The result of the inspection.
	gateway  *gateway
	err      error
	attempts int // the number of failed attempts before this one
}

// searchState is the state of one search: the devices that responded and the
// results of their inspection.
type searchState struct {
	backend    *Backend
	results    chan candidate // the inspected ones; has room for all, so that sending never blocks
	fetchSlots chan struct{}  // semaphore for fetching descriptions from other devices
	fetches    sync.WaitGroup
	begin      chan struct{} // closed when the searches can be sent

	// The fields below are used only by the goroutine of search.
	seen           map[string]bool    // the URLs of the candidates
	perResponder   map[netip.Addr]int // requests for descriptions, for each responding address
	nonGateways    int                // requests because of responses from other addresses than the gateway's
	pending        int                // inspections in progress
	pendingGateway int                // inspections of the gateway's device in progress
	retrying       int                // those of them that are not the first attempt
	gateways       []*gateway
	gatewayErr     error  // from the inspection of the gateway's device
	ignored        string // why a response was ignored
	unsuitable     int    // number of other devices that cannot be used
}

// collect processes responses and results until the search is decided or its
// time is over. A device of the gateway decides the search. Another device is
// used only if the gateway's device had enough time to respond.
func (s *searchState) collect(ctx context.Context, responses <-chan ssdp.Response, all bool) {
	var betterTimer <-chan time.Time
	otherTimer := time.After(max(allResponsesWait, s.backend.config.Wait/2))
	betterOver, otherOver := false, false
	for responses != nil || s.pending > 0 {
		if betterOver && s.pendingGateway == s.retrying || otherOver && !all && len(s.gateways) > 0 && s.pendingGateway == 0 {
			return
		}
		select {
		case resp, open := <-responses:
			if !open {
				responses = nil
				continue
			}
			s.handleResponse(ctx, resp)
		case c := <-s.results:
			s.addPending(c, -1)
			switch {
			case c.tryFirst && c.gateway == nil:
				close(s.begin)
				continue
			case s.retry(ctx, c):
				continue
			}
			s.record(c)
			if g := c.gateway; !all && g != nil && g.Default {
				switch {
				case g.isOtherFamily():
					betterTimer = time.After(otherFamilyWait)
				case g.rank() == connectedPublic || c.tryFirst && g.rank() != disconnected:
					return // no other device can be better, or the device was chosen before
				default:
					betterTimer = time.After(betterWait)
				}
			}
		case <-betterTimer:
			betterOver = true
		case <-otherTimer:
			otherOver = true
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
		if fromGateway {
			s.ignored = fmt.Sprintf("its response to the search cannot be used: %v", err)
		}
		return
	}
	// A gateway may respond from an address other than the one at which it
	// serves its description.
	isGateway := fromGateway || b.isGateway(hostOf(url))
	if b.config.Only && !isGateway {
		s.ignored = cmp.Or(s.ignored, fmt.Sprintf("a device at %v answered; it is not the device of %v", hostOf(url), b.config.Gateway))
		return
	}
	if s.seen[url] {
		return
	}
	c := candidate{url: url, isGateway: isGateway, from: from, bootID: resp.BootID}
	if !s.reserve(c) {
		return
	}
	s.seen[url] = true
	s.startInspection(ctx, c)
}

// reserve counts a request for a description. It returns false if a limit is
// reached.
func (s *searchState) reserve(c candidate) bool {
	limit, fromGateway := maxPerNonGateway, c.from == netip.Addr{} || s.backend.isGateway(c.from)
	if fromGateway {
		limit, c.from = maxPerGateway, netip.Addr{} // one limit for all addresses of the gateway
	}
	if s.perResponder[c.from] >= limit || !fromGateway && s.nonGateways >= maxNonGateways {
		return false
	}
	s.perResponder[c.from]++
	if !fromGateway {
		s.nonGateways++
	}
	return true
}

func (b *Backend) isGateway(a netip.Addr) bool {
	return a.WithZone("") == b.config.Gateway.WithZone("") || a == b.config.Gateway4
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
	s.addPending(c, 1)
	s.backend.fetches.Add(1)
	s.fetches.Go(func() {
		defer s.backend.fetches.Add(-1)
		defer func() { s.results <- c }()
		if c.attempts > 0 && ctxsync.Sleep(ctx, retryPause<<(2*(c.attempts-1))) != nil {
			return // with the error of the last attempt
		}
		if !c.isGateway { // slow devices must not delay the gateway's device
			select {
			case s.fetchSlots <- struct{}{}:
				defer func() { <-s.fetchSlots }()
			case <-ctx.Done():
				c.err = context.Cause(ctx)
				return
			}
		}
		if !c.isGateway { // its replies do not show the round-trip time of the gateway
			ctx = ctxsync.WithProbe(ctx, ctxsync.Probe{})
		}
		c.gateway, c.err = s.backend.inspect(ctx, c)
	})
}

// addPending counts inspections in progress.
func (s *searchState) addPending(c candidate, n int) {
	s.pending += n
	if c.isGateway {
		s.pendingGateway += n
		s.retrying += n * min(c.attempts, 1)
	}
}

// record stores the result of an inspection.
func (s *searchState) record(c candidate) {
	switch {
	case c.gateway != nil:
		s.gateways = append(s.gateways, c.gateway)
	case !c.isGateway:
		s.unsuitable++
	case s.gatewayErr == nil || errors.Is(s.gatewayErr, backends.ErrUnsupported):
		s.gatewayErr = c.err
	}
}

// retry inspects a candidate again if the failure may be temporary: no reply, or a
// status of 500 or more.
func (s *searchState) retry(ctx context.Context, c candidate) bool {
	var status *HTTPError
	temporary := errors.As(c.err, &status) && status.Status >= 500 || errors.Is(c.err, backends.ErrNoReply) && !errno.IsRefused(c.err)
	c.attempts++
	if !temporary || c.attempts == maxAttempts || !s.reserve(c) {
		return false
	}
	s.startInspection(ctx, c)
	return true
}

// drain waits for the inspections in progress, and records their results. Their
// context has ended.
func (s *searchState) drain() {
	s.fetches.Wait()
	for len(s.results) > 0 {
		s.record(<-s.results)
	}
}
