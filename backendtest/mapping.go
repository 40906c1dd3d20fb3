package backendtest

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// request returns the request that most tests use.
func request(p backends.Protocol, internal, external uint16) backends.Request {
	return backends.Request{
		Protocol:    p,
		Internal:    netip.AddrPortFrom(netip.Addr{}, internal),
		External:    netip.AddrPortFrom(netip.Addr{}, external),
		Lifetime:    10 * time.Minute,
		Description: "backendtest",
	}
}

// mustMap maps the request, and checks the mapping against the contract and the
// gateway's table.
func mustMap(t *testing.T, f Fixture, r backends.Request) backends.Mapping {
	t.Helper()
	if err := f.Backend.Supports(r); err != nil {
		t.Fatalf("Supports(%+v): %v", r, err)
	}
	before := time.Now()
	m, err := f.Backend.Map(t.Context(), r)
	if err != nil {
		t.Fatalf("Map(%+v): %v", r, err)
	}
	checkMapping(t, f, r, m, before)
	return m
}

func checkMapping(t *testing.T, f Fixture, r backends.Request, m backends.Mapping, before time.Time) {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	switch {
	case m.Backend != f.Backend.String():
		t.Errorf("Backend is %q, want %q", m.Backend, f.Backend)
	case !m.Gateway.IsValid():
		t.Error("no Gateway")
	case m.Protocol != r.Protocol || m.Internal.Port() != r.Internal.Port():
		t.Errorf("mapped %v port %d, requested %v port %d", m.Protocol, m.Internal.Port(), r.Protocol, r.Internal.Port())
	case !m.Internal.Addr().IsValid() || m.Internal.Addr().IsUnspecified():
		t.Errorf("Internal is %v, want this host's address", m.Internal)
	case m.External.Addr() != f.External:
		t.Errorf("External is %v, want address %v", m.External, f.External)
	case m.External.Port() == 0:
		t.Error("external port 0")
	case m.Lifetime <= 0:
		t.Errorf("Lifetime is %v", m.Lifetime)
	case m.Granted.Before(before) || m.Granted.After(time.Now()):
		t.Errorf("Granted is %v, before or after the call", m.Granted)
	}
	if row := rowOf(m); !slices.Contains(f.Table(t), row) {
		t.Errorf("the gateway has %v, want it to include %v", f.Table(t), row)
	}
	if f.Reaches != nil && !f.Reaches(t, m) {
		t.Errorf("no bytes arrive through %v", m.External)
	}
}

func rowOf(m backends.Mapping) Row {
	return Row{m.Protocol, m.External.Port(), m.Internal.Port()}
}

// requireTable checks that the gateway's table has exactly the given rows, in any
// order.
func requireTable(t *testing.T, f Fixture, want ...Row) {
	t.Helper()
	got := f.Table(t)
	missing := slices.DeleteFunc(slices.Clone(want), func(r Row) bool { return slices.Contains(got, r) })
	if len(got) != len(want) || len(missing) > 0 {
		t.Errorf("the gateway has %v, want %v", got, want)
	}
}

func testMap(t *testing.T, f Fixture) {
	tcp := mustMap(t, f, request(backends.TCP, 6881, 0))
	udp := mustMap(t, f, request(backends.UDP, 6881, 0))
	requireTable(t, f, rowOf(tcp), rowOf(udp))
}

func testExternalAddr(t *testing.T, f Fixture) {
	if got, err := f.Backend.ExternalAddr(t.Context()); err != nil || got != f.External {
		t.Errorf("ExternalAddr: %v, %v; want %v", got, err, f.External)
	}
}

func testSuggestedPort(t *testing.T, f Fixture) {
	if m := mustMap(t, f, request(backends.TCP, 6881, 6999)); m.External.Port() != 6999 {
		t.Errorf("port %d, want the suggested 6999", m.External.Port())
	}
}

