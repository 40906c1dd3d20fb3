package labtest

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// watchEvent is what the tests read of an event of the command watch.
type watchEvent struct {
	Event, Backend, IP, Previous, Reason string
}

// nextWatchEvent returns the next event of a command that prints JSON.
func (c *command) nextWatchEvent() (e watchEvent) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.readLine()), &e); err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("%+v", e)
	return e
}

// TestWatch checks that the command watch prints one event for another external
// address of the router, and one event for a restart.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"address_changed", "restarted"} {
		for _, backend := range []string{"natpmp", "pcp", "upnp", "all protocols"} {
			t.Run(event+", "+backend, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, "cli: watch, "+event+", "+backend)
				home := lab.Home(t, lab.Router{DaemonUptime: true})
				args := []string{"watch", "--json"}
				if backend != "all protocols" {
					args = append(args, "--backend", backend)
				}
				c := goforward(t, home.Lan, args...)
				for c.nextWatchEvent().Event != "address" {
				}
				waitForEpoch(t, home)
				if event == "restarted" {
					home.Daemon.Kill(t)
					home.Daemon.Start(t)
				} else {
					home.Daemon.Signal(t, stopSignal)
					home.Router.Exec(t, "sh", "-ec", "ip addr flush dev wan0 scope global; ip addr add 45.45.45.77/24 dev wan0")
					home.Daemon.Signal(t, continueSignal)
				}
				begin := time.Now()
				e := c.nextWatchEvent()
				t.Logf("the event was printed after %v", time.Since(begin))
				if e.Event != event || event == "address_changed" && (e.IP != "45.45.45.77" || e.Previous != "45.45.45.1") {
					t.Errorf("%+v, want %s", e, event)
				}
				waitForEpoch(t, home) // all announcements of this change have arrived
				c.Signal(os.Interrupt)
				c.wantExit(0)
			})
		}
	}
}
