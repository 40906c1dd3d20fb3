package labtest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// The provider gives the router another address, at once or after a while
// without any.
func TestAddressChange(t *testing.T) {
	t.Parallel()
	const add, del = "ip addr add 45.45.45.77/24 dev wan0", "ip addr del 45.45.45.1/24 dev wan0"
	for name, change := range map[string][]string{
		"at once":      {"sysctl -qw net.ipv4.conf.wan0.promote_secondaries=1; " + add + "; " + del},
		"down, and up": {del, add},
	} {
		for _, prefix := range []string{"forward", "pcp"} {
			t.Run(prefix+", "+name, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, prefix+": another external address, "+name)
				testAddressChange(t, lab.Home(t, lab.Router{NoNATPMP: prefix == "pcp"}), change)
			})
		}
	}
}

func testAddressChange(t *testing.T, home *lab.HomeNet, change []string) {
	t.Helper()
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)

	for _, script := range change {
		home.Router.Exec(t, "sh", "-ec", script)
	}
	begin, stalled := time.Now(), stalls()
	want := netip.AddrPortFrom(netip.MustParseAddr("45.45.45.77"), 8080)
	var e event
	for e.External != want {
		e = f.nextEvent()
	}
	took := time.Since(begin) - stalled()
	t.Logf("the event came after %v", took)
	if took > 3*soon {
		t.Errorf("the event came after %v", took)
	}
	// The router's clock starts anew, as the standard wants it: that looks
	// like a restart, where it had been running for long enough.
	if e.Kind != forward.EventChanged && e.Kind != forward.EventRestored {
		t.Errorf("event %v", e.Kind)
	}
	if s := m.now(); s.External != want || s.Failure != nil {
		t.Errorf("%+v", s)
	}
	home.Reaches(t, echo, want)
	f.disable()
	wantRules(t, home, 0)
	f.noEvent()
}
