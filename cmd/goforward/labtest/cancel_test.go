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
	"github.com/natforward/goforward/internal/testseed"
)

// TestCancelFrames checks that a call that ends early leaves nothing on the real router.
// The cable loses a frame of the call, the call is ended at that moment, and the cable is
// repaired. Afterwards the router has the mappings that the handle reports, or none if
// there is no handle. After Shutdown it has none. The long form does this at each frame
// of each call, in each way to end it. The short form does it at frames that the seed
// selects.
func TestCancelFrames(t *testing.T) {
	t.Parallel()
	s := testseed.Of(t)
	for i, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cancel: ended at each frame of a call, "+backend)
			newCancelTest(t, backend, rand.New(rand.NewPCG(s, uint64(i)))).run()
		})
	}
}

// cancelCases is how many cases the short form tests for each backend.
const cancelCases = 10

// cancelCall is a kind of call, and the ways to end it.
type cancelCall struct {
	op        string
	transport func(uint16) option
	ends      []string
	refreshes bool // the call refreshes a mapping that was enabled before
	options   []option
}

// The ways to end a call. Each is the name of the call to the agent.
const (
	byContext            = "cancel"
	byForwarder          = "close"
	byMapping            = "close mapping"
	byListener           = "close listener"
	byListenerMapping    = "close mapping of listener"
	cancelExternal       = 2000 // added to the internal port
	cancelLifetime       = time.Hour
	cancelRequestTimeout = 15 * time.Second // Config.RequestTimeout; each way to end a call is much faster
)

// cancelCalls returns all kinds of calls that are ended.
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
		all = append(all, cancelCall{op: "listen", transport: transport, ends: []string{byContext, byForwarder, byListener, byListenerMapping}})
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
	frame int // the number of frames that pass before
	port  uint16
}

// cancelTest tests one backend.
type cancelTest struct {
	t       *testing.T
	backend string
	clients []*cabledClient
	rng     *rand.Rand
	ports   atomic.Uint32

	mu        sync.Mutex
	tally     tally
	completed int // calls that were complete before that frame
	reported  int // errors that named the mappings that remained
}

func newCancelTest(t *testing.T, backend string, rng *rand.Rand) *cancelTest {
	t.Helper()
	c := &cancelTest{t: t, backend: backend, rng: rng}
	for range 2 {
		c.clients = append(c.clients, newCabledHosts(t, lab.Home(t, lab.Router{}), 3)...)
	}
	return c
}

// run counts the frames of the calls, and then ends the calls at these frames.
func (c *cancelTest) run() {
	var cases []cancelCase
	for _, call := range cancelCalls() {
		for _, end := range call.ends {
			cases = append(cases, cancelCase{cancelCall: call, end: end})
		}
	}
	if !allFaults {
		c.rng.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
		cases = cases[:cancelCases]
	}
	frames := make([]int, len(cases))
	c.forEachClient("frames", len(cases), func(l *cabledClient, i int) { frames[i] = c.measure(l, cases[i]) })
	if c.t.Failed() {
		return
	}
	var all []cancelCase
	for i, x := range cases {
		first, last := 0, frames[i]
		if !allFaults {
			first = c.rng.IntN(frames[i])
			last = first + 1
		}
		for x.frame = first; x.frame < last; x.frame++ {
			all = append(all, x)
		}
	}
	c.forEachClient("ends", len(all), func(l *cabledClient, i int) {
		err := c.endCall(l, all[i])
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tally.count(err, "%v, ended by %s after %d frames", all[i].cancelCall, all[i].end, all[i].frame)
	})
	c.tally.report(c.t, "calls that were ended, "+c.backend, fmt.Sprintf("(%d complete before; %d errors named the mappings that remained)", c.completed, c.reported))
}

// forEachClient calls do for the numbers below n, on all clients in parallel.
func (c *cancelTest) forEachClient(what string, n int, do func(l *cabledClient, i int)) {
	var next atomic.Int32
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, l := range c.clients {
		wg.Go(func() {
			c.t.Run(fmt.Sprintf("%s, lane %d", what, i), func(t *testing.T) {
				l.agent = start(t, l.host)
				for k := int(next.Add(1)) - 1; k < n; k = int(next.Add(1)) - 1 {
					do(l, k)
				}
			})
		})
	}
}

// prepare creates the Forwarder and, if necessary, the mapping for the call.
func (c *cancelTest) prepare(l *cabledClient, x *cancelCase) (*remoteForwarder, *mapping) {
	conf := config{Protocols: []string{c.backend}, RequestTimeout: cancelRequestTimeout, Lifetime: cancelLifetime}
	if c.backend == "upnp" {
		conf.UPnPURL = rootDescriptionURL(l.home) // the router responds to only a few searches a second
	}
	x.port = firstPort + uint16(c.ports.Add(1))
	f := l.forwarder(conf)
	f.do(call{Op: "probe", Forwarder: f.n})
	if !x.refreshes {
		return f, nil
	}
	return f, f.enable(x.transport(x.port))
}

