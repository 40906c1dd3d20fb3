package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

// choose returns the way to use, on which at least one candidate answers.
// Callers at the same time share one probe.
func (f *Forwarder) choose(ctx context.Context, fam family) (*way, error) {
	begin := time.Now()
	if err := f.choosing[fam].take(ctx); err != nil {
		return nil, err
	}
	defer f.choosing[fam].give()
	w, err := f.way(fam)
	if err != nil {
		return nil, err
	}
	if len(f.speaking(w)) > 0 {
		return w, nil
	}
	if w.probed.After(begin) { // while this one waited
		return nil, w.silence
	}
	chosen, err := f.probe(ctx, w)
	if err != nil {
		if ctx.Err() == nil {
			w.probed, w.silence = time.Now(), err
		}
		return nil, err
	}
	f.log.Info("gateway chosen", "gateway", w.key.gateway.Addr(), "interface", w.key.iface, "backend", chosen.backend.String())
	return w, nil
}

// speaking returns the candidates that answered, the preferred first.
func (f *Forwarder) speaking(w *way) []*candidate {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*candidate
	for _, c := range w.candidates {
		if c.verdict == speaks {
			out = append(out, c)
		}
	}
	return out
}

// The pace of a probe: a less preferred candidate is asked when the one before
// has not answered for a moment, and one that has answered waits for those
// before it. Where one that the gateway is simply asked about is answered, the
// question before it is not under way for long. A search takes its time, and so
// begins early; but common gateways do one thing at a time, and one that answers
// a search first answers the question late.
const (
	stagger     = 50 * time.Millisecond
	headStart   = 25 * time.Millisecond // before a search
	preference  = 250 * time.Millisecond
	afterAnswer = 50 * time.Millisecond
	promise     = 250 * time.Millisecond // for a device that has answered the search, and not yet what it is asked
)

// probe asks the candidates of a way, and returns the first that answers when no
// better one can be waited for. It ends after Config.Wait. Those that it did not
// need to wait for, or could not because its caller gave up, stay unknown.
func (f *Forwarder) probe(callers context.Context, w *way) (*candidate, error) {
	ctx, cancel := context.WithTimeoutCause(callers, f.config.Wait, &timeoutError{f.config.Wait})
	defer cancel()
	type outcome struct {
		index int
		err   error
	}
	outcomes := make(chan outcome, len(w.candidates))
	failed := make([]chan struct{}, len(w.candidates)) // closed when the candidate has
	for i := range failed {
		failed[i] = make(chan struct{})
	}
	for i, c := range w.candidates {
		go func() { // waited for below
			late := time.Duration(i) * stagger
			if c.opener.searches {
				late = min(late, headStart)
			}
			err := wait(ctx, i, min(late, f.config.Wait/4), failed)
			if err == nil {
				err = c.ask(ctx)
			}
			if err != nil {
				close(failed[i])
			}
			outcomes <- outcome{i, err}
		}()
	}
	errs := make([]error, len(w.candidates))
	for i := range errs {
		errs[i] = errPending
	}
	begun := time.Now()
	patience := time.NewTimer(preference)
	defer patience.Stop()
	searched := time.NewTimer(searchTime)
	defer searched.Stop()
	over, provisional := false, false
	waiting := len(errs)
	for waiting > 0 && !settled(errs, over) && (!provisional || !w.hopeless(errs)) {
		select {
		case o := <-outcomes:
			waiting--
			errs[o.index] = o.err
			if o.err == nil && !w.candidates[o.index].opener.searches && time.Since(begun) < preference-afterAnswer {
				patience.Reset(afterAnswer)
			}
		case <-patience.C:
			over = true
		case <-searched.C:
			provisional = true
			searched.Reset(promise)
		}
	}
	cancel()
	for ; waiting > 0; waiting-- {
		<-outcomes // ended by cancel: nothing is known of these
	}
	gaveUp := callers.Err() != nil && !isOwnTimeout(callers)
	if gaveUp {
		for i, err := range errs {
			if err != nil && errors.Is(err, context.Cause(callers)) {
				errs[i] = errPending
			}
		}
	}
	f.record(w, errs)
	for i, err := range errs {
		if err == nil {
			return w.candidates[i], nil
		}
	}
	if gaveUp {
		return nil, fmt.Errorf("forward: looking for a gateway: %w", context.Cause(callers))
	}
	for i, err := range errs {
		if err == errPending { //nolint:errorlint // the very value
			errs[i] = w.candidates[i].notFound(backends.ErrNoReply)
		}
	}
	return nil, newError(errs, f.config.Gateway.IsValid())
}

