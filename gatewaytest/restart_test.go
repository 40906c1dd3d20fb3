package gatewaytest_test

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// announced is a socket where announcements arrive.
type announced struct {
	t  *testing.T
	pc net.PacketConn
	gw *gatewaytest.Gateway
}

func announcing(t *testing.T, config gatewaytest.Config) announced {
	t.Helper()
	pc, _ := listenUDP(t)
	config.Announce = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	return announced{t, pc, reference(t, config)}
}

func (a announced) expect(want ...string) {
	a.t.Helper()
	for _, want := range want {
		b := make([]byte, 100)
		n, from, err := a.pc.ReadFrom(b)
		if err != nil {
			a.t.Fatal(err)
		}
		if got := hex.EncodeToString(b[:n]); got != want || from.String() != a.gw.Addr().String() {
			a.t.Errorf("announced %s by %v, want %s by %v", got, from, want, a.gw.Addr())
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	a := announcing(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 1}})
	static := taken(backends.TCP, 80)
	static.Static = true
	if err := a.gw.AddMapping(static); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, a.gw)
	h.ask(mapTCP)

	a.gw.Restart(gatewaytest.RestartOptions{KeepTable: true, KeepEpoch: true})
	a.expect("00800000000004d2cb007107")
	if n := len(a.gw.Table()); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	a.gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if e := only(t, a.gw); !e.Static {
		t.Errorf("left: %v", e)
	}
	h.expect("0000", "0080 0000 00000000 cb007107")
	a.gw.Advance(3 * time.Second)
	a.gw.Announce()
	a.expect("0080000000000003cb007107") // so the silent restart announced nothing
	a.gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	a.expect("00800000000000032d2d2d07")
	h.expect("0000", "0080 0000 00000003 2d2d2d07")
	a.gw.SetExternal(netip.Addr{})
	a.expect("008000030000000300000000")
	h.expect("0000", "0080 0003 00000003 00000000")
	if n := a.gw.Stats().Announcements; n != 4 {
		t.Errorf("%d announcements counted, want 4", n)
	}
}

func TestAnnounceForms(t *testing.T) {
	t.Parallel()
	const pmp, pcp = "00800000000004d2cb007107", "0280000000000000000004d2000000000000000000000000"
	a := announcing(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 2, AnnounceAs: quirks.AnnounceBoth}})
	a.gw.Announce()
	a.expect(pmp, pcp, pmp, pcp) // the second round 250 ms later
	for again := true; again; {  // until the second packet of the first series was not due yet
		a = announcing(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 2, AnnounceAs: quirks.AnnouncePCP}})
		begin := time.Now()
		a.gw.Announce()
		a.gw.Announce() // ends the first series
		again = time.Since(begin) > 200*time.Millisecond
	}
	a.expect(pcp, pcp, pcp)
	h := newHost(t, a.gw)
	for range 200 {
		h.ask("0000") // would give the first series the time
	}
	a.gw.Down()
	a.gw.Announce()
	if n := a.gw.Stats().Announcements; n != 3 {
		t.Errorf("%d announcements, want 3", n)
	}
}

// The mappings point to the address that the gateway has.
func TestSetExternal(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	_, port := listenTCP(t)
	newHost(t, gw).port(2, port, 7200)
	gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	if got := only(t, gw).External.String(); got != "45.45.45.7:8080" {
		t.Errorf("external %s", got)
	}
	if _, err := gw.Dial(waiting(t), "tcp", "45.45.45.1:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("the old address: %v", err)
	}
	c, err := gw.Dial(waiting(t), "tcp", "45.45.45.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	gw.SetExternal(netip.IPv4Unspecified())
	if _, err := gw.Dial(waiting(t), "tcp", "0.0.0.0:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("no address: %v", err)
	}
}

func TestDownUp(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	h.ask(mapTCP)
	for range 3 {
		gw.Down()
		gw.Down()
		h.send("0000")
		// Loopback tells the client at once on the systems that tell at all.
		if _, err := h.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.Errno(10054)) {
			t.Errorf("while down: %v", err)
		}
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		h.expect("0000", addrReply)
		only(t, gw)
	}
}

func TestTwoGateways(t *testing.T) {
	t.Parallel()
	one := reference(t, gatewaytest.Config{})
	two := reference(t, gatewaytest.Config{External: netip.MustParseAddr("45.45.45.2")})
	newHost(t, one).expect(mapTCP, mapTCPReply)
	newHost(t, two).expect("0000", "0080 0000 000004d2 2d2d2d02")
	if one.Addr() == two.Addr() || len(one.Table()) != 1 || len(two.Table()) != 0 {
		t.Errorf("not apart: %v %v", one.Table(), two.Table())
	}
}
