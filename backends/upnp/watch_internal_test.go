package upnp

import (
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
