package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/lab"
)

// table is a UPnP table that the candidates list.
type table struct {
	key, title string
	size       int
	protocols  []string      // the transport protocols of the entries, repeated
	delay      time.Duration // of the replies of gatewaytest; 0: the table of a real router
}

const (
	slowReply      = 5 * time.Millisecond
	routerHTTPPort = 5000 // of the daemon in the lab
)

var tables = []table{
	{keyTable100, "A real router: list a UPnP table of 100 entries, all of them UDP", 100, []string{"UDP"}, 0},
	{keyTableMixed, "A real router: list a UPnP table of 100 entries, TCP and UDP in turns", 100, []string{"TCP", "UDP"}, 0},
	{keyTable140, "A real router: list a UPnP table of 140 entries", 140, []string{"UDP"}, 0},
	{keyTableSlow, "gatewaytest, replies after 5 ms: list a UPnP table of 1 000 entries", tableSize, nil, slowReply},
}

// listTask is the argument of lister.
type listTask struct {
	Description string // the URL of the device description
	Size        int
	Protocols   []string
	Orders      [][]string // the candidates of each round, in their order
}

// listed is a sample of lister.
type listed struct {
	Candidate string
	Took      time.Duration
	Err       string
}

// lister creates a table on a router, and lists it with each candidate.
var lister = lab.Func("lister", func(p *lab.Proc) {
	var task listTask
	p.Args(&task)
	runs, err := listers(nil, task.Description)
	if err != nil {
		p.Fatal(err)
	}
	defer runs.close()
	for i := range task.Size {
		port, protocol := uint16(20000+i), task.Protocols[i%len(task.Protocols)]
		if err := runs.goupnp.AddPortMapping("", port, protocol, port, p.Addr().String(), true, "bench", uint32(lifetime.Seconds())); err != nil {
			p.Fatal(err)
		}
	}
	for _, order := range task.Orders {
		for _, name := range order {
			p.Send(runs.take(name, task.Size))
		}
	}
})

// tableClients are the candidates, which have already found the gateway.
type tableClients struct {
	forwarder *forward.Forwarder
	goupnp    *internetgateway2.WANIPConnection2
}

func listers(config *forward.Config, description string) (c tableClients, err error) {
	location, err := url.Parse(description)
	if err != nil {
		return c, err
	}
	clients, err := internetgateway2.NewWANIPConnection2ClientsByURLCtx(context.Background(), location)
	if err != nil || len(clients) == 0 {
		return c, fmt.Errorf("%d clients: %w", len(clients), err)
	}
	c.goupnp = clients[0]
	if c.forwarder, err = forward.New(config); err != nil {
		return c, err
	}
	_, err = c.forwarder.Mappings(context.Background()) // finds the device
	return c, err
}

func (c tableClients) close() { _ = c.forwarder.Close() }

// take lists the table once.
func (c tableClients) take(candidate string, size int) listed {
	count := c.countByIndex
	if candidate == goforwardName {
		count = c.countMappings
	}
	begin := time.Now()
	n, err := count()
	s := listed{Candidate: candidate, Took: time.Since(begin)}
	if err != nil || n != size {
		s.Err = fmt.Sprintf("%d entries, want %d: %v", n, size, err)
	}
	return s
}

func (c tableClients) countMappings() (int, error) {
	entries, err := c.forwarder.Mappings(context.Background())
	return len(entries), err
}

// countByIndex requests one entry after another until the table ends.
func (c tableClients) countByIndex() (int, error) {
	for i := uint16(0); ; i++ {
		_, _, _, _, _, _, _, _, err := c.goupnp.GetGenericPortMappingEntry(i)
		if err != nil {
			if errors.As(err, new(*soap.SOAPFaultError)) {
				err = nil
			}
			return int(i), err
		}
	}
}

// tables measures how long the candidates need to list tables.
func (b *bench) tables(t *testing.T) {
	for _, w := range tables {
		t.Run(w.key, func(t *testing.T) {
			rounds := b.Rounds * 3
			if w.delay > 0 {
				rounds = b.Rounds // a round takes several seconds
			}
			var orders [][]string
			for range rounds {
				orders = append(orders, b.shuffled([]string{goforwardName, goupnpName}))
			}
			next := w.onGateway
			if w.delay == 0 {
				next = w.onRouter
			}
			take, done := next(t, orders)
			defer done()
			for round, order := range orders {
				for i, name := range order {
					got := take(name)
					if got.Err != "" {
						t.Errorf("%s: %s", name, got.Err)
					}
					b.add(Sample{Scenario: w.key, Candidate: name, Round: round, Order: i, Took: got.Took, Err: got.Err})
				}
			}
		})
	}
}

// onRouter starts a real router, and a program that creates the table and lists it.
func (w table) onRouter(t *testing.T, orders [][]string) (take func(string) listed, done func()) {
	home := lab.Home(t, lab.Router{Refuse5351: true})
	description := fmt.Sprintf("http://%v:%d/rootDesc.xml", home.Gateway, routerHTTPPort)
	p := home.Lan.Start(t, lister, listTask{description, w.size, w.protocols, orders})
	return func(string) (got listed) {
		p.Expect(&got)
		return got
	}, p.Wait
}

// onGateway starts gatewaytest with the table.
func (w table) onGateway(t *testing.T, _ [][]string) (take func(string) listed, done func()) {
	gw := fullGateway(t, quirks.UPnP{Actions: quirks.Actions{Delay: map[string]time.Duration{"": w.delay}}})
	runs, err := listers(&forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}}, gw.UPnP().DescriptionURL())
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) listed { return runs.take(name, w.size) }, runs.close
}
