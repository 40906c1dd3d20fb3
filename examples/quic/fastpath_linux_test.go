package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/quic-go/quic-go"
)

// features are the features of a socket that a QUIC server uses.
type features struct {
	Local         string // the local address of the connection, from packet info
	GSO           bool   // several packets in one write
	Reads, Writes bool   // ECN marks of received and of sent packets
}

// kinds are the kinds of server sockets, with the expected features.
var kinds = map[string]struct {
	open func(t *testing.T) (pc net.PacketConn, socket syscall.Conn)
	want features
}{
	"forward": {func(t *testing.T) (net.PacketConn, syscall.Conn) {
		pc := listen(t, "udp4")
		if err := pc.Mapping().Wait(timeoutContext(t)); err != nil {
			t.Fatal(err)
		}
		return pc, pc
	}, features{"127.0.0.1", true, true, true}},
	"net": {func(t *testing.T) (net.PacketConn, syscall.Conn) {
		pc, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pc.Close() })
		return pc, pc
	}, features{"127.0.0.1", true, true, true}},
	// A PacketConn without the methods that quic-go looks for.
	"wrapped": {func(t *testing.T) (net.PacketConn, syscall.Conn) {
		pc := listen(t, "udp4")
		return struct{ net.PacketConn }{pc}, pc
	}, features{"0.0.0.0", false, false, false}},
}

// TestFastPath checks that quic-go uses the same features of a PacketConn as of a
// *net.UDPConn.
func TestFastPath(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			pc, _ := kind.open(t)
			if got := measure(t, pc); got != kind.want {
				t.Errorf("got %+v, want %+v", got, kind.want)
			}
		})
	}
}

// TestSocketOptions checks that quic-go sets the same options as on a *net.UDPConn: the
// sizes of the buffers, ECN, packet info, and the option that prohibits fragmentation.
func TestSocketOptions(t *testing.T) {
	cert, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]int{}
	for name, kind := range kinds {
		pc, socket := kind.open(t)
		transport := &quic.Transport{Conn: pc}
		if _, err := transport.Listen(&tls.Config{Certificates: []tls.Certificate{cert}}, nil); err != nil {
			t.Fatal(err)
		}
		got[name] = socketOptions(t, socket)
		_ = transport.Close()
	}
	if !maps.Equal(got["forward"], got["net"]) || maps.Equal(got["forward"], got["wrapped"]) {
		t.Errorf("%v", got)
	}
}

// TestLog checks that quic-go logs warnings about the wrapped socket only.
func TestLog(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"forward": false, "net": false, "wrapped": true} {
		cmd := exec.CommandContext(timeoutContext(t), self, "-test.run=^TestFastPath$/^"+name+"$", "-test.v")
		cmd.Env = append(os.Environ(), "QUIC_GO_LOG_LEVEL=info", "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=false")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestFastPath/"+name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for _, warning := range []string{"Not a *net.UDPConn?", "Disabling optimizations"} {
			if strings.Contains(string(out), warning) != want {
				t.Errorf("%s: warning %q: %v, want %v\n%s", name, warning, !want, want, out)
			}
		}
	}
}

// measure serves a client that connects to the socket through the loopback address, because
// the test gateway does not relay ECN marks. It returns the features that quic-go used.
func measure(t *testing.T, pc net.PacketConn) features {
	t.Helper()
	cert, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: pc}
	defer transport.Close()
	var sent, received marks
	ln, err := transport.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"echo"}}, sent.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(timeoutContext(t))
	accepted, served := make(chan *quic.Conn, 1), make(chan struct{})
	go func() {
		defer close(served)
		conn, err := ln.Accept(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		accepted <- conn
		echo(ctx, conn)
	}()
	defer func() { cancel(); <-served }()
	out, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.Certificate[0])
	port := netip.MustParseAddrPort(pc.LocalAddr().String()).Port()
	to := server{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), hex.EncodeToString(sum[:])}
	exchange(t, dial(t, out, to, received.config()), 0)
	conn := <-accepted
	local := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr().Unmap()
	return features{local.String(), conn.ConnectionState().GSO, received.arrived.Load(), sent.arrived.Load()}
}

// socketOptions returns the values of the socket options that quic-go sets.
func socketOptions(t *testing.T, socket syscall.Conn) map[string]int {
	t.Helper()
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for name, option := range map[string][2]int{
		"SO_RCVBUF": {syscall.SOL_SOCKET, syscall.SO_RCVBUF}, "SO_SNDBUF": {syscall.SOL_SOCKET, syscall.SO_SNDBUF},
		"IP_MTU_DISCOVER": {syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER}, "IP_RECVTOS": {syscall.IPPROTO_IP, syscall.IP_RECVTOS},
		"IP_PKTINFO": {syscall.IPPROTO_IP, syscall.IP_PKTINFO},
	} {
		var optErr error
		if err := raw.Control(func(fd uintptr) {
			got[name], optErr = syscall.GetsockoptInt(int(fd), option[0], option[1])
		}); err != nil || optErr != nil {
			t.Fatalf("%s: %v, %v", name, err, optErr)
		}
	}
	return got
}
