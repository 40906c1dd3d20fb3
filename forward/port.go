package forward

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// OpenExternalPort returns an external port that the gateway can forward at the moment.
// Another program or host may take the port before you enable it. NAT-PMP and PCP have no
// request for free ports, so OpenExternalPort creates a mapping for a moment and deletes it
// again.
func (f *Forwarder) OpenExternalPort(ctx context.Context, p backends.Protocol) (uint16, error) {
	m, err := f.Enable(ctx, Protocol(p, 0), External(RandomPort()), Lifetime(time.Minute), Once())
	if err != nil {
		return 0, err
	}
	return m.External().Port(), m.Shutdown(ctx)
}

// RandomPort returns a random port between 49152 and 65535.
func RandomPort() uint16 { return gateway.RandomPort() }

// OpenLocalPort returns a port of this host that is free for TCP or UDP at the moment.
// Another program may take the port before you listen on it. Any other protocol fails with
// backends.ErrUnsupported.
func OpenLocalPort(p backends.Protocol) (uint16, error) {
	return openLocalPort([]backends.Protocol{p})
}

// openLocalPort returns a port that is free for all of the protocols.
func openLocalPort(ps []backends.Protocol) (uint16, error) {
	const tries = 16
	var err error
	for range tries {
		var port uint16
		if port, err = tryBind(ps[0], 0); err != nil {
			return 0, err
		}
		for _, p := range ps[1:] {
			if _, err = tryBind(p, port); err != nil {
				break
			}
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("forward: no local port is free for %v: %w", ps, err)
}

// tryBind binds the port and closes the socket again. If port is 0, tryBind selects a free
// port.
func tryBind(p backends.Protocol, port uint16) (uint16, error) {
	switch p {
	case backends.TCP:
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = ln.Close() }()
		return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // package net guarantees this type for TCP
	case backends.UDP:
		pc, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = pc.Close() }()
		return pc.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // package net guarantees this type for UDP
	}
	return 0, fmt.Errorf("forward: %w: cannot find free ports for protocol %v: name one", backends.ErrUnsupported, p)
}
