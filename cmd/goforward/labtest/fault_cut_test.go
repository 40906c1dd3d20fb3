package labtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/internal/testseed"
)

// The ports that the tests request.
const (
	firstPort, lastPort = 10_000, 11_999
	replacementOffset   = 1000 // added to the port of a mapping that could not be closed
)

// cutLease is the lifetime of mappings that a cut may leave behind.
const cutLease = 10 * time.Second

// TestFaultCut cuts the cable to the router after each frame of each exchange and plugs
// it in again. No call hangs, and no mapping is lost permanently.
func TestFaultCut(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		for name, restarts := range map[string]bool{"plugged in again": false, "and the router restarts": true} {
			t.Run(backend+", "+name, func(t *testing.T) {
				t.Parallel()
				for _, exchange := range exchanges {
					lab.Scenario(t, fmt.Sprintf("fault: cut after every frame of %s, %s, %s", exchange, name, backend))
				}
				testCut(t, backend, restarts)
			})
		}
	}
}

func testCut(t *testing.T, backend string, restarts bool) {
	c := newCutTest(t, backend, restarts)
	for _, exchange := range exchanges {
		c.testExchange(exchange)
	}
	for _, home := range c.homes {
		c.waitRulesExpire(home)
	}
	for _, l := range c.clients {
		l.waitForGoroutines(l.idleGoroutines)
	}
}

var exchanges = []string{"Enable", "Refresh", "Close"}

// cutTest tests one backend.
type cutTest struct {
	t        *testing.T
	backend  string
	homes    []*lab.HomeNet
	clients  []*cabledClient // one cut at a time for each client
	restarts bool            // the router restarts at the cut and loses its state
	rng      *rand.Rand
	port     uint16
	reported int // Close calls that returned an error

	// The fields below are for the current exchange.
	frames, next, stride, failures int
	tally                          tally
}

// attempt is one exchange that is cut.
type attempt struct {
	*cabledClient
	f        *remoteForwarder
	m        *mapping
	echo     lab.Echo
	exchange string
	cut      int // the number of frames that pass before the cut
	id       int // the number of the call
	got      result
}

// newCutTest creates enough clients for the few frames of NAT-PMP and PCP. UPnP has many
// frames, but this router responds to at most twenty searches a second, and many clients
// that search at once keep it from responding to any.
func newCutTest(t *testing.T, backend string, restarts bool) *cutTest {
	t.Helper()
	c := &cutTest{t: t, backend: backend, restarts: restarts, rng: rand.New(rand.NewPCG(testseed.Of(t), 0))}
	homes, each := 1, 7
	if backend == "upnp" {
		homes, each = 2, 3
	}
	for range homes {
		home := lab.Home(t, lab.Router{DaemonUptime: true})
		c.homes = append(c.homes, home)
		c.clients = append(c.clients, newCabledClients(t, home, each)...)
	}
	return c
}

// cutTimeout is the timeout of the calls that are cut.
const cutTimeout = 2 * time.Second

// testExchange tests an exchange with later and later cuts, until it completes before the
// cut.
func (c *cutTest) testExchange(exchange string) {
	c.t.Helper()
	c.tally, c.failures, c.next, c.stride = tally{}, 0, 0, 1
	c.frames = c.measure(exchange)
	if c.frames > fewFrames && !allFaults {
		c.stride = shortFormStride
		c.next = c.rng.IntN(c.stride)
	}
	for batch := c.nextBatch(exchange); len(batch) > 0; batch = c.nextBatch(exchange) {
		c.testBatch(exchange, batch)
	}
	what := exchange + " by " + c.backend
	if c.restarts {
		what += ", and a restart"
	}
	c.tally.report(c.t, what, fmt.Sprintf("(%d frames; %d calls returned an error)", c.frames, c.failures))
}

// If an exchange has more than fewFrames frames, the short form tests one frame in
// shortFormStride. The seed selects the first one.
const (
	fewFrames       = 8
	shortFormStride = 6
)

// searchFrames is the approximate number of frames of a search.
const searchFrames = 16

