package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/errno"
)

const (
	// connectTimeout is how long a prober waits for a connection or a datagram.
	connectTimeout = 2 * time.Second
	// holdTime is how long a prober keeps its connection open, so that the table of sockets
	// shows it.
	holdTime = 500 * time.Millisecond
	// datagramInterval is the interval at which datagrams are repeated, because they get lost.
	datagramInterval = 250 * time.Millisecond
)

// greeting is what a connection or datagram of a prober begins with. A nonce follows.
const greeting = dialback.Greeting

// dialer connects to the external endpoint of a target.
type dialer struct {
	control func(network, address string, c syscall.RawConn) error // binds the socket; nil: the kernel chooses
}

// attempt is the result of connecting once.
type attempt struct {
	arrival Arrival // what the catcher saw; the zero Arrival if there was none
	rtt     time.Duration
	err     error // why there is no arrival
	missing bool  // the external endpoint refused, or did not answer
}

// errAnswered means that something accepted a connection to the external endpoint, but this host
// observed no arrival: another device has the address, or the source port was translated and the
// connection to another program was not recognized.
var errAnswered = errors.New("a connection to the external port was accepted, but this host did not observe it")

// try connects to the external endpoint, or sends datagrams to it, and waits for the arrival.
// A socket of another program receives no bytes.
func (d dialer) try(ctx context.Context, t Target, catcher Catcher) attempt {
	if err := catcher.Observing(); err != nil {
		return attempt{err: err} // a connection or datagram would only disturb the program
	}
	a := d.once(ctx, t, catcher)
	if a.err != nil || !a.arrival.InTable {
		return a
	}
	// Another connection of that program may have had this source port by chance. A second one
	// from the same address hardly has the next source port too.
	b := d.once(ctx, t, catcher)
	if b.err == nil && b.arrival.From.Addr() != a.arrival.From.Addr() {
		b.err = errAnswered
	}
	return b
}

// once is try with one connection.
func (d dialer) once(ctx context.Context, t Target, catcher Catcher) attempt {
	begun := time.Now()
	bounded, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	do := d.tryTCP
	if t.Protocol == backends.UDP {
		do = d.tryUDP
	}
	a := do(bounded, t, catcher)
	switch {
	case ctx.Err() != nil:
		a.err, a.missing = context.Cause(ctx), false
	case a.err == nil:
		a.rtt = a.arrival.At.Sub(begun)
	}
	return a
}

func (d dialer) tryTCP(ctx context.Context, t Target, catcher Catcher) attempt {
	// The source port must be known before the connection begins.
	port, err := freePort(ctx, t.External.Addr())
	if err != nil {
		return attempt{err: err}
	}
	e := Expectation{First: greeting + NewNonce(), Source: fromPort(port)}
	arrivals, stop := catcher.Expect(e)
	defer stop()
	nd := net.Dialer{Control: d.control, LocalAddr: &net.TCPAddr{Port: int(port)}}
	nd.SetMultipathTCP(false)
	begun := time.Now()
	conn, err := nd.DialContext(ctx, "tcp", t.External.String())
	switch {
	case errno.IsRefused(err):
		return attempt{err: fmt.Errorf("a connection to %v was refused", t.External), missing: true}
	case err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded)):
		return attempt{err: fmt.Errorf("a connection to %v got no answer", t.External), missing: true}
	case err != nil:
		return attempt{err: err}
	}
	defer func() { _ = conn.Close() }()
	if catcher.Owner() != OwnerOther { // another program must not get bytes that it did not ask for
		_ = conn.SetWriteDeadline(time.Now().Add(holdTime))
		_, _ = conn.Write([]byte(e.First))
	}
	hold := time.NewTimer(max(holdTime, 2*time.Since(begun)))
	defer hold.Stop()
	select {
	case a := <-arrivals:
		return attempt{arrival: a}
	case <-hold.C:
	case <-ctx.Done():
	}
	return attempt{err: errAnswered}
}

func (d dialer) tryUDP(ctx context.Context, t Target, catcher Catcher) attempt {
	e := Expectation{First: greeting + NewNonce()}
	arrivals, stop := catcher.Expect(e)
	defer stop()
	nd := net.Dialer{Control: d.control}
	conn, err := nd.DialContext(ctx, "udp", t.External.String())
	if err != nil {
		return attempt{err: err}
	}
	defer func() { _ = conn.Close() }()
	repeat := time.NewTicker(datagramInterval)
	defer repeat.Stop()
	for {
		// An ICMP error for an earlier datagram is no reason to stop: another one may arrive.
		if _, err := conn.Write([]byte(e.First)); err != nil && !errno.IsRefused(err) {
			return attempt{err: err}
		}
		select {
		case a := <-arrivals:
			return attempt{arrival: a}
		case <-repeat.C:
		case <-ctx.Done():
			return attempt{err: fmt.Errorf("no datagram to %v arrived", t.External), missing: true}
		}
	}
}

// fromPort returns a function for Expectation.Source that compares the source port: the address may
// be translated.
func fromPort(port uint16) func(netip.AddrPort) bool {
	return func(from netip.AddrPort) bool { return from.Port() == port }
}

// freePort returns a TCP port that is free at all addresses of the family of the remote address.
func freePort(ctx context.Context, remote netip.Addr) (uint16, error) {
	network := "tcp4"
	if remote.Is6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, ":0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // package net guarantees this type for TCP
}
