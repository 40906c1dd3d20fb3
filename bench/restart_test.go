package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// restored is what the holder of a mapping sees of a restart, as the kernel saw
// the datagrams: an announcement, and the answer to a request for a mapping.
type restored struct {
	Announced, Restored time.Time
}

// holder holds a mapping until the router has restarted and the mapping is back.
var holder = lab.Func("holder", func(p *lab.Proc) {
	f, err := forward.New(nil)
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Enable(context.Background(), forward.UDP(20000)); err != nil {
		p.Fatal(err)
	}
	announcements, answers := watchPort(announcePort), watchPort(port5351)
	defer announcements.close()
	defer answers.close()
	p.Send("ready")
	var r restored
	for end := time.Now().Add(watchdog); r.Restored.IsZero() && time.Now().Before(end); time.Sleep(looking) {
		if r.Announced.IsZero() {
			r.Announced = announcements.first(func(d seen) bool { return !d.out })
			continue // what came before it is looked at after it
		}
		r.Restored = answers.first(func(d seen) bool {
			return !d.out && d.sport == port5351 && d.op == natpmpMapped && d.at.After(r.Announced)
		})
	}
	p.Send(r)
})

const (
	announcePort = 5350
	natpmpMapped = 129 // the operation of an answer about UDP
	looking      = 10 * time.Millisecond
)

// restarts measures how long it takes from the router's announcement that it has
// restarted until the mapping is back.
func (b *bench) restarts(t *testing.T) {
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	for round := range b.Rounds {
		t.Run("", func(t *testing.T) {
			p := home.Lan.Start(t, holder, nil)
			p.Expect(nil)
			home.Daemon.Restart(t)
			var r restored
			p.Expect(&r)
			p.Wait()
			s := Sample{Scenario: keyRestart, Peer: ours, Round: round, Took: r.Restored.Sub(r.Announced)}
			if r.Announced.IsZero() || r.Restored.IsZero() {
				s.Took, s.Err = watchdog, fmt.Sprintf("not back within %v: %+v", watchdog, r)
				t.Error(s.Err)
			}
			b.add(s)
		})
	}
}
