package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/natforward/goforward/backends"
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
const greeting = "GFWD1 "

// dialer connects to the external endpoint of a target.
type dialer struct {
	local   netip.Addr // the source address; the zero Addr means that the kernel chooses
	control func(network, address string, c syscall.RawConn) error
	from    func(netip.Addr) bool // the sources that count
}

// errAnswered means that something answered at the external endpoint, but this host observed
// nothing: another device has the address, or the connection was not recognized.
var errAnswered = errors.New("something accepted a connection to the external port, but this host did not observe it")

// attempt is the result of connecting once.
type attempt struct {
	arrival Arrival // what the catcher saw; the zero Arrival if there was none
	rtt     time.Duration
	err     error // why there is no arrival
	refused bool  // the connection was refused
	silent  bool  // nothing answered
}

// try connects to the external endpoint, or sends datagrams to it, and waits for the arrival.
// A socket of another program receives no bytes.
func (d dialer) try(ctx context.Context, t Target, catcher Catcher) attempt {
	if t.Protocol == backends.UDP {
		return d.tryUDP(ctx, t, catcher)
	}
	return d.tryTCP(ctx, t, catcher)
}

func (d dialer) tryTCP(ctx context.Context, t Target, catcher Catcher) attempt {
	// The port must be known before the connection begins: the socket is bound first.
	e := Expectation{First: greeting + NewNonce(), From: d.from}
	var (
		arrivals <-chan Arrival
		stop     = func() {}
	)
	defer func() { stop() }()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	port, err := freePort(ctx, d.local, t.External.Addr())
	if err != nil {
		return attempt{err: err}
	}
	e.SourcePort = port
	arrivals, stop = catcher.Expect(e)
	begun := time.Now()
	nd := net.Dialer{Control: d.control, LocalAddr: &net.TCPAddr{IP: d.local.AsSlice(), Port: int(port), Zone: d.local.Zone()}}
	nd.SetMultipathTCP(false)
	conn, err := nd.DialContext(ctx, "tcp", t.External.String())
	if err != nil {
		switch {
		case errno.IsRefused(err):
			return attempt{err: err, refused: true}
		case ctx.Err() != nil:
			return attempt{err: fmt.Errorf("no answer at %v within %v", t.External, connectTimeout), silent: true}
		}
		return attempt{err: err}
	}
	defer func() { _ = conn.Close() }()
	if catcher.Owner() != OwnerOther { // a program of another kind must not get bytes that it did not ask for
		_ = conn.SetWriteDeadline(time.Now().Add(holdTime))
		_, _ = conn.Write([]byte(e.First))
	}
	timer := time.NewTimer(holdTime)
	defer timer.Stop()
	select {
	case a := <-arrivals:
		return attempt{arrival: a, rtt: a.At.Sub(begun)}
	case <-timer.C:
	case <-ctx.Done():
	}
	return attempt{err: errAnswered}
}

func (d dialer) tryUDP(ctx context.Context, t Target, catcher Catcher) attempt {
	if err := catcher.Observing(); err != nil {
		return attempt{err: err} // a datagram would only disturb the program
	}
	e := Expectation{First: greeting + NewNonce(), From: d.from}
	arrivals, stop := catcher.Expect(e)
	defer stop()
	nd := net.Dialer{Control: d.control}
	if d.local.IsValid() {
		nd.LocalAddr = &net.UDPAddr{IP: d.local.AsSlice(), Zone: d.local.Zone()}
	}
	conn, err := nd.DialContext(ctx, "udp", t.External.String())
	if err != nil {
		return attempt{err: err}
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	repeat := time.NewTicker(datagramInterval)
	defer repeat.Stop()
	begun := time.Now()
	var refused bool
	for {
		if _, err := conn.Write([]byte(e.First)); errno.IsRefused(err) {
			refused = true // an ICMP error for an earlier datagram
		} else if err != nil {
			return attempt{err: err}
		}
		select {
		case a := <-arrivals:
			return attempt{arrival: a, rtt: a.At.Sub(begun)}
		case <-repeat.C:
		case <-ctx.Done():
			return attempt{err: fmt.Errorf("no datagram to %v arrived within %v", t.External, connectTimeout), refused: refused, silent: !refused}
		}
	}
}

// freePort returns a TCP port that is free at the local address, or at all addresses of the
// family of the remote address.
func freePort(ctx context.Context, local, remote netip.Addr) (uint16, error) {
	network, host := "tcp4", ""
	if remote.Is6() {
		network = "tcp6"
	}
	if local.IsValid() {
		host = local.String()
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, network, net.JoinHostPort(host, strconv.Itoa(0)))
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // package net guarantees this type for TCP
}
