// Package dialback connects to a port of another host on behalf of a prober that runs there.
// It also has the messages of the protocol between a prober and a reflector.
package dialback

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
)

// Greeting is what a connection or datagram of a prober begins with, and also the answer to it. A
// nonce follows.
const Greeting = "GFWD1 "

// NonceLength is the length of a nonce: 128 bits in base64url without padding.
const NonceLength = 22

// nonceBytes is the length of a nonce without the encoding.
const nonceBytes = 16

const (
	// lead is the time between the announcement of the source and the first packet: the other
	// host needs it to prepare.
	lead = 100 * time.Millisecond
	// hold is how long a connection without bytes stays open, so that the other host finds it in
	// its table of sockets.
	hold = time.Second
	// datagrams is the number of datagrams that are sent, because they get lost.
	datagrams = 3
	// datagramInterval is the time between them.
	datagramInterval = 500 * time.Millisecond
)

// IsNonce reports whether a text can be a nonce. Other texts are never sent, so that the bytes are
// of no use against a service that does not expect them.
func IsNonce(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s) // it skips the ends of lines
	return len(s) == NonceLength && len(b) == nonceBytes && err == nil
}

// Call is one connection, or the datagrams to one port.
type Call struct {
	// Protocol is backends.TCP or backends.UDP.
	Protocol backends.Protocol
	// To is the port.
	To netip.AddrPort
	// From is the local address, or the zero Addr: the kernel then chooses it.
	From netip.Addr
	// Nonce is sent after Greeting. If it is empty, a TCP connection sends nothing, and stays
	// open for a second.
	Nonce string
	// Want is the nonce that must follow Greeting in the answer. It may be empty: no answer is
	// then expected. It must not be Nonce: a service that repeats everything would seem to know it.
	Want string
}

// Outcome is what a Call has observed.
type Outcome string

// The outcomes.
const (
	// Echoed means that the answer with Call.Want arrived.
	Echoed Outcome = "echoed"
	// Connected means that a TCP connection was accepted, but the answer did not arrive.
	Connected Outcome = "connected"
	// Sent means that the datagrams were sent, but the answer did not arrive.
	Sent Outcome = "sent"
	// Refused means that a TCP reset or an ICMP error arrived.
	Refused Outcome = "refused"
	// TimedOut means that a TCP connection got no reply.
	TimedOut Outcome = "timeout"
)

// Do makes the call. Before it sends anything to the port, it passes its source to announce, which
// may be nil. Do ends with ctx at the latest, which must have a deadline; the end of the deadline
// is no error, unless nothing was sent before. An error means that the call was not possible, or that
// ctx was cancelled.
func (c Call) Do(ctx context.Context, announce func(from netip.AddrPort)) (Outcome, time.Duration, error) {
	switch {
	case !c.To.IsValid() || c.To.Port() == 0:
		return "", 0, fmt.Errorf("%w: no port", backends.ErrInvalid)
	case c.Nonce != "" && !IsNonce(c.Nonce), c.Want != "" && !IsNonce(c.Want):
		return "", 0, fmt.Errorf("%w: not a nonce of %d characters", backends.ErrInvalid, NonceLength)
	case c.Want != "" && (c.Nonce == "" || c.Want == c.Nonce):
		return "", 0, fmt.Errorf("%w: an answer needs a nonce, and must have another one", backends.ErrInvalid)
	case c.Protocol == backends.UDP && c.Nonce == "":
		return "", 0, fmt.Errorf("%w: a UDP port needs a nonce", backends.ErrInvalid)
	}
	call := c.tcp
	switch c.Protocol {
	case backends.TCP:
	case backends.UDP:
		call = c.udp
	default:
		return "", 0, fmt.Errorf("%w: only TCP and UDP are possible, not %v", backends.ErrUnsupported, c.Protocol)
	}
	outcome, rtt, err := call(ctx, announce)
	if outcome != Echoed && errors.Is(ctx.Err(), context.Canceled) {
		return "", 0, context.Cause(ctx) // the port had no time to answer
	}
	return outcome, rtt, err
}

// start announces the source and waits until the other host is prepared.
func start(ctx context.Context, announce func(netip.AddrPort), from net.Addr) error {
	if announce == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return err
	}
	announce(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	return ctxsync.Sleep(ctx, lead)
}