func testSuggestedPortTaken(t *testing.T, f Fixture) {
	requireSupport(t, f.Occupy != nil, "map a port to another host")
	f.Occupy(t, backends.TCP, 6999)
	m, err := f.Backend.Map(t.Context(), request(backends.TCP, 6881, 6999))
	if errors.Is(err, backends.ErrConflict) {
		return // the protocol leaves the choice of another port to the caller
	}
	if err != nil || m.External.Port() == 6999 {
		t.Errorf("Map with a suggested port that is in use: port %d, %v", m.External.Port(), err)
	}
}

func testExactPort(t *testing.T, f Fixture) {
	r := request(backends.TCP, 6881, 6999)
	r.Exact = true
	if m := mustMap(t, f, r); m.External.Port() != 6999 {
		t.Errorf("port %d, want exactly 6999", m.External.Port())
	}
}

func testExactConflict(t *testing.T, f Fixture) {
	requireSupport(t, f.Occupy != nil, "map a port to another host")
	f.Occupy(t, backends.TCP, 6999)
	before := f.Table(t)
	r := request(backends.TCP, 6881, 6999)
	r.Exact = true
	if m, err := f.Backend.Map(t.Context(), r); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Map: %v, %v; want ErrConflict", m, err)
	}
	requireTable(t, f, before...)
}

func testRenewInPlace(t *testing.T, f Fixture) {
	r := request(backends.UDP, 6881, 6999)
	m := mustMap(t, f, r)
	r.Lifetime = 20 * time.Minute
	before := time.Now()
	renewed, err := f.Backend.Renew(t.Context(), m, r)
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	checkMapping(t, f, r, renewed, before)
	if renewed.External != m.External {
		t.Errorf("renewed as %v, want %v", renewed.External, m.External)
	}
	if renewed.Lifetime <= m.Lifetime {
		t.Errorf("renewed for %v after %v, want a longer lifetime", renewed.Lifetime, m.Lifetime)
	}
	requireTable(t, f, rowOf(m))
}

func testRenewAfterExpiry(t *testing.T, f Fixture) {
	requireSupport(t, f.Pass != nil, "advance the gateway's time")
	r := request(backends.TCP, 6881, 6999)
	r.Lifetime = 5 * time.Second
	m := mustMap(t, f, r)
	f.Pass(t, m.Lifetime+time.Second)
	requireTable(t, f)
	before := time.Now()
	renewed, err := f.Backend.Renew(t.Context(), m, r)
	if err != nil {
		t.Fatalf("Renew: %v", err)
	}
	checkMapping(t, f, r, renewed, before)
	requireTable(t, f, rowOf(renewed))
}

func testUnmapTwice(t *testing.T, f Fixture) {
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	for range 2 {
		if err := f.Backend.Unmap(t.Context(), m); err != nil {
			t.Errorf("Unmap: %v", err)
		}
		requireTable(t, f)
	}
	if f.Reaches != nil && f.Reaches(t, m) {
		t.Error("bytes still arrive after Unmap")
	}
}

func testUnmapOne(t *testing.T, f Fixture) {
	deleted := mustMap(t, f, request(backends.TCP, 6881, 0))
	other := mustMap(t, f, request(backends.TCP, 6882, 0))
	if err := f.Backend.Unmap(t.Context(), deleted); err != nil {
		t.Errorf("Unmap: %v", err)
	}
	requireTable(t, f, rowOf(other))
}

func testConcurrent(t *testing.T, f Fixture) {
	const callers = 20
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		mappings = map[uint16]backends.Mapping{}
	)
	for i := range uint16(callers) {
		wg.Go(func() {
			m, err := f.Backend.Map(t.Context(), request(backends.TCP, 7000+i, 0))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("Map port %d: %v", 7000+i, err)
				return
			}
			if m.Internal.Port() != 7000+i {
				t.Errorf("requested port %d, got %d", 7000+i, m.Internal.Port())
			}
			mappings[m.External.Port()] = m
		})
	}
	wg.Wait()
	var want []Row
	for _, m := range mappings {
		want = append(want, rowOf(m))
	}
	if len(want) != callers {
		t.Errorf("%d external ports for %d mappings", len(want), callers)
	}
	requireTable(t, f, want...)
}
