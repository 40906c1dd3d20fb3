package scenarios

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/lab"
)

const shortLease = 5 * time.Second

// longestGap is how long bytes may fail to arrive at a renewal: this router
// takes the old entry away before it makes the new one, a millisecond later.
const longestGap = time.Second

// stays asks whether bytes arrive until the time is over, and returns the
// longest while for which they did not.
func stays(t *testing.T, home *lab.HomeNet, echo lab.Echo, external netip.AddrPort, until <-chan struct{}) (gap time.Duration) {
	t.Helper()
	tick := time.NewTicker(again)
	defer tick.Stop()
	last := time.Now()
	for {
		if answered(t, home.Wan, echo, external) {
			last = time.Now()
		}
		gap = max(gap, time.Since(last))
		select {
		case <-until:
			return gap
		case <-tick.C:
		}
	}
}

// answered asks once, and does not wait long.
func answered(t *testing.T, from *lab.Host, echo lab.Echo, to netip.AddrPort) bool {
	t.Helper()
	const within = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	conn, err := from.Dial(ctx, echo.Network, to.String())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := conn.Write([]byte("here?")); err != nil {
		return false
	}
	buf := make([]byte, len(echo.Token))
	n, _ := conn.Read(buf)
	return string(buf[:n]) == echo.Token
}

// Bytes arrive all the time while a mapping outlives its lifetime three times.
// One that is not renewed goes when its lifetime has passed, which shows that
// this router means what it says.
func TestRenew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: renewed for several lifetimes")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
	kept, left := f.enable(both(8080)), f.enable(tcp(8081), once)
	f.event(forward.Mapped)
	f.event(forward.Mapped)
	over, byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8081"), home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	home.Reaches(t, over, left.External)

	lifetimes := make(chan struct{})
	time.AfterFunc(3*shortLease+shortLease/4, func() { close(lifetimes) })
	gaps := make(chan time.Duration)
	for _, echo := range []lab.Echo{byTCP, byUDP} {
		go func() { gaps <- stays(t, home, echo, kept.External, lifetimes) }()
	}
	gone := goes(t, home, over, left.External, shortLease+3*time.Second)
	t.Logf("the mapping that is not renewed went after %v", gone)
	if gone < shortLease-time.Second {
		t.Errorf("the mapping that is not renewed went after %v, want %v", gone, shortLease)
	}
	for range 2 {
		gap := <-gaps
		t.Logf("the longest gap: %v", gap)
		if gap > longestGap {
			t.Errorf("no bytes arrived for %v", gap)
		}
	}
	home.Reaches(t, byTCP, kept.External)
	home.Reaches(t, byUDP, kept.External)
	if s := kept.now(); s.Failure != nil || s.External != at(home, 8080) || time.Until(s.Expires) < shortLease/4 {
		t.Errorf("%+v", s)
	}
	wantRules(t, home, 2)
	f.noEvent()
	f.disable()
	wantRules(t, home, 0)
}

// Two parts of a program forward TCP and UDP of one port, which are renewed and
// taken away apart. This router confuses their firewall rules: to make the rule
// of one anew, or to take it away, it deletes that of the other.
func TestRenewSiblings(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: TCP and UDP of a port, renewed and disabled apart")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	m := f.enable(tcp(8080))
	f.enable(udp(8080))
	home.Reaches(t, byTCP, m.External)
	home.Reaches(t, byUDP, m.External)
	arrives := func(echo lab.Echo, after string) {
		t.Helper()
		begin := time.Now()
		for !answered(t, home.Wan, echo, m.External) {
			if time.Since(begin) > longestGap {
				t.Errorf("after %s, bytes no longer arrive by %s", after, echo.Network)
				return
			}
		}
	}
	m.refresh()
	arrives(byTCP, "the renewal of TCP")
	arrives(byUDP, "the renewal of TCP")
	f.disable(tcp(8080))
	arrives(byUDP, "the end of TCP")
	wantRules(t, home, 1)
}

// A mapping that is taken away goes at once, whatever its lifetime, and is not
// asked for again.
func TestDisabledStaysAway(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disabled, not renewed again")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: 2 * time.Second})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	home.Reaches(t, echo, m.External)
	f.disable()
	begin := time.Now()
	until(t, patience, "the time does not pass", func() bool {
		wantRules(t, home, 0)
		return t.Failed() || time.Since(begin) > 3*time.Second
	})
}

// Refresh extends a mapping in place.
func TestRefresh(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: refreshed, in place and elsewhere")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), lifetime(time.Minute))
	before := m.state
	m.refresh(lifetime(time.Hour))
	if m.External != before.External || m.Expires.Sub(before.Expires) < 50*time.Minute {
		t.Errorf("external %v, expires %v; before: %v, %v", m.External, m.Expires, before.External, before.Expires)
	}
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 1)

	m.refresh(external(9090))
	if m.External != at(home, 9090) {
		t.Errorf("external %v, want port 9090", m.External)
	}
	home.Reaches(t, echo, m.External)
	home.DoesNotReach(t, echo, before.External)
	wantRules(t, home, 1)

	// What the router has lost comes back by a refresh.
	home.Daemon.Forget(t)
	home.DoesNotReach(t, echo, m.External)
	m.refresh()
	home.Reaches(t, echo, m.External)
}
