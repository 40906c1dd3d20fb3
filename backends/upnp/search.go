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
	better          = 100 * time.Millisecond  // how long a device waits for better ones
	allHaveAnswered = 1200 * time.Millisecond // searches allow devices a second
	maxStrangers    = 16                      // descriptions of devices that are not the gateway
	maxAtOnce       = 8                       // of those, fetched at once
	maxPerStranger  = 2
	maxFromGateway  = 8
)

// gateway is find, and those who watch hear of it where the device has changed.
func (b *Backend) gateway(ctx context.Context) (*gateway, error) {
	b.mu.Lock()
	g := b.found
	b.mu.Unlock()
	if g != nil {
		return g, nil
	}
	g, err := b.find(ctx)
	if err == nil {
		b.remembered(g)
	}
	return g, err
}

// find returns the device to use, looking for it where none is known. Callers at
// the same time share one search.
func (b *Backend) find(ctx context.Context) (*gateway, error) {
	select {
	case b.finding <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("upnp: looking for a gateway device: %w", context.Cause(ctx))
	}
	defer func() { <-b.finding }()
	b.mu.Lock()
	g := b.found
	b.mu.Unlock()
	if g != nil {
		return g, nil
	}
	all, err := b.search(ctx, best)
	if err != nil {
		return nil, err
	}
	g = all[0]
	b.log.Debug("upnp: device chosen", "url", g.Device.URL, "model", g.Device.Model, "service", g.Service.Type, "reason", g.Reason)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.found = g
	if g.asked {
		b.external, b.asked = g.External, time.Now()
	}
	return g, nil
}

// lose forgets a device, whenever it was asked last, so that the next call looks
// for it.
func (b *Backend) lose(g *gateway) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.found != nil && b.found.Device == g.Device {
		b.found = nil
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
	found, err := b.search(ctx, everyone)
	if err != nil {
		return nil, err
	}
	var out []Gateway
	for _, g := range found {
		out = append(out, g.Gateway)
	}
	return out, nil
}

// thoroughness is when a search is over.
type thoroughness bool

const (
	best     thoroughness = false // when nothing better can be waited for
	everyone thoroughness = true  // when its time is
)

// outcome is what became of one description.
type outcome struct {
	candidate candidate
	gateway   *gateway
	err       error
}

// search finds gateway devices, the best first. Without any, the error wraps
// backends.ErrNoReply or says what was wrong with those that answered.
func (b *Backend) search(ctx context.Context, until thoroughness) ([]*gateway, error) {
	callers := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, b.config.Wait, fmt.Errorf("%w within %v", backends.ErrNoReply, b.config.Wait))
	defer cancel()
	s := &searching{backend: b, outcomes: make(chan outcome, maxStrangers+maxFromGateway), tickets: make(chan struct{}, maxAtOnce)}
	if b.config.URL != "" {
		s.consider(ctx, candidate{url: b.config.URL, own: true})
	}
	defer func() { b.met.Add(-int32(len(s.found))) }() //nolint:gosec // there are few
	answers := make(chan ssdp.Response)
	ended := make(chan error, 1)
	go func() { ended <- b.listen(ctx, answers) }() // waited for below
	s.collect(ctx, answers, until)
	cancel()
	err := <-ended
	s.drain()
	if callers.Err() != nil {
		return nil, fmt.Errorf("upnp: looking for a gateway device: %w", context.Cause(callers))
	}
	slices.SortStableFunc(s.found, (*gateway).compare)
	switch {
	case len(s.found) > 0:
		explain(s.found)
		return s.found, nil
	case s.failure != nil:
		return nil, s.failure
	case err != nil:
		return nil, fmt.Errorf("upnp: searching: %w: %w", backends.ErrNoReply, err)
	case s.others > 0:
		return nil, fmt.Errorf("upnp: %w: %d devices answered the search, none of them a gateway that works", backends.ErrNoReply, s.others)
	}
	return nil, fmt.Errorf("upnp: %w: no device answered the search", backends.ErrNoReply)
}

