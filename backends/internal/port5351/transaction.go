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
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
)

// Match is how well a datagram fits a request.
type Match uint8

// The values of Match. A version error does not identify a request, so it can fit
// several pending requests. It is delivered to a request for which it is Exact
// before one for which it is Possible.
const (
	None Match = iota
	Possible
	Exact
)

// Transaction is a request, and the rules for its replies and retransmissions.
type Transaction struct {
	// Request is the datagram to send. Retransmissions are identical, unless
	// Retransmission is set: it returns the datagram to send instead.
	Request        []byte
	Retransmission func() []byte
	// Match reports whether a datagram from the gateway's address and port answers
	// the request. The goroutine that reads the socket calls it, so it must be fast
	// and must not keep the datagram.
	Match func(datagram []byte) Match
	// Wait returns how long to wait after transmission n, counted from 0, or false
	// to send no more.
	Wait func(n int) (time.Duration, bool)
	// Probe requests do not wait in the queue. They are small, and their result
	// must not wait for the retransmissions of other requests. The first
	// retransmission is sent at once when the context demands it (ctxsync.Repeat).
	Probe bool
	// Alone requests have a socket that sends no other request. Late replies to other
	// requests do not arrive there, so each datagram from the gateway is a reply to
	// this request, even if it does not repeat the request's fields.
	Alone bool
}

// RequireRepeats returns a function that ignores the first two matching datagrams
// that suspicious reports. Such a datagram is probably a late reply to an earlier
// request: the protocols repeat every field of a request in the reply, except the
// lifetime. The third is accepted.
func RequireRepeats(match func([]byte) Match, suspicious func([]byte) bool) func([]byte) Match {
	const requiredRepeats = 3
	seen := 0
	return func(datagram []byte) Match {
		m := match(datagram)
		if m == None || !suspicious(datagram) {
			return m
		}
		if seen++; seen < requiredRepeats {
			return None
		}
		return m
	}
}

// Reply is the datagram that answered a request.
type Reply struct {
	Datagram []byte
	// Sent is the time of the last transmission before the reply, and Received is
	// the time of the reply. Both times have a monotonic reading.
	Sent, Received time.Time
	// Local is the local address at which the reply arrived.
	Local netip.Addr
}

// maxExclusive is how long one transmission keeps other requests to the same
// gateway waiting.
const maxExclusive = time.Second

// inFlight is a transaction in progress.
type inFlight struct {
	transaction *Transaction
	datagram    []byte       // to send next
	outcome     chan outcome // with capacity 1: only the first outcome is kept
	// repeat ends the wait after the first transmission when it is closed. It is nil for
	// other waits, and for requests that are not repeated early.
	repeat <-chan struct{}
}

type outcome struct {
	reply   Reply
	refused bool
}

// Do sends the request, and retransmits it until a reply arrives. Each transmission
// waits for its turn in the gateway's queue, by the priority of the context (see
// package ctxsync). Do returns an error that wraps backends.ErrNoReply if no reply
// arrived or the gateway's port is closed; in the second case the error also wraps
// syscall.ECONNREFUSED. If ctx ends, Do returns the cause. If the Conn is closed,
// Do returns net.ErrClosed.
func (c *Conn) Do(ctx context.Context, tx Transaction) (Reply, error) {
	if tx.Alone {
		c = makeConn(c.config, c.dial)
		defer c.Close()
	}
	p := &inFlight{transaction: &tx, datagram: tx.Request, outcome: make(chan outcome, 1)}
	defer c.unregister(p)
	if tx.Probe {
		p.repeat = ctxsync.Repeat(ctx)
	}

	var sent time.Time
	for n := 0; ; n++ {
		wait, more := tx.Wait(n)
		if !more {
			return Reply{}, fmt.Errorf("%w: %v did not reply to %d requests", backends.ErrNoReply, c.config.Gateway, n)
		}
		if n > 0 && tx.Retransmission != nil {
			p.datagram = tx.Retransmission()
		}
		out, err := c.attempt(ctx, p, wait, &sent)
		switch {
		case err != nil:
			return Reply{}, err
		case out == nil:
			p.repeat = nil
			continue
		case out.refused:
			return Reply{}, &refusedError{c.config.Gateway}
		}
		out.reply.Sent = sent
		return out.reply, nil
	}
}

// attempt waits for its turn, transmits once, and waits for the outcome of this
// transmission or an earlier one. If there is none, it returns nil, nil.
func (c *Conn) attempt(ctx context.Context, p *inFlight, wait time.Duration, sent *time.Time) (*outcome, error) {
	out, err := c.transmit(ctx, p, min(wait, maxExclusive), sent)
	if out != nil || err != nil || wait <= maxExclusive {
		return out, err
	}
	return c.awaitFor(ctx, p, wait-maxExclusive)
}

