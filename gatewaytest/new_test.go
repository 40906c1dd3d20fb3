package gatewaytest_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
)

// recordedTB is a test that can fail without an end.
type recordedTB struct {
	failed   bool
	cleanups []func()
}

func (r *recordedTB) Helper()          {}
func (r *recordedTB) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recordedTB) Fatal(...any)     { r.failed = true; panic(r) }

// New closes the gateway when the test ends, and fails the test if the gateway does not
// start.
func TestNew(t *testing.T) {
	t.Parallel()
	var tb recordedTB
	gw := gatewaytest.New(&tb, gatewaytest.Config{})
	if tb.failed || len(tb.cleanups) != 1 {
		t.Fatalf("%+v", tb)
	}
	if up := gw.Stats().Epoch; up < 24*time.Hour {
		t.Errorf("up for %v: a restart would not show", up)
	}
	tb.cleanups[0]()
	if err := gw.Up(); err == nil {
		t.Error("it can be started again")
	}
	func() {
		defer func() { _ = recover() }()
		gatewaytest.New(&tb, gatewaytest.Config{Protocols: []string{"igd"}})
	}()
	if !tb.failed || len(tb.cleanups) != 1 {
		t.Errorf("a gateway of no protocol: %+v", tb)
	}
}

// What a listener gets at an address.
func heard(t *testing.T, at netip.AddrPort, happen func()) string {
	t.Helper()
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	happen()
	_ = pc.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 2048)
	n, err := pc.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// A gateway chooses where it announces, and announces what it speaks.
func TestChosenAddresses(t *testing.T) {
	t.Parallel()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	other := gatewaytest.New(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	all := map[netip.AddrPort]bool{}
	for _, at := range []netip.AddrPort{gw.AnnounceAddr(), gw.NotifyAddr(), other.AnnounceAddr(), other.NotifyAddr()} {
		if all[at] || !at.Addr().IsLoopback() || at.Port() == 0 {
			t.Errorf("%v is among %v", at, all)
		}
		all[at] = true
	}
	if got := heard(t, gw.AnnounceAddr(), gw.Announce); len(got) != 12 || got[0] != 0 {
		t.Errorf("announced %x, want NAT-PMP", got)
	}
	if got := heard(t, gw.NotifyAddr(), gw.Announce); !strings.HasPrefix(got, "NOTIFY ") {
		t.Errorf("notified %q", got)
	}
	if got := heard(t, other.AnnounceAddr(), other.Announce); len(got) != 24 || got[0] != 2 {
		t.Errorf("announced %x, want PCP", got)
	}
	if n := other.Stats().Notifications; n != 0 {
		t.Errorf("%d notifications without UPnP", n)
	}

	none := netip.MustParseAddrPort("127.0.0.1:0")
	silent := gatewaytest.New(t, gatewaytest.Config{Announce: none, Notify: none})
	device := gatewaytest.New(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	silent.Announce()
	device.Announce()
	if s := silent.Stats(); s.Announcements != 0 || s.Notifications != 0 || silent.AnnounceAddr() != none || silent.NotifyAddr() != none {
		t.Errorf("a silent gateway announces at %v and %v: %+v", silent.AnnounceAddr(), silent.NotifyAddr(), s)
	}
	if s := device.Stats(); s.Announcements != 0 || s.Notifications == 0 {
		t.Errorf("a gateway of UPnP announces: %+v", s)
	}
}

// A protocol that does not exist is the test's mistake.
func TestDownNothing(t *testing.T) {
	t.Parallel()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	defer func() {
		if recover() == nil {
			t.Error("a protocol of no such name went down")
		}
	}()
	gw.Down("upnp", "nat-pmp")
}
