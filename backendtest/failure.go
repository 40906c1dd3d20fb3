package backendtest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
)

// testTimeout ends a test that waits for an event that does not occur. No test
// result depends on its value.
const testTimeout = 30 * time.Second

// testWildcards checks that port 0 and protocol 0 are never sent: in some protocols
// they mean all ports and all protocols.
func testWildcards(t *testing.T, f Fixture) {
	requireSupport(t, f.Requests != nil, "count requests")
	existing := mustMap(t, f, request(backends.TCP, 6881, 0))
	before := f.Requests(t)
	for name, call := range map[string]func() error{
		"Map port 0":         func() error { _, err := f.Backend.Map(t.Context(), request(backends.TCP, 0, 0)); return err },
		"Map protocol 0":     func() error { _, err := f.Backend.Map(t.Context(), request(0, 6881, 0)); return err },
		"Unmap port 0":       func() error { return f.Backend.Unmap(t.Context(), withWildcard(existing, existing.Protocol, 0)) },
		"Unmap protocol 0":   func() error { return f.Backend.Unmap(t.Context(), withWildcard(existing, 0, 6881)) },
		"Renew port 0":       func() error { return renew(t, f, withWildcard(existing, existing.Protocol, 0)) },
		"Renew protocol 0":   func() error { return renew(t, f, withWildcard(existing, 0, 6881)) },
		"Unmap zero mapping": func() error { return f.Backend.Unmap(t.Context(), backends.Mapping{}) },
		"Supports port 0":    func() error { return f.Backend.Supports(request(backends.TCP, 0, 0)) },
		"negative lifetime":  func() error { return mapFor(t, f, -time.Second) },
	} {
		if err := call(); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if after := f.Requests(t); after != before {
		t.Errorf("%d requests reached the gateway", after-before)
	}
	requireTable(t, f, rowOf(existing))
}

func withWildcard(m backends.Mapping, p backends.Protocol, port uint16) backends.Mapping {
	m.Protocol, m.Internal = p, netip.AddrPortFrom(m.Internal.Addr(), port)
	return m
}

func renew(t *testing.T, f Fixture, m backends.Mapping) error {
	_, err := f.Backend.Renew(t.Context(), m, request(m.Protocol, m.Internal.Port(), 0))
	return err
}

func mapFor(t *testing.T, f Fixture, d time.Duration) error {
	r := request(backends.TCP, 6882, 0)
	r.Lifetime = d
	_, err := f.Backend.Map(t.Context(), r)
	return err
}

func testRefusal(t *testing.T, f Fixture) {
	requireSupport(t, f.Refuse != nil, "make the gateway refuse")
	f.Refuse(t)
	m, err := f.Backend.Map(t.Context(), request(backends.TCP, 6881, 0))
	if !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Map: %v, %v; want ErrNotAuthorized", m, err)
	}
	requireTable(t, f)
}

func testSilence(t *testing.T, f Fixture) {
	requireSupport(t, f.Silence != nil, "silence the gateway")
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	f.Silence(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for name, call := range map[string]func() error{
		"ExternalAddr": func() error { _, err := f.Backend.ExternalAddr(ctx); return err },
		"Map":          func() error { _, err := f.Backend.Map(ctx, request(backends.TCP, 6882, 0)); return err },
		"Unmap":        func() error { return f.Backend.Unmap(ctx, m) },
	} {
		err := call()
		if !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want ErrNoReply from the backend's own timeout", name, err)
		}
	}
}

func testDeadline(t *testing.T, f Fixture) {
	requireSupport(t, f.Silence != nil, "silence the gateway")
	f.Silence(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := f.Backend.Map(ctx, request(backends.TCP, 6881, 0)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Map after the caller's deadline: %v, want DeadlineExceeded", err)
	}
}

func testCancelled(t *testing.T, f Fixture) {
	requireSupport(t, f.Requests != nil, "count requests")
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	before := f.Requests(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"ExternalAddr": func() error { _, err := f.Backend.ExternalAddr(ctx); return err },
		"Map":          func() error { _, err := f.Backend.Map(ctx, request(backends.TCP, 6882, 0)); return err },
		"Renew": func() error {
			_, err := f.Backend.Renew(ctx, m, request(backends.TCP, 6881, 0))
			return err
		},
		"Unmap": func() error { return f.Backend.Unmap(ctx, m) },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want Canceled", name, err)
		}
	}
	if after := f.Requests(t); after != before {
		t.Errorf("%d requests reached the gateway", after-before)
	}
}

func testClose(t *testing.T, f Fixture) {
	m := mustMap(t, f, request(backends.TCP, 6881, 0))
	for range 2 {
		if err := f.Backend.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := f.Backend.Map(t.Context(), request(backends.TCP, 6882, 0)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Map after Close: %v, want net.ErrClosed", err)
	}
	if err := f.Backend.Unmap(t.Context(), m); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Unmap after Close: %v, want net.ErrClosed", err)
	}
	requireTable(t, f, rowOf(m))
}

func testCloseDuringCall(t *testing.T, f Fixture) {
	requireSupport(t, f.Silence != nil, "silence the gateway")
	f.Silence(t)
	result := make(chan error, 1)
	go func() {
		_, err := f.Backend.Map(t.Context(), request(backends.TCP, 6881, 0))
		result <- err
	}()
	if err := f.Backend.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case err := <-result:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Map during Close: %v, want net.ErrClosed", err)
		}
	case <-time.After(testTimeout):
		t.Fatal("Map did not return after Close")
	}
}