// nextBatch returns one attempt for each client, as long as there are frames.
func (c *cutTest) nextBatch(exchange string) (batch []*attempt) {
	for _, l := range c.clients {
		if c.next > c.frames {
			break
		}
		batch = append(batch, &attempt{cabledClient: l, cut: c.next, exchange: exchange})
		c.next += c.stride
	}
	return batch
}

// measure counts the frames of an exchange that is not cut.
func (c *cutTest) measure(exchange string) (frames int) {
	c.t.Helper()
	const uncut = 1 << 20
	a := &attempt{cabledClient: c.clients[0], cut: uncut, exchange: exchange}
	c.prepare(a)
	if exchange != "Enable" {
		c.enable([]*attempt{a})
	}
	a.cable.CutAfter(uncut)
	a.beginExchange(exchange)
	if a.got = a.await(a.id); a.got.Failure != nil {
		c.t.Fatalf("%s by %s over a good cable: %s", exchange, c.backend, failureText(a.got.Failure))
	}
	frames = a.cable.Plug()
	if exchange == "Enable" {
		a.m, _ = a.f.toMapping(a.got)
	}
	c.closeBatch([]*attempt{a})
	return frames
}

// testBatch cuts a batch of exchanges, repairs the cables, and checks the state
// afterwards.
func (c *cutTest) testBatch(exchange string, batch []*attempt) {
	c.t.Helper()
	for _, a := range batch {
		c.prepare(a)
	}
	if exchange != "Enable" {
		c.enable(batch)
	}
	for _, a := range batch {
		a.cable.CutAfter(a.cut)
		a.beginExchange(exchange)
	}
	if c.restarts {
		c.restart(batch)
	}
	c.finish(batch)
	c.checkRecoveries(exchange, batch)
	c.closeBatch(batch)
}

func (c *cutTest) prepare(a *attempt) {
	c.t.Helper()
	c.port++
	conf := config{Protocols: []string{c.backend}, DiscoveryTimeout: cutTimeout, RequestTimeout: cutTimeout, Lifetime: cutLease}
	if c.backend == "upnp" && (a.exchange != "Enable" || a.cut > searchFrames) {
		// Other attempts cut the search often enough.
		conf.UPnPURL = rootDescriptionURL(a.home)
	}
	a.f = a.forwarder(conf)
	a.echo = a.host.Echo(c.t, "udp", fmt.Sprintf(":%d", firstPort+c.port))
}

func (a *attempt) option() option { return udp(a.echo.Addr.Port()) }

// enable creates mappings over good cables.
func (c *cutTest) enable(batch []*attempt) {
	c.t.Helper()
	for _, a := range batch {
		a.id = a.f.beginEnable(a.option())
	}
	for _, a := range batch {
		var err error
		if a.m, err = a.f.toMapping(a.await(a.id)); err != nil {
			c.t.Fatalf("%s: not granted: %v", c.backend, err)
		}
	}
}

func (a *attempt) beginExchange(exchange string) {
	switch exchange {
	case "Enable":
		a.id = a.f.beginEnable(a.option())
	case "Refresh":
		a.id = a.begin(call{Op: "refresh", Mapping: a.m.n})
	case "Close":
		a.id = a.begin(call{Op: "close mapping", Mapping: a.m.n})
	}
}

// restart restarts the router while the calls wait, and plugs the cables in again.
func (c *cutTest) restart(batch []*attempt) {
	c.t.Helper()
	timeout := time.After(time.Second) // some calls complete before the cut
	for _, a := range batch {
		select {
		case <-a.cable.Severed():
		case <-timeout:
			timeout = nil
		}
		if timeout == nil {
			break
		}
	}
	for _, home := range c.homes {
		home.Daemon.Restart(c.t)
	}
	for _, a := range batch {
		a.cable.Plug()
	}
}

