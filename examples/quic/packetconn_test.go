package main

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// quic-go v0.65.0 uses these interfaces if a socket has them (sys_conn.go, sys_conn_oob.go,
// sys_conn_buffers.go): OOBCapablePacketConn, together with net.Conn for package ipv4 of
// golang.org/x/net, and SetWriteBuffer.
var (
	_ quic.OOBCapablePacketConn              = (*forward.PacketConn)(nil)
	_ net.Conn                               = (*forward.PacketConn)(nil)
	_ interface{ SetWriteBuffer(int) error } = (*forward.PacketConn)(nil)
)

// pionUDPConn is UDPConn of github.com/pion/transport/v5 v5.1.5, net.go: the interface of a
// UDP socket in the packages of pion.
//
// ICE accepts any net.PacketConn (UDPMuxParams.UDPConn of github.com/pion/ice/v4 v4.4.9),
// and calls its ReadFrom and WriteTo. It has a path without allocations (addr.go) only for
// *net.UDPConn and for types with ReadFromAddrPort and WriteToAddrPort. It does not use that
// path for a *forward.PacketConn.
type pionUDPConn interface {
	Close() error
	LocalAddr() net.Addr
	RemoteAddr() net.Addr
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	Read(b []byte) (n int, err error)
	ReadFrom(p []byte) (n int, addr net.Addr, err error)
	ReadFromUDP(b []byte) (n int, addr *net.UDPAddr, err error)
	ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error)
	Write(b []byte) (n int, err error)
	WriteTo(p []byte, addr net.Addr) (n int, err error)
	WriteToUDP(b []byte, addr *net.UDPAddr) (int, error)
	WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error)
}

var _ pionUDPConn = (*forward.PacketConn)(nil)

// listen calls ListenPacket with a free port, on a test gateway.
func listen(t *testing.T, network string) *forward.PacketConn {
	t.Helper()
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	f, err := forward.New(config(gw))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	pc, err := f.ListenPacket(t.Context(), network, ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// peer opens a socket on a loopback address that exchanges datagrams with another socket. It
// sets deadlines on both sockets.
func peer(t *testing.T, host string, with net.PacketConn) (pc *net.UDPConn, to *net.UDPAddr) {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
	if err != nil {
		t.Skipf("NOT TESTED ON %s: %v", host, err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	for _, c := range []net.PacketConn{pc, with} {
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			t.Fatal(err)
		}
	}
	port := netip.MustParseAddrPort(with.LocalAddr().String()).Port()
	return pc, &net.UDPAddr{IP: net.ParseIP(host), Port: int(port)}
}

// batchConn has the methods that *ipv4.PacketConn and *ipv6.PacketConn share.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

// TestBatch reads and writes several datagrams in one system call, if the system supports
// that. quic-go reads in this way, and BatchConn of github.com/pion/transport/v5/udp reads
// and writes in this way.
func TestBatch(t *testing.T) {
	for _, test := range []struct {
		name, network, host string
		batch               func(net.PacketConn) batchConn
	}{
		{"ipv4", "udp4", "127.0.0.1", func(pc net.PacketConn) batchConn { return ipv4.NewPacketConn(pc) }},
		{"ipv6", "udp6", "::1", func(pc net.PacketConn) batchConn { return ipv6.NewPacketConn(pc) }},
		{"dual stack", "udp", "::1", func(pc net.PacketConn) batchConn { return ipv4.NewPacketConn(pc) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			pc := listen(t, test.network)
			peer, to := peer(t, test.host, pc)
			for _, datagram := range []string{"one", "two"} {
				if _, err := peer.WriteTo([]byte(datagram), to); err != nil {
					t.Fatal(err)
				}
			}
			conn := test.batch(pc)
			var replies []ipv4.Message
			for len(replies) < 2 {
				messages := make([]ipv4.Message, 8)
				for i := range messages {
					messages[i].Buffers = [][]byte{make([]byte, 100)}
				}
				n, err := conn.ReadBatch(messages, 0)
				if err != nil {
					t.Fatalf("ReadBatch: %v", err)
				}
				for _, m := range messages[:n] {
					replies = append(replies, ipv4.Message{Buffers: [][]byte{m.Buffers[0][:m.N]}, Addr: m.Addr})
				}
			}
			for sent := 0; sent < len(replies); {
				n, err := conn.WriteBatch(replies[sent:], 0)
				if err != nil {
					t.Fatalf("WriteBatch: %v", err)
				}
				sent += n
			}
			for _, want := range []string{"one", "two"} {
				b := make([]byte, 100)
				if n, err := peer.Read(b); err != nil || string(b[:n]) != want {
					t.Errorf("read %q, %v, want %q", b[:n], err, want)
				}
			}
		})
	}
}

// TestMsgUDP checks the control messages of datagrams: the destination address of a received
// datagram, and the source address of a reply.
func TestMsgUDP(t *testing.T) {
	pc := listen(t, "udp4")
	if err := ipv4.NewPacketConn(pc).SetControlMessage(ipv4.FlagDst, true); err != nil {
		t.Fatal(err)
	}
	peer, to := peer(t, "127.0.0.2", pc)
	if _, err := peer.WriteTo([]byte("hello"), to); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 100), ipv4.NewControlMessage(ipv4.FlagDst)
	n, oobn, _, from, err := pc.ReadMsgUDP(b, oob)
	if err != nil || string(b[:n]) != "hello" {
		t.Fatalf("ReadMsgUDP: %q, %v", b[:n], err)
	}
	var info ipv4.ControlMessage
	if err := info.Parse(oob[:oobn]); err != nil || !info.Dst.Equal(to.IP) {
		t.Errorf("the destination is %v, %v, want %v", info.Dst, err, to.IP)
	}
	if _, _, err := pc.WriteMsgUDP(b[:n], (&ipv4.ControlMessage{Src: to.IP}).Marshal(), from); err != nil {
		t.Fatalf("WriteMsgUDP: %v", err)
	}
	got := make([]byte, 100)
	n, at, err := peer.ReadFromUDP(got)
	if err != nil || !bytes.Equal(got[:n], []byte("hello")) || !at.IP.Equal(to.IP) || at.Port != to.Port {
		t.Errorf("read %q from %v, %v, want the reply from %v", got[:n], at, err, to)
	}
}
