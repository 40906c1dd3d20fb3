package ssdp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/netbind"
)

// packetConn has the methods of *net.UDPConn that a search uses.
type packetConn interface {
	ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	Close() error
}

// socketConfig is the configuration of a socket for searches.
type socketConfig struct {
	network   string // "udp4" or "udp6"
	local     netip.Addr
	ifi       *net.Interface // nil: the kernel chooses
	multicast bool           // the socket sends to a group
}

// openFunc opens a socket for searches.
type openFunc func(context.Context, socketConfig) (packetConn, error)

// openSearchSocket opens a socket on a port that the kernel chooses. It never uses port
// 1900, because some devices do not respond to searches from that port.
func openSearchSocket(ctx context.Context, config socketConfig) (packetConn, error) {
	conn, err := config.open(ctx)
	if err != nil {
		return nil, err
	}
	if local, ok := conn.LocalAddr().(*net.UDPAddr); !ok || local.Port != Port {
		return conn, nil
	}
	defer func() { _ = conn.Close() }() // while conn is open, the kernel chooses another port
	other, err := config.open(ctx)
	if err != nil {
		return nil, err
	}
	return other, nil
}

func (c socketConfig) open(ctx context.Context) (*net.UDPConn, error) {
	var lc net.ListenConfig
	if c.ifi != nil {
		var err error
		if lc.Control, err = netbind.Control(c.ifi); err != nil {
			return nil, err
		}
	}
	conn, err := bind(ctx, lc, c.network, netip.AddrPortFrom(c.local, 0))
	if err != nil || !c.multicast {
		return conn, err
	}
	if err := c.prepareMulticast(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// multicastHops is the TTL of a multicast search (UPnP Device Architecture 1.1, section
// 1.3.2).
const multicastHops = 2

// prepareMulticast sets the outgoing interface and the TTL of multicast datagrams. It
// ignores an error from setting the TTL: the datagrams then stay on the link, which is
// sufficient.
func (c socketConfig) prepareMulticast(conn *net.UDPConn) error {
	ifi := c.ifi
	if ifi == nil {
		ifi = interfaceWithAddr(c.local)
	}
	p4, p6 := ipv4.NewPacketConn(conn), ipv6.NewPacketConn(conn)
	setInterface := p4.SetMulticastInterface
	if c.network == "udp6" {
		_ = p6.SetMulticastHopLimit(multicastHops)
		setInterface = p6.SetMulticastInterface
	} else {
		_ = p4.SetMulticastTTL(multicastHops)
	}
	if ifi == nil {
		return nil
	}
	if err := setInterface(ifi); err != nil {
		return fmt.Errorf("multicast through %s: %w", ifi.Name, err)
	}
	return nil
}

// interfaceWithAddr returns the interface that has the address, or nil.
func interfaceWithAddr(addr netip.Addr) *net.Interface {
	if addr.IsUnspecified() {
		return nil
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, ifi := range interfaces {
		addrs, err := ifi.Addrs()
		if err != nil || addr.Zone() != "" && addr.Zone() != ifi.Name {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(addr.AsSlice()) {
				return &ifi
			}
		}
	}
	return nil
}

func bind(ctx context.Context, lc net.ListenConfig, network string, local netip.AddrPort) (*net.UDPConn, error) {
	conn, err := lc.ListenPacket(ctx, network, local.String())
	if err != nil {
		return nil, err
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("unexpected type of UDP socket: %T", conn)
	}
	return udp, nil
}

// readErrorDelay is the pause after a read error. It prevents a busy loop if every read
// fails.
const readErrorDelay = 10 * time.Millisecond

// readDatagrams calls handle for each datagram, one at a time, until the socket is closed.
// The slice is valid only during the call.
func readDatagrams(ctx context.Context, conn packetConn, handle func([]byte, netip.AddrPort)) {
	buf := make([]byte, maxDatagram+1) // one more byte shows that a datagram is too long
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil:
			handle(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		case errors.Is(err, net.ErrClosed) || ctxsync.Sleep(ctx, readErrorDelay) != nil:
			return // any other error is about a single datagram, received or sent, and is ignored
		}
	}
}
