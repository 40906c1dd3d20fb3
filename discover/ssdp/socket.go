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

// packetConn is what is used of a *net.UDPConn.
type packetConn interface {
	ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	Close() error
}

// seat is where a socket for searches is to be.
type seat struct {
	network   string // "udp4" or "udp6"
	local     netip.Addr
	ifi       *net.Interface // nil: the kernel's choice
	multicast bool           // whether it is to send to a group
}

// opener makes a socket.
type opener func(context.Context, seat) (packetConn, error)

// openSearch makes a socket on a port of the kernel's choice that is not SSDP's
// own: some devices do not answer that.
func openSearch(ctx context.Context, s seat) (packetConn, error) {
	conn, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if local, ok := conn.LocalAddr().(*net.UDPAddr); !ok || local.Port != Port {
		return conn, nil
	}
	defer func() { _ = conn.Close() }() // not before another port is chosen
	other, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return other, nil
}

func (s seat) open(ctx context.Context) (*net.UDPConn, error) {
	var lc net.ListenConfig
	if s.ifi != nil {
		var err error
		if lc.Control, err = netbind.Control(s.ifi); err != nil {
			return nil, err
		}
	}
	conn, err := bind(ctx, lc, s.network, netip.AddrPortFrom(s.local, 0))
	if err != nil || !s.multicast {
		return conn, err
	}
	if err := s.prepareMulticast(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// hops is how far a search goes (UPnP Device Architecture 1.1, section 1.3.2).
const hops = 2

// prepareMulticast says where multicast leaves, and how far it goes. Where that
// cannot be said it stays on the link, which will do.
func (s seat) prepareMulticast(conn *net.UDPConn) error {
	ifi := s.ifi
	if ifi == nil {
		ifi = interfaceOf(s.local)
	}
	p4, p6 := ipv4.NewPacketConn(conn), ipv6.NewPacketConn(conn)
	leave := p4.SetMulticastInterface
	if s.network == "udp6" {
		_ = p6.SetMulticastHopLimit(hops)
		leave = p6.SetMulticastInterface
	} else {
		_ = p4.SetMulticastTTL(hops)
	}
	if ifi == nil {
		return nil
	}
	if err := leave(ifi); err != nil {
		return fmt.Errorf("multicast by %s: %w", ifi.Name, err)
	}
	return nil
}

// interfaceOf is the interface that has the address, or nil.
func interfaceOf(addr netip.Addr) *net.Interface {
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
	return asUDP(conn)
}

func asUDP(conn net.PacketConn) (*net.UDPConn, error) {
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("socket for datagrams is a %T", conn)
	}
	return udp, nil
}

// readPause keeps a socket that fails again and again from taking all time.
const readPause = 10 * time.Millisecond

// read hands datagrams to handle, one at a time, until the socket is closed. What
// it hands over does not last.
func read(ctx context.Context, conn packetConn, handle func([]byte, netip.AddrPort)) {
	buf := make([]byte, maxDatagram+1) // one more, to know what is too long
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil:
			handle(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		case errors.Is(err, net.ErrClosed) || ctxsync.Sleep(ctx, readPause) != nil:
			return // any other error is about one datagram, or about one that we sent
		}
	}
}
