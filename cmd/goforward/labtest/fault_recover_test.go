package labtest

import (
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// recover wants everything to work again.
func (c *cuts) recover(exchange string, batch []*attempt) {
	c.t.Helper()
	for _, a := range batch {
		err := c.recovers(exchange, a)
		c.tally.count(err, "cut after %d frames (%v)", a.cut, a.got.Failure.err())
	}
}

var errNotGone = errors.New("closed without an error, and it is still there")

func (c *cuts) recovers(exchange string, a *attempt) error {
	c.t.Helper()
	if exchange == "Close" {
		if a.got.Failure == nil && len(rulesTo(c.t, a.home, a.host, a.echo.Addr.Port())) > 0 {
			return errNotGone
		}
		// What could not be closed is left to its lifetime. Another works.
		a.echo = a.host.Echo(c.t, "udp", fmt.Sprintf(":%d", another+a.echo.Addr.Port()))
		a.m = nil
	}
	if exchange == "Enable" && a.got.Failure == nil {
		a.m, _ = a.f.enabled(a.got)
	}
	if a.m == nil {
		// It is not tried once only: the router may still be busy with what was cut.
		a.m = a.f.enable(a.option(), background)
	}
	return a.arrives(c)
}

// arrives wants bytes to arrive, soon after the mapping is renewed at the latest.
func (a *attempt) arrives(c *cuts) error {
	c.t.Helper()
	var s state
	if eventually(cutLease+patience, func() bool {
		s = a.m.now()
		return s.External.IsValid() && answered(c.t, a.home.Wan, a.echo, s.External)
	}) {
		return nil
	}
	return fmt.Errorf("no bytes arrive at %v: %v", s.External, why(s.Failure))
}

// clear closes what is held, and wants nothing of it to stay.
func (c *cuts) clear(batch []*attempt) {
	c.t.Helper()
	stands := map[*attempt]bool{} // what is not granted may just be so, and stay
	for _, a := range batch {
		if a.m != nil {
			stands[a] = a.m.now().External.IsValid()
			a.id = a.begin(call{Op: "close mapping", Mapping: a.m.n})
		}
	}
	for _, a := range batch {
		if a.m == nil {
			continue
		}
		got := a.await(a.id)
		if got.Failure != nil { // noneLeft sees to it
			c.told++
			c.t.Logf("%s by %s, cut after %d frames, and plugged in again: close: %v", a.exchange, c.backend, a.cut, got.Failure)
		} else if rules := rulesTo(c.t, a.home, a.host, a.echo.Addr.Port()); stands[a] && len(rules) > 0 {
			c.t.Errorf("%s by %s, cut after %d frames: closed, but still there: %q", a.exchange, c.backend, a.cut, rules)
		}
		a.f.close()
	}
}

// noneLeft waits for the lifetimes of what nobody could take away. By PCP, the
// library also asks for other ports, for a minute, to learn how the router
// treats secrets.
func (c *cuts) noneLeft(home *lab.HomeNet) {
	c.t.Helper()
	left := func() int {
		if allFaults {
			return len(entries(c.t, home))
		}
		return len(ours(entries(c.t, home)))
	}
	c.t.Logf("%d entries are left to their lifetime, %d of them told by a Close over a good cable", left(), c.told)
	within := cutLease + patience
	if allFaults {
		within += time.Minute
	}
	if !eventually(within, func() bool { return left() == 0 }) {
		c.t.Errorf("entries outlive their lifetime: %q", entries(c.t, home))
	}
}
