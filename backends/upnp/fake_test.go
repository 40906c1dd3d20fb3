package upnp_test

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
)

// fakeSSDP opens a socket on a loopback address and calls respond for each datagram
// until the test ends.
func fakeSSDP(t *testing.T, at netip.Addr, respond func(conn *net.UDPConn, datagram []byte, from netip.AddrPort)) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			respond(conn, buf[:n], from)
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		serving.Wait()
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// silentSSDP opens a socket that does not respond to searches. Each search is
// signalled on the channel.
func silentSSDP(t *testing.T) (at netip.AddrPort, searched <-chan struct{}) {
	searches := make(chan struct{}, 1000)
	at = fakeSSDP(t, host(), func(*net.UDPConn, []byte, netip.AddrPort) {
		select {
		case searches <- struct{}{}:
		default:
		}
	})
	return at, searches
}

// relayTo forwards changed searches to a gateway, and the responses back from the
// gateway's address.
func relayTo(t *testing.T, to netip.AddrPort, rewrite func(string) string) netip.AddrPort {
	var client atomic.Pointer[netip.AddrPort]
	return fakeSSDP(t, to.Addr(), func(conn *net.UDPConn, datagram []byte, from netip.AddrPort) {
		if from == to {
			_, _ = conn.WriteToUDPAddrPort(datagram, *client.Load())
			return
		}
		client.Store(&from)
		_, _ = conn.WriteToUDPAddrPort([]byte(rewrite(string(datagram))), to)
	})
}

// connCounter is a TCP listener that counts connections and closes them without a
// response.
type connCounter struct {
	addr  netip.AddrPort
	count atomic.Int32
}

// countConns listens at an address. It returns false if the address is in use or
// does not exist.
func countConns(t *testing.T, at netip.AddrPort) (*connCounter, bool) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, false
	}
	counter := &connCounter{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			counter.count.Add(1)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return counter, true
}
