package forward_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// occupy adds a mapping of another host to the gateway.
func occupy(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol, external uint16, description string) {
	t.Helper()
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: p, Internal: netip.MustParseAddrPort("192.168.77.9:9"),
		External: netip.AddrPortFrom(gw.External(), external), Description: description,
	}); err != nil {
		t.Fatal(err)
	}
}

// listText returns the result of Mappings as text, in the order of the table.
func listText(t *testing.T, f *forward.Forwarder) (out []string) {
	t.Helper()
	entries, err := f.Mappings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line := e.Mapping.Protocol.String() + " " + e.Mapping.External.String() + " " + e.Mapping.Internal.String()
		if e.Ours {
			line += " ours"
		}
		out = append(out, line)
	}
	return out
}

// TestMappingsTable checks that the table of the gateway is listed by UPnP, even if the
// mappings are made with another protocol. Without UPnP, only the mappings of the
// Forwarder are listed.
func TestMappingsTable(t *testing.T) {
	for name, c := range map[string]struct {
		order       []string
		router      gatewaytest.Config
		foreignRows []string
	}{
		"by NAT-PMP":   {nil, gatewaytest.Config{}, []string{"udp 45.45.45.1:9000 192.168.77.9:9"}},
		"by UPnP":      {[]string{"upnp"}, gatewaytest.Config{}, []string{"udp 45.45.45.1:9000 192.168.77.9:9"}},
		"without UPnP": {nil, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := gatewayWithUPnP(t, forward.Config{Protocols: c.order}, c.router)
			occupy(t, gw, backends.UDP, 9000, "other")
			if _, err := f.Enable(t.Context(), forward.Both(8080)); err != nil {
				t.Fatal(err)
			}
			want := append(slices.Clone(c.foreignRows), "tcp 45.45.45.1:8080 127.0.0.1:8080 ours", "udp 45.45.45.1:8080 127.0.0.1:8080 ours")
			got := listText(t, f)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("listed %q, want %q", got, want)
			}
			for i := range want {
				if e, err := f.MappingAt(t.Context(), i); err != nil || !e.Enabled || e.Mapping.Protocol == 0 {
					t.Errorf("entry %d: %+v, %v", i, e, err)
				}
			}
			for _, i := range []int{-1, len(want)} {
				if e, err := f.MappingAt(t.Context(), i); !errors.Is(err, forward.ErrNoMapping) {
					t.Errorf("entry %d: %+v, %v; want ErrNoMapping", i, e, err)
				}
			}
		})
	}
}

// TestMappingsUnlisted checks that a mapping of the Forwarder is listed even if it is not
// in the table of the device.
func TestMappingsUnlisted(t *testing.T) {
	_, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{Unlisted: true}}}})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if got := listText(t, f); len(got) != 1 || got[0] != "tcp 45.45.45.1:8080 127.0.0.1:8080 ours" {
		t.Errorf("listed %q", got)
	}
}

// TestMappingsNoGateway checks the error of Mappings if no gateway replies.
func TestMappingsNoGateway(t *testing.T) {
	f, err := forward.New(&forward.Config{Gateway: netip.MustParseAddrPort("127.0.0.1:9")})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if entries, err := f.Mappings(t.Context()); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Mappings: %v, %v; want ErrNoReply", entries, err)
	}
}

// TestForeign checks which mappings of other hosts Disable and DisableAll select with
// Foreign.
func TestForeign(t *testing.T) {
	config := gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}}
	gw, f := gatewayWithUPnP(t, forward.Config{}, config)
	occupyPorts := func() {
		occupy(t, gw, backends.TCP, 9000, "other")
		occupy(t, gw, backends.UDP, 9000, "other")
		occupy(t, gw, backends.TCP, 9001, "third")
	}
	occupyPorts()
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	const ours = "tcp 45.45.45.1:8080 127.0.0.1:8080 ours"

	// Without Foreign, and without a match, no mapping is deleted.
	for name, sel := range map[string][]forward.Selector{
		"without Foreign": {forward.External(9000)}, "no match": {forward.Foreign(), forward.External(7)},
	} {
		if err := f.Disable(t.Context(), sel...); !errors.Is(err, forward.ErrNoMapping) {
			t.Errorf("%s: Disable: %v, want ErrNoMapping", name, err)
		}
		if n, err := f.DisableAll(t.Context(), sel...); n != 0 || err != nil {
			t.Errorf("%s: DisableAll: %d, %v", name, n, err)
		}
	}
	if err := f.Disable(t.Context(), forward.Foreign()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Foreign alone: %v, want ErrInvalid", err)
	}
	if n, err := f.DisableAll(t.Context(), forward.Foreign()); n != 0 || !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Foreign alone: %d, %v; want ErrInvalid", n, err)
	}
	if got := listText(t, f); len(got) != 4 {
		t.Fatalf("listed %q, want four mappings", got)
	}

	// Disable deletes the one mapping that matches all selectors.
	if err := f.Disable(t.Context(), forward.Foreign(), forward.UDP(9), forward.External(9000)); err != nil {
		t.Fatal(err)
	}
	if got := listText(t, f); len(got) != 3 || slices.Contains(got, "udp 45.45.45.1:9000 192.168.77.9:9") {
		t.Errorf("listed %q", got)
	}
	// DisableAll deletes only the mappings that match all selectors.
	occupyPorts()
	if n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Both(9), forward.Description("other")); n != 2 || err != nil {
		t.Errorf("DisableAll: %d, %v; want 2", n, err)
	}
	if got := listText(t, f); len(got) != 2 || !slices.Contains(got, ours) {
		t.Errorf("listed %q, want the mapping of this Forwarder and one of another host", got)
	}
	// Everything also closes the mappings of the Forwarder.
	if n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything()); n != 2 || err != nil {
		t.Errorf("DisableAll: %d, %v; want 2", n, err)
	}
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("remaining mappings: %v", table)
	}
	if err := f.Disable(t.Context()); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable after DisableAll: %v, want ErrNoMapping", err)
	}
}

