package upnp

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/internal/netbind"
)

// A lost packet that opens a connection costs the kernel a second or three.
// Another attempt costs nothing, so one is begun each time that a little longer
// has passed; the first that succeeds, or fails for certain, counts.
const (
	dialAttempts = 4
	dialPause    = 250 * time.Millisecond // doubling
)

// dial connects to exactly that address and port, from the configured
// interface and source.
func (c ClientConfig) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if c.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Source, 0))
	}
	if c.Interface != "" {
		ifi, err := net.InterfaceByName(c.Interface)
		if err != nil {
			return nil, err
		}
		if d.Control, err = netbind.Control(ifi); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	attempts := make(chan attempt)
	begun := 0
	begin := func() {
		begun++
		go func() { // waited for by its answer
			conn, err := d.DialContext(ctx, "tcp", to.String())
			attempts <- attempt{conn, err}
		}()
	}
	begin()
	pause := time.NewTimer(dialPause)
	defer pause.Stop()
	for {
		select {
		case first := <-attempts:
			cancel()
			for range begun - 1 {
				(<-attempts).drop()
			}
			return first.conn, first.err
		case <-pause.C:
			if begun < dialAttempts {
				begin()
				pause.Reset(dialPause << (begun - 1))
			}
		}
	}
}

// attempt is what came of one.
type attempt struct {
	conn net.Conn
	err  error
}

func (a attempt) drop() {
	if a.err == nil {
		_ = a.conn.Close()
	}
}

// localAddr is this host's address on the connection.
func localAddr(conn net.Conn) netip.Addr {
	tcp, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
