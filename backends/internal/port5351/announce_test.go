package port5351

import (
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/internal/freeport"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const pcpAnnounce = "02800000 00000000 00000000 00000000 00000000 00000000"

func TestAnnouncement(t *testing.T) {
	for datagram, want := range map[string]bool{
		"00800000 00000000 cb007107":                            true, // RFC 6886, section 3.2.1
		"00800000 00000000 cb007107 00":                         true,
		"00800003 00000000 00000000":                            true,  // without a usable address
		"00800000 00000000 cb0071":                              false, // truncated
		"00810000 00000000 cb007107":                            false, // another opcode
		"00000000 00000000 cb007107":                            false, // a request
		pcpAnnounce:                                             true,  // RFC 6887, section 14.1
		pcpAnnounce + "00":                                      false,
		pcpAnnounce[:len(pcpAnnounce)-2]:                        false,
		strings.Replace(pcpAnnounce, "0280", "0281", 1):         false,
		strings.Replace(pcpAnnounce, "02800000", "02800001", 1): false,
		strings.Replace(pcpAnnounce, "0280", "0180", 1):         false,
		"": false, "00": false, "02": false, "0280": false,
	} {
		if got := announcementReason(unhex(t, datagram)); (got != "") != want {
			t.Errorf("%s: %q", datagram, got)
		}
	}
}

// TestAnnounceSource checks that a Conn accepts announcements only from its own
// gateway.
func TestAnnounceSource(t *testing.T) {
	gw, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	other := gw.open(t, Config{Gateway: netip.MustParseAddrPort("192.0.2.2:5351")})
	defer other.Close()
	watch, otherWatch := addWatch(conn), addWatch(other)
	ln := &listener{conns: map[*Conn]int{conn: 1, other: 1}}
	ln.dispatch(netip.MustParseAddr("192.0.2.3"), "forged")
	if len(watch.Hints)+len(otherWatch.Hints) != 0 {
		t.Error("an announcement from another address was accepted")
	}
	ln.dispatch(netip.MustParseAddr("192.0.2.1"), "restart")
	if len(watch.Hints) != 1 || len(otherWatch.Hints) != 0 {
		t.Errorf("%d and %d hints, want one, for the Conn of the announcing gateway", len(watch.Hints), len(otherWatch.Hints))
	}

	// fe80::1 is a different gateway on each interface.
	linkLocal := gw.open(t, Config{Gateway: netip.MustParseAddrPort("[fe80::1%eth0]:5351")})
	defer linkLocal.Close()
	localWatch := addWatch(linkLocal)
	ln.conns[linkLocal] = 1
	ln.dispatch(netip.MustParseAddr("fe80::1%eth1"), "other interface")
	if len(localWatch.Hints) != 0 {
		t.Error("an announcement on another interface was accepted")
	}
	if ln.dispatch(netip.MustParseAddr("fe80::1%eth0"), "restart"); len(localWatch.Hints) != 1 {
		t.Error("the gateway's own announcement was not accepted")
	}
}

func addWatch(conn *Conn) *Watch {
	hints := make(chan Hint, 1)
	w := &Watch{Hints: hints, hints: hints, conn: conn}
	conn.watchers[w] = struct{}{}
	return w
}

// TestHintsMerge checks that a newer hint replaces one that was not yet received,
// and that the information about a restart is kept.
func TestHintsMerge(t *testing.T) {
	_, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	w := addWatch(conn)
	now := time.Now()
	conn.ObserveNATPMP(time.Hour, Reply{Sent: now, Received: now})
	later := now.Add(time.Second)
	conn.ObserveNATPMP(0, Reply{Sent: later, Received: later})
	conn.notifyWatchers(Hint{Reason: "announced"})
	if s := <-w.Hints; !s.Restarted || s.Since != later || s.Reason != "announced" {
		t.Errorf("hint %+v", s)
	}
	if len(w.Hints) != 0 {
		t.Error("more than one hint")
	}
}

// TestListener checks that all watches of an address share one listener, and that
// the last Close closes its socket.
func TestListener(t *testing.T) {
	addr, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}

	_, conn := newConn(t, "127.0.0.1:5351")
	defer conn.Close()
	a, err := conn.Watch(WatchConfig{Announce: addr})
	if err != nil {
		t.Fatal(err)
	}
	b, err := conn.Watch(WatchConfig{Announce: addr})
	if err != nil {
		t.Fatal(err)
	}
	if a.listener != b.listener {
		t.Error("two listeners at one address")
	}
	sender, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Close() }()
	a.Close()
	if _, err := sender.Write(unhex(t, pcpAnnounce)); err != nil {
		t.Fatal(err)
	}
	if s := <-b.Hints; s.Restarted || s.Reason == "" {
		t.Errorf("hint %+v", s)
	}
	b.Close()
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatalf("the socket is still open: %v", err)
	}
	_ = socket.Close()
}

// TestListenerFails checks that a watch still reports a change of the epoch if it
// cannot listen at the announcement address.
func TestListenerFails(t *testing.T) {
	occupied, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = occupied.Close() }()
	_, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	w, err := conn.Watch(WatchConfig{Announce: netip.MustParseAddrPort(occupied.LocalAddr().String())})
	if err == nil {
		t.Error("listening at an occupied address succeeded")
	}
	defer w.Close()
	conn.ObserveNATPMP(time.Hour, Reply{Sent: time.Now(), Received: time.Now()})
	conn.ObserveNATPMP(0, Reply{Sent: time.Now(), Received: time.Now()})
	if s := <-w.Hints; !s.Restarted {
		t.Errorf("hint %+v", s)
	}
}

// TestListenMulticast checks that two listeners can share each standard address.
func TestListenMulticast(t *testing.T) {
	for _, addr := range []netip.AddrPort{announce4, announce6} {
		a, err := listenAnnounce(t.Context(), addr)
		if err != nil {
			t.Logf("MULTICAST NOT TESTED at %v: %v", addr, err)
			continue
		}
		b, err := listenAnnounce(t.Context(), addr)
		if err != nil {
			t.Errorf("a second listener at %v: %v", addr, err)
		} else {
			_ = b.Close()
		}
		_ = a.Close()
	}
}

// TestUnsolicited checks that a datagram that answers no request becomes a hint if
// the function Unsolicited of a watcher returns a reason.
func TestUnsolicited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		hints := make(chan Hint, 1)
		conn.watchers[&Watch{Hints: hints, hints: hints, conn: conn, unsolicited: func(b []byte) string {
			if string(b) == "update" {
				return "update received"
			}
			return ""
		}}] = struct{}{}
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			s.receive([]byte("noise"))
			s.receive([]byte("update"))
			s.receive(slices.Clone(b))
			return nil
		}
		if _, err := conn.Do(t.Context(), echo("q", time.Second)); err != nil {
			t.Fatal(err)
		}
		if s := <-hints; s.Reason != "update received" || s.Restarted || len(hints) != 0 {
			t.Errorf("hint %+v", s)
		}
	})
}