// beginCall makes the agent begin the call.
func (x *cancelCase) beginCall(f *remoteForwarder, m *mapping) (id int) {
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
func (c *cancelTest) measure(l *cabledClient, x cancelCase) (frames int) {
	const uncut = 1 << 20
	f, m := c.prepare(l, &x)
	l.cable.CutAfter(uncut)
	got := l.await(x.beginCall(f, m))
	frames = l.cable.Plug()
	if got.Failure != nil {
		l.t.Errorf("%v by %s over a good cable: %s", x.cancelCall, c.backend, failureText(got.Failure))
	}
	f.do(call{Op: "shutdown", Forwarder: f.n, Within: maxWait})
	if x.op == "listen" {
		l.do(call{Op: "close listener"})
	}
	return frames
}

// endCall ends a call at a frame and returns an error if the state afterwards is wrong.
func (c *cancelTest) endCall(l *cabledClient, x cancelCase) error {
	before := rulesForHost(l.t, l.home, l.host, 0)
	f, m := c.prepare(l, &x)
	l.cable.CutAfter(x.frame)
	id := x.beginCall(f, m)
	select {
	case <-l.cable.Severed():
	case <-time.After(cutTimeout): // a call may have one frame less
		c.mu.Lock()
		c.completed++
		c.mu.Unlock()
	}
	end := call{Op: x.end, Forwarder: f.n, Cancel: id}
	if m != nil {
		end.Mapping = m.n
	}
	endID := l.begin(end)
	l.cable.Plug()
	got, endResult := l.await(id), l.await(endID)
	newRules := func() []string {
		return slices.DeleteFunc(rulesForHost(l.t, l.home, l.host, 0), func(r string) bool { return slices.Contains(before, r) })
	}
	var err error
	if x.end == byContext {
		err = c.waitConsistent(f, m, got, x, newRules)
	} else {
		err = c.checkNothingLeft(endResult.Failure, x, newRules())
	}
	shutdown := f.try(call{Op: "shutdown", Forwarder: f.n, Within: maxWait})
	if x.op == "listen" && x.end != byListener && x.end != byListenerMapping {
		l.do(call{Op: "close listener"})
	}
	if x.end != byForwarder {
		err = errors.Join(err, shutdown.Failure.err()) // the error of Close named what the Forwarder left
	}
	if rules := newRules(); err == nil && x.end != byForwarder && len(rules) > 0 {
		err = fmt.Errorf("after Shutdown the router has %q", rules)
	}
	return err
}

// waitConsistent waits until the router has the mappings that the handle reports.
func (c *cancelTest) waitConsistent(f *remoteForwarder, m *mapping, got result, x cancelCase, newRules func() []string) error {
	switch {
	case x.op == "enable" && got.Failure == nil:
		m, _ = f.toMapping(got)
	case x.op == "listen":
		m = &mapping{f: f, n: got.Mapping, state: got.State}
	}
	var want, found []string
	if eventually(maxWait/2, func() bool {
		want, found = nil, nil
		if m != nil {
			for _, g := range m.fetchState().Grants {
				want = append(want, fmt.Sprintf("%v %d to %d", g.Protocol, g.External.Port(), g.Internal.Port()))
			}
		}
		for _, rule := range newRules() {
			e := entryPattern.FindStringSubmatch(rule)
			if e == nil {
				f.t.Fatalf("a rule that is not an entry: %s", rule)
			}
			p, _ := strconv.ParseUint(e[1], 16, 8)
			found = append(found, fmt.Sprintf("%v %s to %s", backends.Protocol(p), e[2], e[3]))
		}
		slices.Sort(want)
		slices.Sort(found)
		return slices.Equal(want, found)
	}) {
		return nil
	}
	return fmt.Errorf("the router has %q, the handle reports %q", found, want)
}

// checkNothingLeft checks that Close has deleted all rules, or that its error names the
// remaining rules.
func (c *cancelTest) checkNothingLeft(failure *failure, x cancelCase, remaining []string) error {
	if failure == nil {
		if len(remaining) > 0 {
			return fmt.Errorf("%s returned without an error, but the router has %q", x.end, remaining)
		}
		return nil
	}
	for _, rule := range remaining {
		if !strings.Contains(failure.Text, strconv.Itoa(internalPort(rule))) {
			return fmt.Errorf("the error of %s does not name %q: %w", x.end, rule, failure)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reported++
	return nil
}
