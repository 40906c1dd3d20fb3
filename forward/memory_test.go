package forward_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	external = netip.MustParseAddr("45.45.45.1")
	here     = netip.MustParseAddr("192.0.2.10")
)

// key is what the gateway in memory tells mappings apart by: the internal port, and for
// UPnP the external one.
type key struct {
	protocol backends.Protocol
	port     uint16
}

// memory is a backend and its gateway, in memory: virtual time passes for it.
type memory struct {
	name string

	mu       sync.Mutex
	external netip.Addr
	table    map[key]backends.Mapping
	taken    map[uint16]bool // by other hosts, for any protocol
	limit    time.Duration   // of what is granted; 0: none
	log      []string        // "map tcp 80→80", …
	at       []time.Time     // of log
	changes  chan backends.Change

	// fail, where set, decides about a call before the gateway does.
	fail func(op string, p backends.Protocol, wish uint16) error
	// block, where set, makes calls wait for their context.
	block bool
	// queues makes calls wait before they are sent, and not for the answer.
	queues bool
	// reserved makes the gateway give this port for UDP, whatever the wish.
	reserved uint16
}

func newMemory() *memory {
	return &memory{
		name: "memory", external: external,
		table: map[key]backends.Mapping{}, taken: map[uint16]bool{},
		changes: make(chan backends.Change, 8),
	}
}

// forwarder makes a Forwarder over backends in memory.
func forwarder(t *testing.T, config forward.Config, ms ...*memory) *forward.Forwarder {
	t.Helper()
	for _, m := range ms {
		config.Backends = append(config.Backends, m)
	}
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (m *memory) String() string { return m.name }
func (m *memory) Close() error   { return nil }

func (m *memory) Supports(r backends.Request) error {
	if r.Remote.IsValid() {
		return fmt.Errorf("%s: %w: no peers", m.name, backends.ErrUnsupported)
	}
	return r.Check()
}

func (m *memory) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	if err := m.begin(ctx, "address", 0, 0); err != nil {
		return netip.Addr{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.external, nil
}

// begin records a call and lets it fail.
func (m *memory) begin(ctx context.Context, op string, p backends.Protocol, wish uint16) error {
	m.mu.Lock()
	m.log = append(m.log, fmt.Sprintf("%s %v %d", op, p, wish))
	m.at = append(m.at, time.Now())
	block, fail := m.block, m.fail
	m.mu.Unlock()
	if block {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if fail != nil {
		if err := fail(op, p, wish); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

func (m *memory) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return m.grant(ctx, "map", r)
}

func (m *memory) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.External = old.External
	return m.grant(ctx, "renew", r)
}

func (m *memory) grant(ctx context.Context, op string, r backends.Request) (backends.Mapping, error) {
	wish, sent := r.External.Port(), time.Now()
	if err := m.begin(ctx, op, r.Protocol, wish); err != nil {
		return backends.Mapping{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.queues {
		sent = time.Now()
	}
	port := wish
	for m.taken[port] {
		port++
	}
	if m.reserved != 0 && r.Protocol == backends.UDP {
		port = m.reserved
	}
	if r.Exact && port != wish {
		return backends.Mapping{}, fmt.Errorf("%s: %w", m.name, backends.ErrConflict)
	}
	g := backends.Mapping{
		Backend: m.name, Gateway: netip.MustParseAddrPort("192.0.2.1:5351"),
		Protocol: r.Protocol, Internal: netip.AddrPortFrom(here, r.Internal.Port()),
		External: netip.AddrPortFrom(m.external, port), Description: r.Description,
		Lifetime: r.Lifetime, Granted: sent,
	}
	if m.limit != 0 {
		g.Lifetime = min(g.Lifetime, m.limit)
	}
	m.table[m.keyOf(g)] = g
	return g, nil
}

func (m *memory) Unmap(ctx context.Context, g backends.Mapping) error {
	if err := m.begin(ctx, "unmap", g.Protocol, g.External.Port()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.table, m.keyOf(g))
	return nil
}

func (m *memory) keyOf(g backends.Mapping) key {
	if m.name == upnp.Name {
		return key{g.Protocol, g.External.Port()}
	}
	return key{g.Protocol, g.Internal.Port()}
}

func (m *memory) Watch(ctx context.Context, notify func(backends.Change)) error {
	for {
		select {
		case c := <-m.changes:
			notify(c)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// restart makes the gateway forget everything, and say so.
func (m *memory) restart() {
	m.mu.Lock()
	m.table = map[key]backends.Mapping{}
	m.mu.Unlock()
	m.changes <- backends.Change{Kind: backends.Restarted, Reason: "test"}
}

// live returns what the gateway forwards now.
func (m *memory) live() []backends.Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []backends.Mapping
	for _, g := range m.table {
		if at := g.Expires(); at.IsZero() || time.Now().Before(at) {
			out = append(out, g)
		}
	}
	return out
}

// calls returns what was asked since the last call of calls.
func (m *memory) calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	log := m.log
	m.log, m.at = nil, nil
	return log
}

// set changes the gateway under its lock.
func (m *memory) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}
