package upnp

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
)

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