// TestForeignRefused checks that a refused deletion of a foreign mapping is reported, and
// does not prevent other deletions.
func TestForeignRefused(t *testing.T) {
	gw, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{})
	occupy(t, gw, backends.TCP, 9000, "other")
	if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once()); err != nil {
		t.Fatal(err)
	}
	n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything())
	if n != 1 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("DisableAll: %d, %v; want 1 and ErrNotAuthorized", n, err)
	}
	if table := gw.Table(); len(table) != 1 || table[0].External.Port() != 9000 {
		t.Errorf("remaining mappings: %v", table)
	}
}

// TestForeignWithoutPort checks that entries that no request can delete, with external port 0,
// do not prevent the deletion of other entries.
func TestForeignWithoutPort(t *testing.T) {
	g := &listingGateway{fakeGateway: newFakeGateway()}
	g.set(func() {
		for i, external := range []string{"45.45.45.1:0", "45.45.45.1:9000", "45.45.45.1:0"} {
			internal := netip.AddrPortFrom(netip.MustParseAddr("192.168.77.9"), uint16(9+i))
			g.table[fakeKey{backends.TCP, internal.Port()}] = backends.Mapping{
				Protocol: backends.TCP, Internal: internal, External: netip.MustParseAddrPort(external), Lifetime: backends.Forever,
			}
		}
	})
	f := newForwarderWith(t, g)
	if n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything()); n != 1 || err != nil {
		t.Errorf("DisableAll: %d, %v; want 1", n, err)
	}
	if err := f.Disable(t.Context(), forward.Foreign(), forward.Everything()); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable: %v, want ErrNoMapping", err)
	}
}

// TestForeignUnlisted checks that Foreign fails if the gateway does not list its table.
func TestForeignUnlisted(t *testing.T) {
	_, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	if err := f.Disable(t.Context(), forward.Foreign(), forward.External(9000)); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Disable: %v, want ErrUnsupported", err)
	}
	if _, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything()); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("DisableAll: %v, want ErrUnsupported", err)
	}
}

// listingGateway is a fakeGateway that lists its table and supports mappings for one
// peer.
type listingGateway struct {
	*fakeGateway
	// omitPeers omits the peers of the mappings in the table, like miniupnpd. omitHosts omits
	// their internal addresses, like a device that lists the names of hosts.
	omitPeers, omitHosts bool
	// afterRow, if set, is called after each row that List returns.
	afterRow func(context.Context) error
}

func (l *listingGateway) Supports(r backends.Request) error { return r.Check() }

func (l *listingGateway) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return l.recordPeer(r, func() (backends.Mapping, error) { return l.fakeGateway.Map(ctx, r) })
}

func (l *listingGateway) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return l.recordPeer(r, func() (backends.Mapping, error) { return l.fakeGateway.Renew(ctx, m, r) })
}

// recordPeer records the peer of a granted mapping in the table.
func (l *listingGateway) recordPeer(r backends.Request, grant func() (backends.Mapping, error)) (backends.Mapping, error) {
	m, err := grant()
	if err != nil {
		return m, err
	}
	m.Remote = r.Remote
	row := m
	row.Remote = netip.AddrPortFrom(m.Remote.Addr().Unmap(), m.Remote.Port())
	if l.omitPeers {
		row.Remote = netip.AddrPort{}
	}
	if l.omitHosts {
		row.Internal = netip.AddrPortFrom(netip.Addr{}, m.Internal.Port())
	}
	l.set(func() { l.table[fakeKey{m.Protocol, m.Internal.Port()}] = row })
	return m, nil
}

