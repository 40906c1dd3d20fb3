package gatewaytest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/reach"
)

// proberTimeout is how long the prober waits for an arrival.
const proberTimeout = 2 * time.Second

// Prober returns a prober that connects from an outside host of the gateway. It stands for a
// helper on the internet, for the tests of programs that verify their mappings:
//
//	config := gw.Config()
//	config.Verify = []reach.Prober{gw.Prober()}
//
// An arrival counts as reach.LevelInternet although its real source is a loopback address. If the
// gateway has no mapping, or does not forward it, the verdict is reach.Unreachable.
func (g *Gateway) Prober() reach.Prober { return prober{g} }

type prober struct{ gateway *Gateway }

// Name implements reach.Prober.
func (prober) Name() string { return "gatewaytest" }

// Probe implements reach.Prober.
func (p prober) Probe(ctx context.Context, t reach.Target, catcher reach.Catcher) (reach.Evidence, error) {
	e := reach.Evidence{Level: reach.LevelInternet, To: t.Internal}
	bounded, cancel := context.WithTimeout(ctx, proberTimeout)
	defer cancel()
	probe := p.probeTCP
	if t.Protocol == backends.UDP {
		probe = p.probeUDP
	}
	begun := time.Now()
	arrival, failure, err := probe(bounded, t, catcher)
	switch {
	case ctx.Err() != nil:
		return e, context.Cause(ctx)
	case err != nil:
		return e, err
	case failure != nil:
		e.Verdict, e.Detail = reach.Unreachable, fmt.Sprintf("a connection from an outside host of the test gateway did not arrive: %v", failure)
		return e, nil
	}
	e.Verdict, e.From, e.At, e.RTT = reach.Reachable, arrival.From, arrival.At, arrival.At.Sub(begun)
	e.Detail = "a connection from an outside host of the test gateway arrived"
	return e, nil
}

// probeTCP connects once. It returns what arrived, or why nothing did.
func (p prober) probeTCP(ctx context.Context, t reach.Target, catcher reach.Catcher) (a reach.Arrival, failure, err error) {
	port, err := freeTCPPort(ctx)
	if err != nil {
		return a, nil, err
	}
	e := reach.Expectation{First: "GFWD1 " + reach.NewNonce(), Source: func(from netip.AddrPort) bool { return from.Port() == port }}
	arrivals, stop := catcher.Expect(e)
	defer stop()
	p.gateway.mu.Lock()
	from, err := p.gateway.outsideAddr(netip.AddrPort{}, t.External.Addr().Is6())
	p.gateway.mu.Unlock()
	if err != nil {
		return a, nil, err
	}
	conn, failure := p.gateway.connect(ctx, from, t.External, port)
	if failure != nil {
		return a, failure, nil
	}
	defer conn.Close()
	if catcher.Owner() != reach.OwnerOther {
		_, _ = conn.Write([]byte(e.First))
	}
	return await(ctx, arrivals)
}

// probeUDP sends a datagram. It returns what arrived, or why nothing did.
func (p prober) probeUDP(ctx context.Context, t reach.Target, catcher reach.Catcher) (a reach.Arrival, failure, err error) {
	if err := catcher.Observing(); err != nil {
		return a, nil, err
	}
	e := reach.Expectation{First: "GFWD1 " + reach.NewNonce()}
	arrivals, stop := catcher.Expect(e)
	defer stop()
	conn, err := p.gateway.dialUDP(netip.AddrPort{}, "udp", t.External)
	if err != nil {
		return a, nil, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(e.First)); err != nil {
		return a, nil, err
	}
	return await(ctx, arrivals)
}

func await(ctx context.Context, arrivals <-chan reach.Arrival) (a reach.Arrival, failure, err error) {
	select {
	case a = <-arrivals:
		return a, nil, nil
	case <-ctx.Done():
		return a, context.Cause(ctx), nil
	}
}

// freeTCPPort returns a local port that is free.
func freeTCPPort(ctx context.Context) (uint16, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", ":0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // package net guarantees this type for TCP
}
