package forward

import (
	"context"
	"fmt"
	"net"

	"github.com/natforward/goforward/backends"
)

// PacketConn is a net.PacketConn for UDP that the gateway forwards to, as long
// as it is open. Its methods may be called by several goroutines at once.
type PacketConn struct {
	*net.UDPConn
	reach
}

// ListenPacket is Listen for UDP: the network is "udp", "udp4" or "udp6".
func (f *Forwarder) ListenPacket(ctx context.Context, network, address string, opts ...Option) (*PacketConn, error) {
	if network != "udp" && network != "udp4" && network != "udp6" {
		return nil, invalid("ListenPacket on network %q: want udp, udp4 or udp6", network)
	}
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("forward: %w", err)
	}
	r, err := f.expose(backends.UDP, network, pc, pc.LocalAddr(), opts)
	if err != nil {
		_ = pc.Close()
		return nil, err
	}
	return &PacketConn{pc.(*net.UDPConn), r}, nil //nolint:forcetypeassert // what package net promises for UDP
}

// ListenPacket is [Forwarder.ListenPacket] of the package's own Forwarder.
func ListenPacket(network, address string, opts ...Option) (*PacketConn, error) {
	return forwarder().ListenPacket(context.Background(), network, address, opts...)
}

// Close is as that of [Listener].
func (c *PacketConn) Close() error { return c.close() }