func (l *listingGateway) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for _, m := range l.live() {
			if !yield(backends.Entry{Mapping: m, Enabled: true}, nil) {
				return
			}
			if l.afterRow == nil {
				continue
			}
			if err := l.afterRow(ctx); err != nil {
				yield(backends.Entry{}, err)
				return
			}
		}
	}
}

func (l *listingGateway) EntryAt(_ context.Context, i int) (backends.Entry, error) {
	live := l.live()
	if i >= len(live) {
		return backends.Entry{}, fmt.Errorf("listing: %w", backends.ErrInvalid)
	}
	return backends.Entry{Mapping: live[i], Enabled: true}, nil
}

// TestMappingsListsOnce checks that several handles of one mapping are one entry of
// Mappings, and that the entry is marked as Ours.
func TestMappingsListsOnce(t *testing.T) {
	enableForPeer := func(peer string) func(*testing.T, *forward.Forwarder) {
		return func(t *testing.T, f *forward.Forwarder) {
			t.Helper()
			if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.From(netip.MustParseAddrPort(peer))); err != nil {
				t.Fatal(err)
			}
		}
	}
	enableTwice := func(t *testing.T, f *forward.Forwarder) {
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
		"enabled twice, no table":   {newFakeGateway(), enableTwice},
		"enabled twice, in a table": {&listingGateway{fakeGateway: newFakeGateway()}, enableTwice},
		"enabled and listening": {newFakeGateway(), func(t *testing.T, f *forward.Forwarder) {
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
		"with a host name in the table":             {&listingGateway{fakeGateway: newFakeGateway(), omitHosts: true}, enableTwice},
		"for one peer, omitted in the table":        {&listingGateway{fakeGateway: newFakeGateway(), omitPeers: true}, enableForPeer("45.45.45.9:0")},
		"for one peer, as IPv4-mapped IPv6 address": {&listingGateway{fakeGateway: newFakeGateway()}, enableForPeer("[::ffff:45.45.45.9]:0")},
	} {
		t.Run(name, func(t *testing.T) {
			f := newForwarderWith(t, test.backend)
			test.enable(t, f)
			entries, err := f.Mappings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 || !entries[0].Ours {
				t.Errorf("Mappings lists %d entries of one mapping, want one with Ours:", len(entries))
				for _, e := range entries {
					t.Logf("Ours %v: %v → %v", e.Ours, e.Mapping.External, e.Mapping.Internal)
				}
			}
			if e, err := f.MappingAt(t.Context(), 0); err != nil || !e.Ours {
				t.Errorf("MappingAt(0): Ours %v, %v; want the mapping with Ours", e.Ours, err)
			}
			if e, err := f.MappingAt(t.Context(), 1); !errors.Is(err, forward.ErrNoMapping) {
				t.Errorf("MappingAt(1): %v, %v; want ErrNoMapping", e.Mapping.External, err)
			}
		})
	}
}

// TestMappingsContextEnds checks that Mappings fails if its context ends, even if there
// are entries to return.
func TestMappingsContextEnds(t *testing.T) {
	for name, b := range map[string]func() backends.Backend{
		"ended, no table": func() backends.Backend { return newFakeGateway() },
		"ended, table":    func() backends.Backend { return &listingGateway{fakeGateway: newFakeGateway()} },
		"ends while the table is read": func() backends.Backend {
			return &listingGateway{fakeGateway: newFakeGateway(), afterRow: func(ctx context.Context) error {
				<-ctx.Done()
				return context.Cause(ctx)
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newForwarderWith(t, b())
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				ctx, want := canceledContext(), context.Canceled
				if name == "ends while the table is read" {
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

// TestForeignDuringEnable checks that a mapping that is enabled while the table is read
// does not count as foreign.
func TestForeignDuringEnable(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	f := newLoopbackForwarder(t, forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}})
	if err := gw.AddMapping(gatewaytest.Entry{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:7000"), External: netip.AddrPortFrom(gw.External(), 7000), Description: "goforward", Remaining: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Mappings(t.Context()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	isEntryRequest := func(r gatewaytest.Request) bool { return strings.Contains(string(r.Raw), "GetGenericPortMappingEntry") }
	gw.Inject(gatewaytest.Fault{Match: isEntryRequest, Hold: hold, Times: 1})
	before := countRequests(gw, isEntryRequest)
	done := make(chan struct{})
	go func() {
		n, err := f.DisableAll(context.Background(), forward.Foreign(), forward.TCP(0))
		t.Logf("DisableAll: %d, %v", n, err)
		close(done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw.AwaitRequests(ctx, before+1, isEntryRequest); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	close(hold)
	<-done
	if len(gw.Table()) != 1 {
		t.Errorf("the mapping reports %v by %s, next attempt in %v; the gateway has %v", m, m.Backend(), time.Until(m.Status().NextAttempt), gw.Table())
	}
}
