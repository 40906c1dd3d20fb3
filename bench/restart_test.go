package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// restartTimes are the times of two datagrams during a restart, as the kernel recorded them:
// the announcement of the router, and the response to the request for the mapping.
type restartTimes struct {
	Announced, Restored time.Time
}

// holder holds a mapping until the router has restarted and the mapping is restored.
var holder = lab.Func("holder", func(p *lab.Proc) {
	f, err := forward.New(nil)
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Enable(context.Background(), forward.UDP(20000)); err != nil {
		p.Fatal(err)
	}
	announcements, replies := sniffPort(announcePort), sniffPort(port5351)
	defer announcements.close()
	defer replies.close()
	p.Send("ready")
	var r restartTimes
	for end := time.Now().Add(watchdog); r.Restored.IsZero() && time.Now().Before(end); time.Sleep(pollInterval) {
		if r.Announced.IsZero() {
			r.Announced = announcements.first(func(d datagram) bool { return !d.out })
			continue // read the responses only after the announcement
		}
		r.Restored = replies.first(func(d datagram) bool {
			return !d.out && d.sport == port5351 && d.op == natpmpMapped && d.at.After(r.Announced)
		})
	}
	p.Send(r)
})

const (
	announcePort = 5350
	natpmpMapped = 129 // the opcode of a response to a UDP mapping request
	pollInterval = 10 * time.Millisecond
)

// restarts measures the time from the router's announcement of a restart until the mapping
// is restored.
func (b *bench) restarts(t *testing.T) {
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	for round := range b.Rounds {
		t.Run("", func(t *testing.T) {
			p := home.Lan.Start(t, holder, nil)
			p.Expect(nil)
			home.Daemon.Restart(t)
			var r restartTimes
			p.Expect(&r)
			p.Wait()
			s := Sample{Scenario: keyRestart, Candidate: goforwardName, Round: round, Took: r.Restored.Sub(r.Announced)}
			if r.Announced.IsZero() || r.Restored.IsZero() {
				s.Took, s.Err = watchdog, fmt.Sprintf("not restored within %v: %+v", watchdog, r)
				t.Error(s.Err)
			}
			b.add(s)
		})
	}
}
