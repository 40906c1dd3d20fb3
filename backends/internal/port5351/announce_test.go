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
		"00800003 00000000 00000000":                            false, // with a result
		"00800000 00000000 cb0071":                              false, // cut short
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
		if got := announcement(unhex(t, datagram)); (got != "") != want {
			t.Errorf("%s: %q", datagram, got)
		}
	}
}

// Only the gateway's own announcements concern a link.
func TestAnnounceSource(t *testing.T) {
	w, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	other := w.link(t, Config{Gateway: netip.MustParseAddrPort("192.0.2.2:5351")})
	defer other.Close()
	ours, theirs := watchOf(l), watchOf(other)
	ln := &listener{links: map[*Conn]int{l: 1, other: 1}}
	ln.announce(netip.MustParseAddr("192.0.2.3"), "forged")
	if len(ours.Signals)+len(theirs.Signals) != 0 {
		t.Error("a stranger's announcement was believed")
	}
	ln.announce(netip.MustParseAddr("192.0.2.1"), "restart")
	if len(ours.Signals) != 1 || len(theirs.Signals) != 0 {
		t.Errorf("%d and %d signals, want one for the announcer's link", len(ours.Signals), len(theirs.Signals))
	}

	// fe80::1 is another gateway on each interface.
	local := w.link(t, Config{Gateway: netip.MustParseAddrPort("[fe80::1%eth0]:5351")})
	defer local.Close()
	near := watchOf(local)
	ln.links[local] = 1
	ln.announce(netip.MustParseAddr("fe80::1%eth1"), "elsewhere")
	if len(near.Signals) != 0 {
		t.Error("an announcement on another interface was believed")
	}
	if ln.announce(netip.MustParseAddr("fe80::1%eth0"), "restart"); len(near.Signals) != 1 {
		t.Error("the gateway's own announcement was not")
	}
}

func watchOf(l *Conn) *Watch {
	c := make(chan Hint, 1)
	w := &Watch{Signals: c, signals: c, link: l}
	l.watchers[w] = struct{}{}
	return w
}

// A signal that nobody has received yet gives way to a newer one, but a restart
// stays a restart.
func TestSignalsCoalesce(t *testing.T) {
	_, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	w := watchOf(l)
	now := time.Now()
	l.ObserveNATPMP(time.Hour, Reply{Sent: now, Received: now})
	later := now.Add(time.Second)
	l.ObserveNATPMP(0, Reply{Sent: later, Received: later})
	l.signal(Hint{Reason: "announced"})
	if s := <-w.Signals; !s.Restarted || s.Since != later || s.Reason != "announced" {
		t.Errorf("signal %+v", s)
	}
	if len(w.Signals) != 0 {
		t.Error("more than one signal")
	}
}

// The listener is one for all, and its socket goes with the last of them.
func TestListener(t *testing.T) {
	addr, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}

	_, l := newLink(t, "127.0.0.1:5351")
	defer l.Close()
	a, err := l.Watch(WatchConfig{Announce: addr})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Watch(WatchConfig{Announce: addr})
	if err != nil {
		t.Fatal(err)
	}
	if a.listener != b.listener {
		t.Error("two listeners at one address")
	}
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	a.Close()
	if _, err := conn.Write(unhex(t, pcpAnnounce)); err != nil {
		t.Fatal(err)
	}
	if s := <-b.Signals; s.Restarted || s.Reason == "" {
		t.Errorf("signal %+v", s)
	}
	b.Close()
	again, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatalf("the socket is still there: %v", err)
	}
	_ = again.Close()
}

// Where the address cannot be listened at, the watch lives by the epoch alone.
func TestListenerFails(t *testing.T) {
	taken, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	w, err := l.Watch(WatchConfig{Announce: netip.MustParseAddrPort(taken.LocalAddr().String())})
	if err == nil {
		t.Error("listening at a taken address succeeded")
	}
	defer w.Close()
	l.ObserveNATPMP(time.Hour, Reply{Sent: time.Now(), Received: time.Now()})
	l.ObserveNATPMP(0, Reply{Sent: time.Now(), Received: time.Now()})
	if s := <-w.Signals; !s.Restarted {
		t.Errorf("signal %+v", s)
	}
}

// The standard addresses are shared with whoever else listens there.
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

// What the gateway sends unasked is a signal where a watcher says so.
func TestUnsolicited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		c := make(chan Hint, 1)
		l.watchers[&Watch{Signals: c, signals: c, link: l, unsolicited: func(b []byte) string {
			if string(b) == "update" {
				return "said so"
			}
			return ""
		}}] = struct{}{}
		w.onWrite = func(s *sock, b []byte) error {
			s.say([]byte("noise"))
			s.say([]byte("update"))
			s.say(slices.Clone(b))
			return nil
		}
		if _, err := l.Do(t.Context(), echoes("q", time.Second)); err != nil {
			t.Fatal(err)
		}
		if s := <-c; s.Reason != "said so" || s.Restarted || len(c) != 0 {
			t.Errorf("signal %+v", s)
		}
	})
}
