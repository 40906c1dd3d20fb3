package cli

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// found is a backend that the gateway answered.
type found struct {
	opener
	backends.Backend
	gateway netip.AddrPort
	local   netip.Addr // what the gateway sees this host as
}

// survey is what came of asking the gateway.
type survey struct {
	gateway netip.AddrPort
	found   []found // the preferred first
	silent  []silent
}

// silent is a backend that the gateway did not answer, or not well.
type silent struct {
	found
	err error
}

// silence is why there is no backend.
func (s *survey) silence() error {
	var errs []error
	for _, b := range s.silent {
		errs = append(errs, b.err)
	}
	return errors.Join(errs...)
}

// lateTime bounds the question to a backend that the facade had no need to ask.
const lateTime = 500 * time.Millisecond

// inquiry is how to look for backends, and what for.
type inquiry struct {
	way    []forward.Option            // to the gateway
	key    []byte                      // that PCP nonces are derived from; nil: none
	most   time.Duration               // bounds all of it, unless --timeout does
	enough func(backends.Backend) bool // one that answers and is this will do; nil: none
	do     func(context.Context, *survey) error
}

// withBackends finds the gateway as the facade does, and does something with the
// backends that it answers.
func (a *app) withBackends(ctx context.Context, q inquiry) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	g, err := f.Gateway(ctx, q.way...)
	if err != nil {
		return err
	}
	ctx, cancel := within(ctx, cmp.Or(a.settings.timeout, q.most))
	defer cancel()
	local := g.Local
	if !local.IsValid() {
		if local, err = f.LocalIP(ctx); err != nil {
			return err
		}
	}
	w := way{
		gateway: g.Addr, iface: g.Interface, source: g.Local, key: q.key, igd: a.settings.igd,
		ssdp: a.settings.ssdp, announce: a.settings.announce, notify: a.settings.notify,
	}
	var all []found
	var speakers []speaker
	for _, o := range a.wanted() {
		if w.gateway.Addr().Is6() && !o.ipv6 {
			continue
		}
		s, err := o.open(a, w)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		all, speakers = append(all, found{o, s.Backend, w.gateway, local}), append(speakers, s)
	}
	s := &survey{gateway: w.gateway}
	for i, err := range askAll(ctx, speakers, g.Backends, q.enough) {
		if err == nil {
			s.found = append(s.found, all[i])
		} else {
			s.silent = append(s.silent, silent{all[i], err})
		}
	}
	if len(s.found) == 0 { // it answered the facade a moment ago
		return s.silence()
	}
	return q.do(ctx, s)
}

// askAll asks the backends at once that are not known to be answered. The gateway
// was not asked about all: any of them may be what made a mapping. Where one will
// do, the others are not waited for.
func askAll(ctx context.Context, speakers []speaker, known []string, enough func(backends.Backend) bool) []error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(speakers))
	var wg sync.WaitGroup
	for i, s := range speakers {
		if s.devices == nil && slices.Contains(known, s.String()) {
			continue
		}
		wg.Go(func() {
			if errs[i] = s.answers(ctx); errs[i] == nil && enough != nil && enough(s.Backend) {
				cancel()
			}
		})
	}
	wg.Wait()
	return errs
}

// answers returns nil where the gateway speaks the protocol. A search has its own
// bound.
func (s speaker) answers(ctx context.Context) error {
	if s.devices == nil {
		var cancel context.CancelFunc
		ctx, cancel = within(ctx, lateTime)
		defer cancel()
	}
	_, err := s.ask(ctx)
	if verdict(err) == "yes" || errors.Is(err, backends.ErrNotAuthorized) {
		return nil
	}
	return err
}