// transmit is the part of an attempt during which other requests to the gateway
// have to wait.
func (c *Conn) transmit(ctx context.Context, p *inFlight, wait time.Duration, sent *time.Time) (*outcome, error) {
	if !p.transaction.Probe {
		ready, leave := queues.Enter(ctx, c.config.Gateway)
		defer leave()
		if out, err := await(ctx, c, p, ready); out != nil || err != nil {
			return out, err
		}
	}
	*sent = time.Now()
	if err := c.send(ctx, p); err != nil {
		return nil, err
	}
	ctxsync.Sent(ctx)
	return c.awaitFor(ctx, p, wait)
}

// await waits until the transaction has an outcome or until receives a value or is
// closed.
func await[T any](ctx context.Context, c *Conn, p *inFlight, until <-chan T) (*outcome, error) {
	if ctx.Err() != nil { // checked first, because select chooses at random
		return nil, context.Cause(ctx)
	}
	select {
	case out := <-p.outcome:
		return &out, nil
	case <-until:
		return nil, nil
	case <-p.repeat:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.closed:
		return nil, net.ErrClosed
	}
}

// awaitFor waits until the transaction has an outcome, for at most d.
func (c *Conn) awaitFor(ctx context.Context, p *inFlight, d time.Duration) (*outcome, error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return await(ctx, c, p, timer.C)
}

// send transmits the request once. A datagram that an overloaded or filtering host
// drops counts as sent, as if the network had lost it.
func (c *Conn) send(ctx context.Context, p *inFlight) error {
	c.mu.Lock()
	c.pending[p] = struct{}{}
	c.lastSender = p
	c.mu.Unlock()
	var err error
	for range 2 { // if the socket's address or interface was deleted, a new socket is opened once
		var sock net.Conn
		if sock, err = c.socket(ctx); err != nil {
			break
		}
		if err = write(sock, p.datagram); err == nil {
			return nil
		}
		c.discardSocket(sock)
	}
	switch {
	case ctx.Err() != nil: // the end of ctx ended the dial
		return context.Cause(ctx)
	case errors.Is(err, net.ErrClosed) && c.isClosed():
		return net.ErrClosed
	}
	return fmt.Errorf("%w: cannot send to %v: %w", backends.ErrNoReply, c.config.Gateway, err)
}

// isRefused reports whether the error means that the gateway's port is closed.
// Windows reports a connection reset for that.
func isRefused(err error) bool { return errno.IsRefused(err) || errno.IsReset(err) }

// isDropped reports whether the error means that this host dropped the datagram: a
// buffer is full, or a local firewall forbids it.
func isDropped(err error) bool { return errno.IsFull(err) || errors.Is(err, syscall.EPERM) }

// write sends a datagram. An ICMP error that an earlier datagram caused is reported
// here if the reader has not received it yet, and prevents this transmission. write
// then sends the datagram once more.
func write(sock net.Conn, b []byte) error {
	_, err := sock.Write(b)
	if isRefused(err) {
		_, err = sock.Write(b)
	}
	if isRefused(err) || isDropped(err) {
		return nil
	}
	return err
}

// unregister removes the transaction, which then receives no more datagrams.
func (c *Conn) unregister(p *inFlight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, p)
	if c.lastSender == p {
		c.lastSender = nil
	}
}

// deliver passes a datagram to the transaction whose request it fits best. If it
// fits none, the watchers receive it, and the transactions continue to wait.
func (c *Conn) deliver(datagram []byte, at time.Time, local netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best *inFlight
	bestMatch := None
	for p := range c.pending {
		if m := p.transaction.Match(datagram); m > bestMatch || (m == bestMatch && m != None && p == c.lastSender) {
			best, bestMatch = p, m
		}
	}
	if best == nil {
		c.deliverUnsolicited(datagram)
		return
	}
	reply := Reply{Datagram: slices.Clone(datagram), Received: at, Local: local}
	best.complete(outcome{reply: reply})
	delete(c.pending, best) // an equal datagram is then delivered to the next equal request
}

// deliverRefusal ends the transaction that transmitted last, after an ICMP error. If that
// is a probe, it ends all probes: they are sent together, and the kernel can merge the
// errors that they cause.
func (c *Conn) deliverRefusal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastSender == nil {
		return
	}
	c.lastSender.complete(outcome{refused: true})
	if !c.lastSender.transaction.Probe {
		return
	}
	for p := range c.pending {
		if p.transaction.Probe {
			p.complete(outcome{refused: true})
		}
	}
}

// complete records the outcome, unless there is one already.
func (p *inFlight) complete(out outcome) {
	select {
	case p.outcome <- out:
	default:
	}
}

// refusedError is returned if the gateway's port is closed.
type refusedError struct {
	gateway netip.AddrPort
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("%v: %v refuses the port (connection refused)", backends.ErrNoReply, e.gateway)
}

func (e *refusedError) Unwrap() []error {
	return []error{backends.ErrNoReply, errno.ECONNREFUSED}
}