// finish waits for the calls, which must return within their timeout, and plugs the
// cables in again.
func (c *cutTest) finish(batch []*attempt) {
	c.t.Helper()
	const late = 3 * time.Second // how long a machine may pause
	for _, a := range batch {
		a.got = a.await(a.id)
		if a.got.Took > cutTimeout+late {
			c.t.Errorf("%s by %s, cut after %d frames, took %v", a.exchange, c.backend, a.cut, a.got.Took)
		}
		if a.got.Failure != nil {
			c.failures++
		}
		a.cable.Plug()
	}
}

// checkRecoveries checks that everything works again.
func (c *cutTest) checkRecoveries(exchange string, batch []*attempt) {
	c.t.Helper()
	for _, a := range batch {
		err := c.checkRecovery(exchange, a)
		c.tally.count(err, "cut after %d frames (%v)", a.cut, a.got.Failure.err())
	}
}

var errStillMapped = errors.New("closed without an error, but the router still has the entry")

func (c *cutTest) checkRecovery(exchange string, a *attempt) error {
	c.t.Helper()
	if exchange == "Close" {
		if a.got.Failure == nil && len(rulesForHost(c.t, a.home, a.host, a.echo.Addr.Port())) > 0 {
			return errStillMapped
		}
		// A mapping that could not be closed stays until its lifetime ends. A mapping of
		// another port must work.
		a.echo = a.host.Echo(c.t, "udp", fmt.Sprintf(":%d", replacementOffset+a.echo.Addr.Port()))
		a.m = nil
	}
	if exchange == "Enable" && a.got.Failure == nil {
		a.m, _ = a.f.toMapping(a.got)
	}
	if a.m == nil {
		// One attempt may not suffice, because the router may still be busy with the
		// exchange that was cut.
		a.m = a.f.enable(a.option(), background)
	}
	return a.checkReachable(c)
}

// checkReachable checks that bytes arrive, at the latest soon after the mapping is
// renewed.
func (a *attempt) checkReachable(c *cutTest) error {
	c.t.Helper()
	var s state
	if eventually(cutLease+maxWait, func() bool {
		s = a.m.fetchState()
		return s.External.IsValid() && isReachable(c.t, a.home.Wan, a.echo, s.External)
	}) {
		return nil
	}
	return fmt.Errorf("no bytes arrive at %v: %v", s.External, failureText(s.Failure))
}

// closeBatch closes the mappings and checks that the router deletes them.
func (c *cutTest) closeBatch(batch []*attempt) {
	c.t.Helper()
	granted := map[*attempt]bool{} // a mapping that is not granted yet may be granted during Close, and stay
	for _, a := range batch {
		if a.m != nil {
			granted[a] = a.m.fetchState().External.IsValid()
			a.id = a.begin(call{Op: "close mapping", Mapping: a.m.n})
		}
	}
	for _, a := range batch {
		if a.m == nil {
			continue
		}
		got := a.await(a.id)
		if got.Failure != nil { // waitRulesExpire checks this entry
			c.reported++
			c.t.Logf("%s by %s, cut after %d frames and plugged in again: close: %v", a.exchange, c.backend, a.cut, got.Failure)
		} else if rules := rulesForHost(c.t, a.home, a.host, a.echo.Addr.Port()); granted[a] && len(rules) > 0 {
			c.t.Errorf("%s by %s, cut after %d frames: closed, but the router still has %q", a.exchange, c.backend, a.cut, rules)
		}
		a.f.close()
	}
}

// waitRulesExpire waits until the lifetimes of the entries that could not be deleted end.
// With PCP, the library also maps other ports for a minute, to determine how the router
// handles nonces.
func (c *cutTest) waitRulesExpire(home *lab.HomeNet) {
	c.t.Helper()
	remaining := func() int {
		if allFaults {
			return len(listRules(c.t, home))
		}
		return len(requestedRules(listRules(c.t, home)))
	}
	c.t.Logf("%d entries remain until their lifetimes end; Close over a good cable returned %d errors", remaining(), c.reported)
	within := cutLease + maxWait
	if allFaults {
		within += time.Minute
	}
	if !eventually(within, func() bool { return remaining() == 0 }) {
		c.t.Errorf("entries outlive their lifetime: %q", listRules(c.t, home))
	}
}
