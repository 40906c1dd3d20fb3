package forward

import (
	"fmt"
	"net"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// RandomPort returns a random port from 49152 to 65535.
func RandomPort() uint16 { return gateway.RandomPort() }

// OpenLocalPort returns a port of this host that is free for the protocol, TCP
// or UDP, just now: somebody else may take it before you listen. Another
// protocol fails with backends.ErrUnsupported.
func OpenLocalPort(p backends.Protocol) (uint16, error) {
	return openLocalPort([]backends.Protocol{p})
}

// openLocalPort returns a port that is free for all of the protocols.
func openLocalPort(ps []backends.Protocol) (uint16, error) {
	const tries = 16
	var err error
	for range tries {
		var port uint16
		if port, err = bindable(ps[0], 0); err != nil {
			return 0, err
		}
		for _, p := range ps[1:] {
			if _, err = bindable(p, port); err != nil {
				break
			}
		}
		if err == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("forward: no local port is free for %v: %w", ps, err)
}

// bindable binds the port, or a free one where it is 0, and lets go of it.
func bindable(p backends.Protocol, port uint16) (uint16, error) {
	switch p {
	case backends.TCP:
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = ln.Close() }()
		return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // what package net promises for TCP
	case backends.UDP:
		pc, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return 0, fmt.Errorf("forward: %w", err)
		}
		defer func() { _ = pc.Close() }()
		return pc.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil //nolint:forcetypeassert // what package net promises for UDP
	}
	return 0, fmt.Errorf("forward: %w: cannot tell which ports are free for protocol %v: name one", backends.ErrUnsupported, p)
}
