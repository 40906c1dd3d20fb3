package lab

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// Echo identifies a running echo server. The server sends "TOKEN PEER\n", and then
// returns the bytes that it receives. PEER is the address from which the server received
// them.
type Echo struct {
	Network string         `json:"network"` // "tcp" or "udp"
	Addr    netip.AddrPort `json:"addr"`    // the server's address in its own network
	Token   string         `json:"token"`
}

// Echo starts an echo server in the host. The server stops when the test ends. The
// network is "tcp" or "udp", and the address is as for net.Listen. If the port is 0, Addr
// has the port that was chosen.
func (h *Host) Echo(t testing.TB, network, address string) Echo {
	t.Helper()
	var (
		echo Echo
		c    io.Closer
	)
	if strings.HasPrefix(network, "udp") {
		pc, err := h.ListenPacket(network, address)
		if err != nil {
			t.Fatalf("lab: echo server: %v", err)
		}
		echo, c = serveEchoPackets(pc, h.Addr()), pc
	} else {
		ln, err := h.Listen(network, address)
		if err != nil {
			t.Fatalf("lab: echo server: %v", err)
		}
		echo, c = serveEcho(ln, h.Addr()), ln
	}
	t.Cleanup(func() { _ = c.Close() })
	return echo
}

// serveEcho serves connections until ln is closed. local replaces an unspecified
// listening address.
func serveEcho(ln net.Listener, local netip.Addr) Echo {
	echo := newEcho("tcp", ln.Addr(), local)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintf(conn, "%s %s\n", echo.Token, addrPort(conn.RemoteAddr()))
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return echo
}

// serveEchoPackets is serveEcho for datagrams.
func serveEchoPackets(pc net.PacketConn, local netip.Addr) Echo {
	echo := newEcho("udp", pc.LocalAddr(), local)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, peer, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			reply := fmt.Appendf(nil, "%s %s\n%s", echo.Token, addrPort(peer), buf[:n])
			_, _ = pc.WriteTo(reply, peer)
		}
	}()
	return echo
}

func newEcho(network string, bound net.Addr, local netip.Addr) Echo {
	addr := addrPort(bound)
	if addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(local, addr.Port())
	}
	return Echo{Network: network, Addr: addr, Token: rand.Text()}
}
