package attack_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// announcements are those of a gateway that just started, or says so: RFC 6886,
// section 3.2.1, with another external address, and RFC 6887, section 14.1.
var announcements = [][]byte{
	{0, 128, 0, 0, 0, 0, 0, 1, 6, 6, 6, 6},
	append([]byte{2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 12)...),
}

// naiveListener believes announcements: it takes the address in them for the
// gateway's, and asks for its mappings again each time.
type naiveListener struct {
	external netip.Addr
	rounds   int
}

func (n *naiveListener) hear(b []byte) {
	if len(b) == 12 && b[1] == 128 {
		n.external = netip.AddrFrom4([4]byte(b[8:12]))
	}
	n.rounds++
}

// flood sends forged announcements from an address, so many of each.
func flood(t *testing.T, from netip.Addr, to netip.AddrPort, n int) {
	t.Helper()
	conn := udp(t, netip.AddrPortFrom(from, 0))
	defer conn.Close()
	for range n {
		for _, b := range announcements {
			_, _ = conn.WriteToUDPAddrPort(b, to)
		}
	}
}

// TestForgedAnnouncement: an announcement is a hint. Another host's is none; one
// with the gateway's address leads to a question to the gateway itself, and a
// flood of them to few.
func TestForgedAnnouncement(t *testing.T) {
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := gw.AnnounceAddr() // for the listener, and before that for the naive client
	probe := udp(t, at)
	_ = probe.SetReadDeadline(time.Now().Add(patience))
	flood(t, attacker, at, 1)
	var naive naiveListener
	b := make([]byte, 64)
	for range announcements {
		n, err := probe.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		naive.hear(b[:n])
	}
	if naive.external != netip.AddrFrom4([4]byte{6, 6, 6, 6}) || naive.rounds != 2 {
		t.Fatalf("the naive client has %+v: this is no attack", naive)
	}
	_ = probe.Close()

	leaves(t, func() {
		f := forwarder(t, gw, forward.Config{Test: forward.TestNetwork{Announce: at}})
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		awaitListener(t, gw, at)
		forgedByOthers(t, gw, at)
		forgedWithAddress(t, gw, at)
		if m.External().AddrPort != netip.AddrPortFrom(gw.External(), 8080) || len(gw.Table()) != 1 {
			t.Errorf("the mapping is at %v, the gateway has %v", m.External(), gw.Table())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// awaitListener waits until announcements are heard: until one leads to a
// question.
func awaitListener(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	before := len(gw.Requests())
	for range 100 {
		flood(t, routerAddr, at, 1)
		if asked(t, gw, before+1, 100*time.Millisecond) > before {
			return
		}
	}
	t.Fatal("nobody listens for announcements")
}

// asked returns the requests of the gateway after it had n, or after a time.
func asked(t *testing.T, gw *gatewaytest.Gateway, n int, within time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	got, _ := gw.AwaitRequests(ctx, n, nil)
	return len(got)
}

// forgedByOthers: nothing comes of them.
func forgedByOthers(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	settle(t, gw)
	before := len(gw.Requests())
	for _, from := range []netip.Addr{attacker, nowhere.Addr(), bystander} {
		flood(t, from, at, 100)
	}
	if n := asked(t, gw, before+1, time.Second); n != before {
		t.Errorf("announcements of others led to %d questions", n-before)
	}
}

// settle waits until the gateway is asked nothing any more for a while.
func settle(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	for range 20 {
		n := len(gw.Requests())
		if asked(t, gw, n+1, 1500*time.Millisecond) == n {
			return
		}
	}
	t.Fatal("the gateway is asked all the time")
}

// forgedWithAddress: it takes no more than a question a second, and a few rounds
// of what is held.
func forgedWithAddress(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	begin, before := time.Now(), len(gw.Requests())
	for range 20 {
		flood(t, routerAddr, at, 100)
		_ = asked(t, gw, 1<<30, 100*time.Millisecond)
	}
	n := len(gw.Requests()) - before
	// A question each second, for NAT-PMP; three rounds at once and then one in five
	// seconds of the mapping, with its external address.
	if most := seconds(begin) + 1 + 2*(3+seconds(begin)/5+1); n == 0 || n > most {
		t.Errorf("4000 announcements led to %d questions, want 1 to %d", n, most)
	}
}

// seconds are those that have passed, begun ones too.
func seconds(since time.Time) int { return int(time.Since(since)/time.Second) + 1 }
