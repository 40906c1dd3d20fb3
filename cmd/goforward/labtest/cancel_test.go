package labtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lab"
)

// A call that ends early leaves nothing on the real router either. The cable loses a
// frame of the exchange, the call ends at that moment, and the cable works again.
// Afterwards the router has what the handle reports, or nothing if there is no handle,
// and after Shutdown nothing. The long form does so at each frame of each call, by
// each end; the short form at frames that the seed selects.
func TestCancelFrames(t *testing.T) {
	t.Parallel()
	s := seed(t)
	for i, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cancel: ended at each frame of a call, "+backend)
			newCancels(t, backend, rand.New(rand.NewPCG(s, uint64(i)))).run()
		})
	}
}

// cancelSample is how many cases the short form has by each backend.
const cancelSample = 10

// cancelCall is a call that is ended.
type cancelCall struct {
	op        string
	transport func(uint16) option
	ends      []string
	refreshes bool // a mapping that was enabled before
	options   []option
}

// The ways to end a call, by the name of what the agent does.
const (
	byContext       = "cancel"
	byForwarder     = "close"
	byMapping       = "close mapping"
	byListener      = "close listener"
	byListened      = "close mapping of listener"
	cancelExternal  = 2000 // more than the internal port
	cancelLifetime  = time.Hour
	cancelCallBound = 15 * time.Second // Config.RequestTimeout; each end is much faster
)

func cancelCalls() (all []cancelCall) {
	calls, handles := []string{byContext, byForwarder}, []string{byContext, byForwarder, byMapping}
	for _, transport := range []func(uint16) option{tcp, udp, both} {
		all = append(all,
			cancelCall{op: "enable", transport: transport, ends: calls},
			cancelCall{op: "run until mapped", transport: transport, ends: calls},
			cancelCall{op: "refresh", transport: transport, ends: handles, refreshes: true},
			cancelCall{op: "refresh", transport: transport, ends: handles, refreshes: true, options: []option{external(0)}},
			cancelCall{op: "refresh", transport: transport, ends: handles, refreshes: true, options: []option{lifetime(cancelLifetime / 2)}},
		)
	}
	for _, transport := range []func(uint16) option{tcp, udp} {
		all = append(all, cancelCall{op: "listen", transport: transport, ends: []string{byContext, byForwarder, byListener, byListened}})
	}
	return append(all, cancelCall{op: "external IP", transport: tcp, ends: calls})
}

func (c cancelCall) String() string {
	s := c.op + " " + c.transport(0).Name
	for _, o := range c.options {
		s += " with " + o.Name
	}
	return s
}

// cancelCase is a call that is ended when a frame is lost.
type cancelCase struct {
	cancelCall
	end   string
	frame int // so many come before
	port  uint16
}

// cancels tries one backend.
type cancels struct {
	t       *testing.T
	backend string
	lanes   []*lane
	dice    *rand.Rand
	ports   atomic.Uint32

	mu    sync.Mutex
	tally tally
	late  int // calls that were complete before that frame
	told  int // ends whose error named what remained
}

func newCancels(t *testing.T, backend string, dice *rand.Rand) *cancels {
	t.Helper()
	c := &cancels{t: t, backend: backend, dice: dice}
	for range 2 {
		c.lanes = append(c.lanes, cabled(t, lab.Home(t, lab.Router{}), 3)...)
	}
	return c
}

// run counts the frames of the calls, and then ends them.
func (c *cancels) run() {
	var cases []cancelCase
	for _, call := range cancelCalls() {
		for _, end := range call.ends {
			cases = append(cases, cancelCase{cancelCall: call, end: end})
		}
	}
	if !allFaults {
		c.dice.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
		cases = cases[:cancelSample]
	}
	frames := make([]int, len(cases))
	c.spread("frames", len(cases), func(l *lane, i int) { frames[i] = c.measure(l, cases[i]) })
	if c.t.Failed() {
		return
	}
	var all []cancelCase
	for i, x := range cases {
		first, last := 0, frames[i]
		if !allFaults {
			first = c.dice.IntN(frames[i])
			last = first + 1
		}
		for x.frame = first; x.frame < last; x.frame++ {
			all = append(all, x)
		}
	}
	c.spread("ends", len(all), func(l *lane, i int) {
		err := c.try(l, all[i])
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tally.count(err, "%v, ended by %s after %d frames", all[i].cancelCall, all[i].end, all[i].frame)
	})
	c.tally.tell(c.t, "calls that were ended, "+c.backend, fmt.Sprintf("(%d complete before; %d ends named what remained)", c.late, c.told))
}

// spread does things on all lanes at once.
func (c *cancels) spread(what string, n int, do func(l *lane, i int)) {
	var next atomic.Int32
	var work sync.WaitGroup
	defer work.Wait()
	for i, l := range c.lanes {
		work.Go(func() {
			c.t.Run(fmt.Sprintf("%s, lane %d", what, i), func(t *testing.T) {
				l.agent = start(t, l.host)
				for k := int(next.Add(1)) - 1; k < n; k = int(next.Add(1)) - 1 {
					do(l, k)
				}
			})
		})
	}
}

