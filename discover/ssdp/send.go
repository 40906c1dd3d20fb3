package ssdp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/internal/ctxsync"
)

// destination is who is asked, and the socket for it or the reason why there is
// none.
type destination struct {
	addr netip.AddrPort
	conn packetConn
	err  error
}

// destinations opens one socket for each family. One that cannot be opened is
// the matter of its destinations alone.
func (s Search) destinations(ctx context.Context, ifi *net.Interface, open opener) []destination {
	var out []destination
	for _, to := range s.To {
		d := destination{addr: to}
		for _, other := range out {
			if other.addr.Addr().Is4() == to.Addr().Is4() {
				d.conn, d.err = other.conn, other.err
			}
		}
		if d.conn == nil && d.err == nil {
			d.conn, d.err = open(ctx, s.seat(to.Addr().Is4(), ifi))
		}
		out = append(out, d)
	}
	return out
}

// seat is where the socket of a family is to be.
func (s Search) seat(is4 bool, ifi *net.Interface) seat {
	at := seat{network: "udp6", local: netip.IPv6Unspecified(), ifi: ifi}
	if is4 {
		at.network, at.local = "udp4", netip.IPv4Unspecified()
	}
	if s.Source.IsValid() && s.Source.Is4() == is4 {
		at.local = s.Source
	}
	for _, to := range s.To {
		at.multicast = at.multicast || to.Addr().IsMulticast() && to.Addr().Is4() == is4
	}
	return at
}

// sockets are the destinations' sockets, each once.
func sockets(to []destination) []packetConn {
	var out []packetConn
	seen := map[packetConn]bool{}
	for _, d := range to {
		if d.conn != nil && !seen[d.conn] {
			seen[d.conn] = true
			out = append(out, d.conn)
		}
	}
	return out
}

func closeAll(to []destination) {
	for _, conn := range sockets(to) {
		_ = conn.Close()
	}
}

// send sends all searches as often as they are to be sent. It fails where the
// first time none of them could be.
func (s Search) send(ctx context.Context, to []destination) error {
	for i := range s.Sends {
		if i > 0 && ctxsync.Sleep(ctx, gap(i)) != nil {
			return nil
		}
		if err := s.burst(to); err != nil && i == 0 {
			return err
		}
	}
	return nil
}

// gap is the time before the i-th repetition.
func gap(i int) time.Duration { return 250 * time.Millisecond << min(i-1, 4) }

// burst sends every search once. It fails where nothing could be sent, with what
// kept it from each destination.
func (s Search) burst(to []destination) error {
	errs := make([]error, len(to))
	sent := false
	for _, target := range s.Targets {
		for i, d := range to {
			err := d.err
			if err == nil {
				_, err = d.conn.WriteToUDPAddrPort(s.request(target, d.addr), d.addr)
			}
			if err != nil && errs[i] == nil {
				errs[i] = err
			}
			sent = sent || err == nil
		}
	}
	if sent {
		return nil
	}
	return errors.Join(errs...)
}

// request is a search for one target (UPnP Device Architecture 1.1, section
// 1.3.2). What 2.0 adds to it is left out: small parsers choke on less. MX means
// nothing in a unicast search, and does no harm.
func (s Search) request(target string, to netip.AddrPort) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: %d\r\nST: %s\r\n\r\n",
		netip.AddrPortFrom(to.Addr().WithZone(""), to.Port()), s.mx(), target)
}

// mx is MX as on the wire.
func (s Search) mx() int {
	const most = 5
	if s.MX >= most*time.Second {
		return most
	}
	return max(1, int((s.MX+time.Second-1)/time.Second))
}
