package labtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// badLines are what cables do to packets. Seeds select which ones. Of ten, three or
// two packets in a row exactly one is lost each way, so that at most four, five or
// six requests in a row get no answer; NAT-PMP and PCP send fifteen for each
// attempt. With six seeds, the last mapping was granted 19 s after the one before,
// of the two minutes that it may take.
var badLines = []struct {
	name string
	line lab.Line
}{
	{"loss 10 %", lab.Line{OneIn: 10}},
	{"loss 30 %", lab.Line{OneIn: 3}},
	{"loss 50 %", lab.Line{OneIn: 2}},
	{"duplication", lab.Line{Duplicate: 0.5}},
	{"reordering", lab.Line{Reorder: 0.3, Jitter: 10 * time.Millisecond}},
	{"delay", lab.Line{Delay: 150 * time.Millisecond, Jitter: 100 * time.Millisecond}},
}

// Over every bad line a mapping is granted, and taken away.
func TestFaultLine(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			for _, bad := range badLines {
				lab.Scenario(t, "fault: "+bad.name+", "+backend)
			}
			testLines(t, backend)
		})
	}
}

// lineLease is longer than it takes to close a mapping over the worst line.
const lineLease = 30 * time.Second

func testLines(t *testing.T, backend string) {
	dice := seed(t)
	var all []*lane
	if backend == "upnp" { // a router is too slow to be searched for by many
		for range badLines {
			all = append(all, lanes(t, lab.Home(t, lab.Router{}), 1)...)
		}
	} else {
		all = lanes(t, lab.Home(t, lab.Router{}), len(badLines))
	}
	mappings, echoes, enables := make([]*mapping, len(all)), make([]lab.Echo, len(all)), make([]int, len(all))
	for i, l := range all {
		line := badLines[i].line
		line.Seed = dice
		l.cable.Set(line)
		echoes[i] = l.host.Echo(t, "udp", fmt.Sprintf(":%d", firstPort+i))
		f := l.forwarder(config{Order: []string{backend}, Lifetime: lineLease, Wait: patience / 2, Timeout: patience})
		enables[i] = f.beginEnable(udp(echoes[i].Addr.Port()), background) // however many tries it takes
		mappings[i] = &mapping{f: f}
	}
	for i, l := range all {
		m, err := mappings[i].f.enabled(l.await(enables[i]))
		if err != nil {
			t.Fatal(err)
		}
		mappings[i] = m
	}
	for i, l := range all {
		l.carries(badLines[i].name, backend, mappings[i], echoes[i])
	}
	for i, l := range all {
		line := badLines[i].line
		line.Seed = dice + 1
		l.cable.Set(line)
		enables[i] = l.begin(call{Op: "close mapping", Mapping: mappings[i].n})
	}
	for i, l := range all {
		l.goesAway(badLines[i].name, l.await(enables[i]), echoes[i])
		l.cable.Set(lab.Line{})
		mappings[i].f.close()
		l.quiesces(l.calm)
	}
}

// carries wants the mapping to be granted over the bad line, and bytes to arrive
// over a good one: what becomes of them on a bad one is not the router's doing.
// Where every second packet is lost each way, no exchange by TCP ends in time:
// there it must be told, and the mapping comes when the line is good.
func (l *lane) carries(name, backend string, m *mapping, echo lab.Echo) {
	l.t.Helper()
	within := 2 * time.Minute
	hopeless := name == "loss 50 %" && backend == "upnp"
	if hopeless {
		until(l.t, within, name+": neither granted nor told", func() bool {
			s := m.now()
			return s.External.IsValid() || s.Failure != nil
		})
	} else {
		took := until(l.t, within, name+": it is not granted", func() bool { return m.now().External.IsValid() })
		l.t.Logf("%s: granted %v after the one before", name, took.Round(time.Millisecond))
	}
	l.cable.Set(lab.Line{})
	until(l.t, within, name+": it is not granted, over a good line", func() bool { return m.now().External.IsValid() })
	comes(l.t, l.home, echo, m.External, within)
}

// goesAway wants a mapping to go by being closed, or else, where that is told, by
// the end of its lifetime.
func (l *lane) goesAway(name string, closed answer, echo lab.Echo) {
	l.t.Helper()
	rules := func() int { return len(rulesTo(l.t, l.home, l.host, echo.Addr.Port())) }
	if closed.Failure == nil {
		l.t.Logf("%s: closed in %v", name, closed.Took.Round(time.Millisecond))
		if n := rules(); n > 0 {
			l.t.Errorf("%s: closed without an error, and it is still there", name)
		}
		return
	}
	l.t.Logf("%s: left to its lifetime after %v: %v", name, closed.Took, closed.Failure)
	until(l.t, lineLease+patience, name+": it outlives its lifetime", func() bool { return rules() == 0 })
}
