package port5351

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// Match is how well a datagram answers a request.
type Match uint8

// The matches. Version errors name no request: such an answer fits several,
// and goes to one whose match is exact before one where it is possible.
const (
	None Match = iota
	Possible
	Exact
)

// Transaction is a request and what makes a datagram its answer.
type Transaction struct {
	// Request is sent, and sent again, as it is.
	Request []byte
	// Answers judges a datagram from the gateway's address and port. It is called
	// on the link's reader: it must be quick and keep nothing.
	Answers func(datagram []byte) Match
	// Wait returns how long to wait after the n-th transmission, from 0, or false
	// to send no more.
	Wait func(n int) (time.Duration, bool)
	// Probe requests are not queued: they are small, and their result must not wait
	// for the retransmissions of others.
	Probe bool
}

// RequireRepeats makes an answer count only when it came for the third time, where odd
// says that it does not fit the request: it is then most likely the late answer
// to an earlier one, of which the protocols repeat everything but the lifetime.
func RequireRepeats(answers func([]byte) Match, odd func([]byte) bool) func([]byte) Match {
	const insistent = 3
	seen := 0
	return func(datagram []byte) Match {
		m := answers(datagram)
		if m == None || !odd(datagram) {
			return m
		}
		if seen++; seen < insistent {
			return None
		}
		return m
	}
}

// Reply is what answered a request.
type Reply struct {
	Datagram []byte
	// Sent is when the request was last sent before the answer came; Received is
	// when it came. Both have a monotonic reading.
	Sent, Received time.Time
	// Local is the local address that the answer came to.
	Local netip.Addr
}

// maxHold is how long a transmission keeps others of the same gateway waiting.
const maxHold = time.Second

// pending is an exchange under way.
type pending struct {
	exchange *Transaction
	outcome  chan outcome // of capacity 1; the first outcome counts
}

type outcome struct {
	reply   Reply
	refused bool
}

// Do sends the request until it is answered. Each transmission waits for its turn at
// the gateway, by the priority of the context (see package priority). Do fails with an
// error that wraps backends.ErrNoReply if no answer came or the gateway's port is
// closed (then also syscall.ECONNREFUSED), with the cause of the context's end, or
// with net.ErrClosed.
func (l *Conn) Do(ctx context.Context, e Transaction) (Reply, error) {
	p := &pending{exchange: &e, outcome: make(chan outcome, 1)}
	defer l.forget(p)

	var sent time.Time
	for n := 0; ; n++ {
		wait, more := e.Wait(n)
		if !more {
			return Reply{}, fmt.Errorf("%w: %v stayed silent after %d requests", backends.ErrNoReply, l.config.Gateway, n)
		}
		out, err := l.attempt(ctx, p, wait, &sent)
		switch {
		case err != nil:
			return Reply{}, err
		case out == nil:
			continue
		case out.refused:
			return Reply{}, &refusedError{l.config.Gateway}
		}
		out.reply.Sent = sent
		return out.reply, nil
	}
}

// attempt waits for its turn, transmits once, and waits for the outcome, of
// this transmission or an earlier one. Without one it returns nil, nil.
func (l *Conn) attempt(ctx context.Context, p *pending, wait time.Duration, sent *time.Time) (*outcome, error) {
	out, err := l.transmit(ctx, p, min(wait, maxHold), sent)
	if out != nil || err != nil || wait <= maxHold {
		return out, err
	}
	return l.awaitFor(ctx, p, wait-maxHold)
}

// transmit is the part of an attempt in which others have to wait.
func (l *Conn) transmit(ctx context.Context, p *pending, wait time.Duration, sent *time.Time) (*outcome, error) {
	if !p.exchange.Probe {
		ready, leave := queues.Enter(ctx, l.config.Gateway)
		defer leave()
		if out, err := await(ctx, l, p, ready); out != nil || err != nil {
			return out, err
		}
	}
	*sent = time.Now()
	if err := l.send(ctx, p); err != nil {
		return nil, err
	}
	return l.awaitFor(ctx, p, wait)
}

// await waits until the exchange has an outcome or until has something.
func await[T any](ctx context.Context, l *Conn, p *pending, until <-chan T) (*outcome, error) {
	if ctx.Err() != nil { // an ended context always wins
		return nil, context.Cause(ctx)
	}
	select {
	case out := <-p.outcome:
		return &out, nil
	case <-until:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// awaitFor waits until the exchange has an outcome, at most for d.
func (l *Conn) awaitFor(ctx context.Context, p *pending, d time.Duration) (*outcome, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return await(ctx, l, p, timer.C)
}

// send sends the request once. What a loaded or filtered host drops counts
// as sent: it is as if the network had lost it.
func (l *Conn) send(ctx context.Context, p *pending) error {
	l.mu.Lock()
	l.pending[p] = struct{}{}
	l.sender = p
	l.mu.Unlock()
	var err error
	for range 2 { // a socket whose address or interface went away is made anew once
		var sock net.Conn
		if sock, err = l.socket(ctx); err != nil {
			break
		}
		if err = write(sock, p.exchange.Request); err == nil {
			return nil
		}
		l.drop(sock)
	}
	switch {
	case ctx.Err() != nil: // it ended the dialling
		return context.Cause(ctx)
	case errors.Is(err, net.ErrClosed) && l.isClosed():
		return net.ErrClosed
	}
	return fmt.Errorf("%w: cannot send to %v: %w", backends.ErrNoReply, l.config.Gateway, err)
}

// isRefused reports that the gateway's port is closed. Windows calls it a reset.
func isRefused(err error) bool { return errno.IsRefused(err) || errno.IsReset(err) }

// isLost reports a datagram that this host dropped: a full buffer, or a local
// firewall.
func isLost(err error) bool { return errno.IsFull(err) || errors.Is(err, syscall.EPERM) }

// write sends a datagram. An ICMP error that an earlier one earned comes up
// here too where the reader has not taken it yet, and stops this one.
func write(sock net.Conn, b []byte) error {
	_, err := sock.Write(b)
	if isRefused(err) {
		_, err = sock.Write(b)
	}
	if isRefused(err) || isLost(err) {
		return nil
	}
	return err
}

// forget ends the exchange's claim on datagrams.
func (l *Conn) forget(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, p)
	if l.sender == p {
		l.sender = nil
	}
}

// deliver gives a datagram to the exchange that it answers best. One that
// answers none is for the watchers to judge, and the waits go on.
func (l *Conn) deliver(datagram []byte, at time.Time, local netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var best *pending
	bestMatch := None
	for p := range l.pending {
		if m := p.exchange.Answers(datagram); m > bestMatch || (m == bestMatch && m != None && p == l.sender) {
			best, bestMatch = p, m
		}
	}
	if best == nil {
		l.unsolicited(datagram)
		return
	}
	reply := Reply{Datagram: slices.Clone(datagram), Received: at, Local: local}
	best.settle(outcome{reply: reply})
	delete(l.pending, best) // the next such datagram is for the next such request
}

// refuse takes an ICMP error to be about the last transmission.
func (l *Conn) refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sender != nil {
		l.sender.settle(outcome{refused: true})
	}
}

// settle records the outcome, unless there is one.
func (p *pending) settle(out outcome) {
	select {
	case p.outcome <- out:
	default:
	}
}

// refusedError says that the gateway's port is closed.
type refusedError struct {
	gateway netip.AddrPort
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("%v: %v refuses the port (connection refused)", backends.ErrNoReply, e.gateway)
}

func (e *refusedError) Unwrap() []error {
	return []error{backends.ErrNoReply, errno.ECONNREFUSED}
}
