package upnp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestChangesSince checks that another external address has precedence over a restart
// of the connection.
func TestChangesSince(t *testing.T) {
	start := time.Now()
	state := func(external string, uptime time.Duration) deviceState {
		g := &gateway{Gateway: Gateway{External: netip.MustParseAddr(external), Device: &Device{}}, statusTime: start}
		g.Status = Status{Connection: "Connected", Uptime: uptime}
		return deviceState{gateway: g}
	}
	previous := state("45.45.45.1", time.Hour)
	for external, want := range map[string]backends.ChangeKind{"45.45.45.1": backends.Restarted, "45.45.45.2": backends.AddressChanged} {
		if kind, reason := state(external, time.Second).changesSince(previous); kind != want {
			t.Errorf("%s: %v (%s), want %v", external, kind, reason, want)
		}
	}
}

// TestRestartedSince checks that a connection counts as restarted if its uptime
// decreased, or grew much less than the elapsed time. An uptime that never changes
// proves nothing.
func TestRestartedSince(t *testing.T) {
	for name, tt := range map[string]struct {
		before, elapsed, now time.Duration
		want                 bool
	}{
		"normal":          {time.Hour, time.Hour, 2 * time.Hour, false},
		"slow clock":      {time.Hour, time.Hour, 2*time.Hour - 5*time.Minute, false},
		"decreased":       {time.Hour, time.Minute, 10 * time.Second, true},
		"grew too little": {time.Minute, time.Hour, 30 * time.Minute, true},
		"constant":        {time.Hour, time.Hour, time.Hour, false},
		"never reported":  {0, time.Hour, 0, false},
		"just started":    {time.Hour, time.Hour, 0, true},
		"whole seconds":   {time.Hour, 500 * time.Millisecond, time.Hour - time.Second, false},
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
