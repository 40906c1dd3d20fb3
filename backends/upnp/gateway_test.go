package upnp

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestRestartedSince checks that a connection counts as restarted if its uptime
// decreased, or grew much less than the elapsed time. An uptime that never changes
// proves nothing.
func TestRestartedSince(t *testing.T) {
	for name, tt := range map[string]struct {
		before, elapsed, now time.Duration
		want                 bool
	}{
		"normal":         {time.Hour, time.Hour, 2 * time.Hour, false},
		"slow clock":     {time.Hour, time.Hour, 2*time.Hour - 5*time.Minute, false},
		"decreased":      {time.Hour, time.Minute, 10 * time.Second, true},
		"overtaken":      {time.Minute, time.Hour, 30 * time.Minute, true},
		"stuck":          {time.Hour, time.Hour, time.Hour, false},
		"never reported": {0, time.Hour, 0, false},
		"just started":   {time.Hour, time.Hour, 0, true},
		"whole seconds":  {time.Hour, 500 * time.Millisecond, time.Hour - time.Second, false},
	} {
		start := time.Now()
		previous, current := &gateway{statusTime: start}, &gateway{statusTime: start.Add(tt.elapsed)}
		previous.Status.Uptime, current.Status = tt.before, Status{Connection: "Connected", Uptime: tt.now}
		if got := current.restartedSince(previous); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
		if current.Status = (Status{}); current.restartedSince(previous) {
			t.Errorf("%s: restarted without a reported uptime", name)
		}
	}
}

// TestOnLink checks that onLink accepts neighbours on this host's networks, but
// neither this host's own addresses nor addresses outside its networks.
func TestOnLink(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, a := range addrs {
		host, _, _ := net.ParseCIDR(a.String())
		own[host.String()] = true
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if onLink(p.Addr(), "") {
			t.Errorf("%v is this host's own address", p.Addr())
		}
		if next := p.Addr().Next(); p.Contains(next) && p.Addr().Is4() && !own[next.String()] && !onLink(next, "") {
			t.Errorf("%v is on %v", next, p)
		}
	}
	for _, a := range []string{"198.51.100.7", "2001:db8:77::1"} {
		if onLink(netip.MustParseAddr(a), "") {
			t.Errorf("%v is on none of this host's networks", a)
		}
	}
	if onLink(netip.MustParseAddr("192.168.1.1"), "no such interface") {
		t.Error("onLink accepted an address on an interface that does not exist")
	}
}
