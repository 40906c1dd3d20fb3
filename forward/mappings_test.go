package forward_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// listing is a gateway in memory that lists its table and admits single peers.
type listing struct {
	*memory
	// anonymous makes the table leave out which peer an entry admits, as miniupnpd's
	// does.
	anonymous bool
	// reading, if set, is called after each row.
	reading func(context.Context) error
}

func (l *listing) Supports(r backends.Request) error { return r.Check() }

func (l *listing) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return l.forPeer(r, func() (backends.Mapping, error) { return l.memory.Map(ctx, r) })
}

func (l *listing) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return l.forPeer(r, func() (backends.Mapping, error) { return l.memory.Renew(ctx, m, r) })
}

func (l *listing) forPeer(r backends.Request, grant func() (backends.Mapping, error)) (backends.Mapping, error) {
	m, err := grant()
	if err != nil {
		return m, err
	}
	m.Remote = r.Remote
	row := m
	row.Remote = netip.AddrPortFrom(m.Remote.Addr().Unmap(), m.Remote.Port())
	if l.anonymous {
		row.Remote = netip.AddrPort{}
	}
	l.set(func() { l.table[key{m.Protocol, m.Internal.Port()}] = row })
	return m, nil
}

func (l *listing) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for _, m := range l.live() {
			if !yield(backends.Entry{Mapping: m, Enabled: true}, nil) {
				return
			}
			if l.reading == nil {
				continue
			}
			if err := l.reading(ctx); err != nil {
				yield(backends.Entry{}, err)
				return
			}
		}
	}
}

func (l *listing) EntryAt(_ context.Context, i int) (backends.Entry, error) {
	live := l.live()
	if i >= len(live) {
		return backends.Entry{}, fmt.Errorf("listing: %w", backends.ErrInvalid)
	}
	return backends.Entry{Mapping: live[i], Enabled: true}, nil
}

func forwarderOver(t *testing.T, b backends.Backend) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Several handles of one mapping are one entry of Mappings, and it is marked as ours.
func TestMappingsListsOnce(t *testing.T) {
	one := func(peer string) func(*testing.T, *forward.Forwarder) {
		return func(t *testing.T, f *forward.Forwarder) {
			t.Helper()
			if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.From(netip.MustParseAddrPort(peer))); err != nil {
				t.Fatal(err)
			}
		}
	}
	twice := func(t *testing.T, f *forward.Forwarder) {
		t.Helper()
		for range 2 {
			if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		backend backends.Backend
		enable  func(*testing.T, *forward.Forwarder)
	}{
		"enabled twice, no table":   {newMemory(), twice},
		"enabled twice, in a table": {&listing{memory: newMemory()}, twice},
		"enabled and listened": {newMemory(), func(t *testing.T, f *forward.Forwarder) {
			t.Helper()
			ln, err := f.Listen(t.Context(), "tcp4", ":0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = ln.Close() })
			if err := ln.Mapping().Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Enable(t.Context(), forward.TCP(ln.Mapping().Internal().Port())); err != nil {
				t.Fatal(err)
			}
		}},
		"for one peer, which the table leaves out":   {&listing{memory: newMemory(), anonymous: true}, one("45.45.45.9:0")},
		"for one peer, in the form mapped into IPv6": {&listing{memory: newMemory()}, one("[::ffff:45.45.45.9]:0")},
	} {
		t.Run(name, func(t *testing.T) {
			f := forwarderOver(t, test.backend)
			test.enable(t, f)
			entries, err := f.Mappings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 || !entries[0].Ours {
				t.Errorf("Mappings lists %d entries of one mapping; want one that is ours:", len(entries))
				for _, e := range entries {
					t.Logf("ours %v: %v → %v", e.Ours, e.Mapping.External, e.Mapping.Internal)
				}
			}
			if e, err := f.MappingAt(t.Context(), 0); err != nil || !e.Ours {
				t.Errorf("MappingAt(0): ours %v, %v; want the mapping, ours", e.Ours, err)
			}
			if e, err := f.MappingAt(t.Context(), 1); !errors.Is(err, forward.ErrNoMapping) {
				t.Errorf("MappingAt(1): %v, %v; want ErrNoMapping", e.Mapping.External, err)
			}
		})
	}
}

// A context that ends makes Mappings fail, even if there are entries to return.
func TestMappingsContextEnds(t *testing.T) {
	for name, b := range map[string]func() backends.Backend{
		"before, no table":   func() backends.Backend { return newMemory() },
		"before, of a table": func() backends.Backend { return &listing{memory: newMemory()} },
		"meanwhile": func() backends.Backend {
			return &listing{memory: newMemory(), reading: func(ctx context.Context) error {
				<-ctx.Done()
				return context.Cause(ctx)
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := forwarderOver(t, b())
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				ctx, want := ended(), context.Canceled
				if name == "meanwhile" {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					want = context.DeadlineExceeded
				}
				if entries, err := f.Mappings(ctx); !errors.Is(err, want) {
					t.Errorf("Mappings: %d entries, %v; want %v", len(entries), err, want)
				}
			})
		})
	}
}