// prepare does what comes before the call.
func (c *cancels) prepare(l *lane, x *cancelCase) (*remote, *mapping) {
	conf := config{Order: []string{c.backend}, Timeout: cancelCallBound, Lifetime: cancelLifetime}
	if c.backend == "upnp" {
		conf.IGD = rootDescription(l.home) // the router answers few searches a second
	}
	x.port = firstPort + uint16(c.ports.Add(1))
	f := l.forwarder(conf)
	f.do(call{Op: "probe", Forwarder: f.n})
	if !x.refreshes {
		return f, nil
	}
	return f, f.enable(x.transport(x.port))
}

// begins makes the agent begin the call.
func (x *cancelCase) begins(f *remote, m *mapping) (id int) {
	q := call{Op: x.op, Forwarder: f.n, Options: []option{x.transport(x.port)}}
	if m != nil {
		q.Mapping, q.Options = m.n, slices.Clone(x.options)
		for i, o := range q.Options {
			if o.Name == "external" {
				q.Options[i].Port = x.port + cancelExternal
			}
		}
	}
	return f.begin(q)
}

// measure counts the frames of a call that is not ended.
func (c *cancels) measure(l *lane, x cancelCase) (frames int) {
	const uncut = 1 << 20
	f, m := c.prepare(l, &x)
	l.cable.CutAfter(uncut)
	got := l.await(x.begins(f, m))
	frames = l.cable.Plug()
	if got.Failure != nil {
		l.t.Errorf("%v by %s over a good cable: %s", x.cancelCall, c.backend, why(got.Failure))
	}
	f.do(call{Op: "shutdown", Forwarder: f.n, Within: patience})
	if x.op == "listen" {
		l.do(call{Op: "close listener"})
	}
	return frames
}

// try ends a call, and returns what is wrong then.
func (c *cancels) try(l *lane, x cancelCase) error {
	before := rulesTo(l.t, l.home, l.host, 0)
	f, m := c.prepare(l, &x)
	l.cable.CutAfter(x.frame)
	id := x.begins(f, m)
	select {
	case <-l.cable.Severed():
	case <-time.After(cutTimeout): // an exchange may have a frame less
		c.mu.Lock()
		c.late++
		c.mu.Unlock()
	}
	end := call{Op: x.end, Forwarder: f.n, Cancel: id}
	if m != nil {
		end.Mapping = m.n
	}
	ended := l.begin(end)
	l.cable.Plug()
	got, gotEnd := l.await(id), l.await(ended)
	left := func() []string {
		return slices.DeleteFunc(rulesTo(l.t, l.home, l.host, 0), func(r string) bool { return slices.Contains(before, r) })
	}
	var err error
	if x.end == byContext {
		err = c.agrees(f, m, got, x, left)
	} else {
		err = c.nothing(gotEnd.Failure, x, left())
	}
	shut := f.try(call{Op: "shutdown", Forwarder: f.n, Within: patience})
	if x.op == "listen" && x.end != byListener && x.end != byListened {
		l.do(call{Op: "close listener"})
	}
	if x.end != byForwarder {
		err = errors.Join(err, shut.Failure.err()) // what a Forwarder left, it named
	}
	if rules := left(); err == nil && x.end != byForwarder && len(rules) > 0 {
		err = fmt.Errorf("after Shutdown the router has %q", rules)
	}
	return err
}

// agrees waits until the router has what the handle reports.
func (c *cancels) agrees(f *remote, m *mapping, got answer, x cancelCase, left func() []string) error {
	switch {
	case x.op == "enable" && got.Failure == nil:
		m, _ = f.enabled(got)
	case x.op == "listen":
		m = &mapping{f: f, n: got.Mapping, state: got.State}
	}
	var want, have []string
	if eventually(patience/2, func() bool {
		want, have = nil, nil
		if m != nil {
			for _, g := range m.now().Granted {
				want = append(want, fmt.Sprintf("%v %d to %d", g.Protocol, g.External.Port(), g.Internal.Port()))
			}
		}
		for _, rule := range left() {
			e := entry.FindStringSubmatch(rule)
			if e == nil {
				f.t.Fatalf("a rule that is no entry: %s", rule)
			}
			p, _ := strconv.ParseUint(e[1], 16, 8)
			have = append(have, fmt.Sprintf("%v %s to %s", backends.Protocol(p), e[2], e[3]))
		}
		slices.Sort(want)
		slices.Sort(have)
		return slices.Equal(want, have)
	}) {
		return nil
	}
	return fmt.Errorf("the router has %q, the handle reports %q", have, want)
}

// nothing wants that a Close left nothing, or that its error names what it left.
func (c *cancels) nothing(failure *failure, x cancelCase, left []string) error {
	if failure == nil {
		if len(left) > 0 {
			return fmt.Errorf("%s returned without an error, and the router has %q", x.end, left)
		}
		return nil
	}
	for _, rule := range left {
		if !strings.Contains(failure.Text, strconv.Itoa(portTo(rule))) {
			return fmt.Errorf("the error of %s does not name %q: %w", x.end, rule, failure)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told++
	return nil
}