func (c Call) tcp(ctx context.Context, announce func(netip.AddrPort)) (Outcome, time.Duration, error) {
	// The source must be known before the connection begins, and no other socket may get it until then.
	source, err := c.reserve(ctx)
	if err != nil {
		return "", 0, err
	}
	err = start(ctx, announce, source.Addr())
	_ = source.Close()
	if err != nil {
		return "", 0, err
	}
	d := net.Dialer{LocalAddr: source.Addr()}
	d.SetMultipathTCP(false)
	begun := time.Now()
	conn, err := d.DialContext(ctx, "tcp", c.To.String())
	rtt := time.Since(begun)
	switch {
	case errno.IsRefused(err):
		return Refused, rtt, nil
	case err != nil && (isOver(ctx) || isTimeout(err)): // also of the kernel, which may end its attempts before
		return TimedOut, 0, nil
	case err != nil:
		return "", 0, err
	}
	defer func() { _ = conn.Close() }()
	if c.Nonce == "" { // before AfterFunc, whose deadline must remain
		_ = conn.SetReadDeadline(begun.Add(rtt + hold))
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if c.Nonce == "" {
		_, _ = io.CopyN(io.Discard, conn, 1<<10) // the end of the connection is of no interest
		_ = ctxsync.Sleep(ctx, hold-time.Since(begun)+rtt)
		return Connected, rtt, nil
	}
	if _, err := io.WriteString(conn, Greeting+c.Nonce); err != nil {
		return Connected, rtt, nil //nolint:nilerr // the port reset the connection
	}
	if c.Want == "" {
		_ = ctxsync.Sleep(ctx, hold)
		return Connected, rtt, nil
	}
	answer := make([]byte, len(Greeting)+NonceLength)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != Greeting+c.Want {
		return Connected, rtt, nil //nolint:nilerr // another service, which does not know the nonce
	}
	return Echoed, time.Since(begun), nil
}

// reserve returns a socket that has a local TCP endpoint which was free. What connects to it is
// reset when it is closed.
func (c Call) reserve(ctx context.Context) (net.Listener, error) {
	from := c.From
	if !from.IsValid() { // the address that the kernel would choose; nothing is sent
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.To))
		if op, ok := errors.AsType[*net.OpError](err); ok { // without the word udp
			return nil, fmt.Errorf("no route to %v: %w", c.To.Addr(), op.Err)
		}
		if err != nil {
			return nil, err
		}
		from = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr() //nolint:forcetypeassert // package net guarantees this type for UDP
		_ = conn.Close()
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", netip.AddrPortFrom(from, 0).String())
}

func (c Call) udp(ctx context.Context, announce func(netip.AddrPort)) (Outcome, time.Duration, error) {
	d := net.Dialer{}
	if c.From.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.From, 0))
	}
	conn, err := d.DialContext(ctx, "udp", c.To.String())
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = conn.Close() }()
	if err := start(ctx, announce, conn.LocalAddr()); err != nil {
		return "", 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	begun, outcome := time.Now(), Sent
	buf := make([]byte, 1<<16) // for any datagram: Windows reports an error for a longer one
	for i := range datagrams {
		if _, err := conn.Write([]byte(Greeting + c.Nonce)); err != nil && i == 0 && !isOver(ctx) {
			return "", 0, err
		} else if err != nil && !isOver(ctx) {
			outcome = Refused // an ICMP error for an earlier datagram; another one may arrive
		}
		if i == datagrams-1 && c.Want != "" {
			_ = conn.SetReadDeadline(time.Time{}) // until ctx ends
		} else {
			_ = conn.SetReadDeadline(begun.Add(time.Duration(i+1) * datagramInterval))
		}
		if isOver(ctx) {
			break
		}
		for {
			n, err := conn.Read(buf)
			if err != nil && isTimeout(err) {
				break
			}
			if err != nil { // an ICMP error; the next datagram still waits its turn
				outcome = Refused
				_ = ctxsync.Sleep(ctx, 10*time.Millisecond) // the error may persist
				continue
			}
			if c.Want != "" && string(buf[:n]) == Greeting+c.Want {
				return Echoed, time.Since(begun), nil
			}
		}
	}
	return outcome, 0, nil
}

// isTimeout reports whether err means that a deadline has passed, of this program or of the kernel.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// isOver reports whether ctx has ended.
func isOver(ctx context.Context) bool { return ctx.Err() != nil }
