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

// Echo is a running echo server, by what tells it from every other. It answers
// "TOKEN PEER\n" and then what it is sent; PEER is the address that it sees.
type Echo struct {
	Network string         `json:"network"` // "tcp" or "udp"
	Addr    netip.AddrPort `json:"addr"`    // as its own network reaches it
	Token   string         `json:"token"`
}

// Echo starts a server in the host, until the test ends. The network is "tcp"
// or "udp", the address as for net.Listen; with port 0 Addr tells which it is.
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

// serve answers connections until ln is closed; local stands for an unspecified
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