// What is searched for, and when: gateways answer to their own kind, most of
// them to either version. To what all devices answer, some answer only. Common
// gateways are slow while they do: the second search is for where the first has
// found nothing that works.
var (
	firstTargets = []string{
		"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
		"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	}
	secondTargets = []string{"upnp:rootdevice", "ssdp:all"}
)

// The second search begins after a pause, or after so many where somebody who has
// answered is being asked.
const (
	secondSearch = 250 * time.Millisecond
	atLatest     = 4
)

// listen sends the searches and passes the answers on. A named device needs none.
// It fails where nothing can be sent.
func (b *Backend) listen(ctx context.Context, answers chan<- ssdp.Response) error {
	defer close(answers)
	switch {
	case b.config.URL != "":
		return nil
	case b.config.SSDP == nil && b.config.Gateway.IsLoopback():
		return errNotSearched
	}
	errs := make([]error, 2)
	var searches sync.WaitGroup
	searches.Go(func() { errs[0] = b.pass(ctx, firstTargets, answers) })
	searches.Go(func() {
		for n := 1; ctxsync.Sleep(ctx, secondSearch) == nil; n++ {
			// Who has answered is not to be kept from it, nor to keep others from it for long.
			if b.fetching.Load() == 0 || n == atLatest {
				errs[1] = b.pass(ctx, secondTargets, answers)
				return
			}
		}
	})
	searches.Wait()
	return cmp.Or(errs...)
}

// pass searches until the context ends.
func (b *Backend) pass(ctx context.Context, targets []string, answers chan<- ssdp.Response) error {
	s := ssdp.Search{Targets: targets, To: b.destinations(), Interface: b.config.Interface, Source: b.config.Source}
	for a, err := range s.Responses(ctx) {
		if err != nil {
			return err
		}
		select {
		case answers <- a:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// errNotSearched: a gateway on loopback is on no network that a multicast would
// reach, and who runs one, for a test, knows where it answers.
var errNotSearched = errors.New("a gateway on loopback is not searched for")

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
	url    string
	own    bool // the gateway itself did
	bootID ssdp.ID
}

// searching is one search: whom it has considered, and what came of them.
type searching struct {
	backend  *Backend
	outcomes chan outcome  // as large as all that is ever considered
	tickets  chan struct{} // to fetch a description of a stranger
	fetches  sync.WaitGroup

	// Of the goroutine that searches alone.
	seen      map[string]bool
	share     map[netip.Addr]int
	strangers int
	pending   int // fetches under way
	own       int // of these, of the gateway's own device
	found     []*gateway
	failure   error // of the gateway's own device
	others    int   // devices that are of no use
}

// collect considers answers until the search is settled or its time is over.
func (s *searching) collect(ctx context.Context, answers <-chan ssdp.Response, until thoroughness) {
	var patience <-chan time.Time
	var deadline time.Time
	over := false // the patience is, but for the gateway's own device
	for (answers != nil || s.pending > 0) && (!over || s.own > 0) {
		select {
		case a, open := <-answers:
			if !open {
				answers = nil
				continue
			}
			s.answered(ctx, a)
		case o := <-s.outcomes:
			s.pending--
			if o.candidate.own {
				s.own--
			}
			s.take(o)
			switch {
			case until == everyone || o.gateway == nil:
			case o.gateway.unbeatable():
				return
			case over:
			default: // the least patience counts
				if end := time.Now().Add(o.gateway.patience()); patience == nil || end.Before(deadline) {
					patience, deadline = time.After(time.Until(end)), end
				}
			}
		case <-patience:
			over, patience = true, nil
		case <-ctx.Done():
			return
		}
	}
}

// answered considers who answered a search, within bounds.
func (s *searching) answered(ctx context.Context, a ssdp.Response) {
	b := s.backend
	from := a.From.Addr().Unmap()
	isGateway := b.isGateway(from)
	url, err := relocate(a.Location, a.From, b.config.Gateway, b.onLink)
	if err != nil {
		b.log.Debug("upnp: answer ignored", "from", a.From, "location", a.Location, "err", err)
		return
	}
	// A gateway may answer from another address than the one that it serves at.
	own := isGateway || b.isGateway(hostOf(url))
	if s.seen[url] || b.config.Only && !own {
		return
	}
	limit := maxPerStranger
	if isGateway {
		limit = maxFromGateway
	}
	if s.share[from] >= limit || !isGateway && s.strangers >= maxStrangers {
		return
	}
	if s.seen == nil {
		s.seen, s.share = map[string]bool{}, map[netip.Addr]int{}
	}
	s.seen[url] = true
	s.share[from]++
	if !isGateway {
		s.strangers++
	}
	s.consider(ctx, candidate{url: url, own: own, bootID: a.BootID})
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
func (s *searching) consider(ctx context.Context, c candidate) {
	s.pending++
	if c.own {
		s.own++
	}
	s.backend.fetching.Add(1)
	s.fetches.Go(func() {
		defer s.backend.fetching.Add(-1)
		if !c.own { // strangers who are slow are not to keep the gateway waiting
			select {
			case s.tickets <- struct{}{}:
				defer func() { <-s.tickets }()
			case <-ctx.Done():
				s.outcomes <- outcome{candidate: c, err: context.Cause(ctx)}
				return
			}
		}
		g, err := s.backend.survey(ctx, c)
		s.outcomes <- outcome{c, g, err}
	})
}

// take keeps an outcome.
func (s *searching) take(o outcome) {
	switch {
	case o.gateway != nil:
		s.found = append(s.found, o.gateway)
		s.backend.met.Add(1)
	case o.candidate.own && !errors.Is(o.err, backends.ErrUnsupported):
		s.failure = cmp.Or(s.failure, o.err)
	default:
		s.others++
	}
}

// drain waits for the fetches under way, whose context has ended or who are
// bounded by their own time.
func (s *searching) drain() {
	s.fetches.Wait()
	for len(s.outcomes) > 0 {
		s.take(<-s.outcomes)
	}
}
