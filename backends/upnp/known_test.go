package upnp

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestRestartedSince: an uptime that went back, or grew much less than time passed,
// is of a younger connection. One that never changes says nothing.
func TestRestartedSince(t *testing.T) {
	for name, tt := range map[string]struct {
		before, elapsed, now time.Duration
		want                 bool
	}{
		"goes on":       {time.Hour, time.Hour, 2 * time.Hour, false},
		"a slow clock":  {time.Hour, time.Hour, 2*time.Hour - 5*time.Minute, false},
		"went back":     {time.Hour, time.Minute, 10 * time.Second, true},
		"overtaken":     {time.Minute, time.Hour, 30 * time.Minute, true},
		"stuck":         {time.Hour, time.Hour, time.Hour, false},
		"never told":    {0, time.Hour, 0, false},
		"just begun":    {time.Hour, time.Hour, 0, true},
		"whole seconds": {time.Hour, 500 * time.Millisecond, time.Hour - time.Second, false},
	} {
		start := time.Now()
		previous, current := &gateway{statusTime: start}, &gateway{statusTime: start.Add(tt.elapsed)}
		previous.Status.Uptime, current.Status = tt.before, Status{Connection: "Connected", Uptime: tt.now}
		if got := current.restartedSince(previous); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
		if current.Status = (Status{}); current.restartedSince(previous) {
			t.Errorf("%s: restarted, without a word", name)
		}
	}
}

// TestOnLink: no address of this host is taken for a gateway's, though it is on
// our networks, and none beyond them is.
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
			t.Errorf("%v is this host itself", p.Addr())
		}
		if next := p.Addr().Next(); p.Contains(next) && p.Addr().Is4() && !own[next.String()] && !onLink(next, "") {
			t.Errorf("%v is on %v", next, p)
		}
	}
	for _, a := range []string{"198.51.100.7", "2001:db8:77::1"} {
		if onLink(netip.MustParseAddr(a), "") {
			t.Errorf("%v is on no network of ours", a)
		}
	}
	if onLink(netip.MustParseAddr("192.168.1.1"), "no such interface") {
		t.Error("an interface that does not exist has networks")
	}
}