// hopeless reports whether all candidates have failed but those that are
// searched for, and nobody has answered the search.
func (w *way) hopeless(errs []error) bool {
	for i, err := range errs {
		if err != errPending { //nolint:errorlint // the very value
			continue
		}
		c := w.candidates[i]
		if p, is := c.backend.(interface{ Promising() bool }); !c.opener.searches || is && p.Promising() {
			return false
		}
	}
	return true
}

var errPending = errors.New("no verdict yet")

// settled reports whether the candidates' order is decided: the first that has
// not failed has answered or, when patience is over, any has.
func settled(errs []error, over bool) bool {
	for _, err := range errs {
		switch {
		case err == nil:
			return true
		case err == errPending && !over: //nolint:errorlint // the very value
			return false
		}
	}
	return false
}

// record keeps what a probe came to.
func (f *Forwarder) record(w *way, errs []error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range w.candidates {
		switch errs[i] {
		case nil:
			c.verdict, c.failure = speaks, nil
		case errPending: //nolint:errorlint // the very value
			c.verdict, c.failure = unknown, nil
		default:
			c.verdict, c.failure, c.judged = fails, errs[i], time.Now()
		}
	}
}

// searchTime is how long a search is waited for where nothing else can come: it
// allows devices a second. It is a provisional verdict: the next call searches
// again.
const searchTime = 1200 * time.Millisecond

// lateAnswer bounds the wait for a candidate where the gateway has answered
// another: it is there, and not slow.
const lateAnswer = time.Second

// failureAge is how long a candidate that failed is not asked again, where others
// answer: it may have been away.
const failureAge = 30 * time.Second

// ready makes sure that a candidate answers, asking one that is not known yet.
func (f *Forwarder) ready(ctx context.Context, w *way, c *candidate) error {
	f.mu.Lock()
	verdict, failure := c.verdict, c.failure
	old := time.Since(c.judged) > failureAge
	f.mu.Unlock()
	if verdict == speaks || verdict == fails && !old {
		return failure
	}
	patience := f.config.Wait
	if len(f.speaking(w)) > 0 {
		late := lateAnswer
		if c.opener.searches {
			late += searchTime
		}
		patience = min(patience, late)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, &timeoutError{patience})
	defer cancel()
	err := c.ask(ctx)
	if ctx.Err() != nil && !isOwnTimeout(ctx) {
		return err // it is not known yet
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.judged = time.Now()
	if c.verdict, c.failure = speaks, nil; err != nil {
		c.verdict, c.failure = fails, err
	}
	return err
}

// notFound is of a kind that says whether the gateway answers otherwise.
func (c *candidate) notFound(kind error) error {
	return fmt.Errorf("%v: %w: no device answered the search", c.backend, kind)
}

// ask returns nil where the gateway speaks the candidate's protocol, even where
// it refuses: what it refuses, the mapping itself will tell better.
func (c *candidate) ask(ctx context.Context) error {
	if c.probe == nil {
		return nil
	}
	err := c.probe(ctx)
	for _, speaks := range []error{backends.ErrNotAuthorized, backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrPrivateWAN} {
		if errors.Is(err, speaks) {
			return nil
		}
	}
	return err
}

// inOrder returns the candidates in the order in which to use them: those that
// answered first, so that owners do not flap after a probe that lost a packet.
func (f *Forwarder) inOrder(w *way) []*candidate {
	out := f.speaking(w)
	for _, c := range w.candidates {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

// wait waits for a candidate's turn: until it is late, or the one before has
// failed.
func wait(ctx context.Context, i int, late time.Duration, failed []chan struct{}) error {
	if i == 0 {
		return nil
	}
	t := time.NewTimer(late)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-failed[i-1]:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
