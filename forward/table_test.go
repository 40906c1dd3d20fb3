package forward_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// startIGD is start with a gateway whose UPnP device is searched for too.
func startIGD(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	config.Gateway, config.Test.SSDP = gw.Addr(), gw.SSDP()
	config.Test.Announce, config.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:0")
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// occupy makes an entry of another host.
func occupy(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol, external uint16, description string) {
	t.Helper()
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: p, Internal: netip.MustParseAddrPort("192.168.77.9:9"),
		External: netip.AddrPortFrom(gw.External(), external), Description: description,
	}); err != nil {
		t.Fatal(err)
	}
}

// listed is what Mappings says, in the order of the table.
func listed(t *testing.T, f *forward.Forwarder) (out []string) {
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

// The table is listed by UPnP, whatever protocol the mappings go by; without it,
// what is held is all there is to tell.
func TestMappingsTable(t *testing.T) {
	for name, c := range map[string]struct {
		order  []string
		router gatewaytest.Config
		theirs []string
	}{
		"by NAT-PMP":   {nil, gatewaytest.Config{}, []string{"udp 45.45.45.1:9000 192.168.77.9:9"}},
		"by UPnP":      {[]string{"upnp"}, gatewaytest.Config{}, []string{"udp 45.45.45.1:9000 192.168.77.9:9"}},
		"without UPnP": {nil, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := startIGD(t, forward.Config{Protocols: c.order}, c.router)
			occupy(t, gw, backends.UDP, 9000, "theirs")
			if _, err := f.Enable(t.Context(), forward.Both(8080)); err != nil {
				t.Fatal(err)
			}
			want := append(slices.Clone(c.theirs), "tcp 45.45.45.1:8080 127.0.0.1:8080 ours", "udp 45.45.45.1:8080 127.0.0.1:8080 ours")
			got := listed(t, f)
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

// What is not in the table of the IGD is listed all the same, where it is ours.
func TestMappingsBeside(t *testing.T) {
	_, f := startIGD(t, forward.Config{}, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{Unlisted: true}}}})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, f); len(got) != 1 || got[0] != "tcp 45.45.45.1:8080 127.0.0.1:8080 ours" {
		t.Errorf("listed %q", got)
	}
}

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

func TestForeign(t *testing.T) {
	anyone := gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}}
	gw, f := startIGD(t, forward.Config{}, anyone)
	fill := func() {
		occupy(t, gw, backends.TCP, 9000, "theirs")
		occupy(t, gw, backends.UDP, 9000, "theirs")
		occupy(t, gw, backends.TCP, 9001, "another's")
	}
	fill()
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	const ours = "tcp 45.45.45.1:8080 127.0.0.1:8080 ours"

	// Without a word that says so, nothing of others is touched.
	for name, sel := range map[string][]forward.Selector{
		"not foreign": {forward.External(9000)}, "matches nothing": {forward.Foreign(), forward.External(7)},
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
	if got := listed(t, f); len(got) != 4 {
		t.Fatalf("listed %q, want all four", got)
	}

	// One, by all that it is known by.
	if err := f.Disable(t.Context(), forward.Foreign(), forward.UDP(9), forward.External(9000)); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, f); len(got) != 3 || slices.Contains(got, "udp 45.45.45.1:9000 192.168.77.9:9") {
		t.Errorf("listed %q", got)
	}
	// All that match every selector, and no more.
	fill()
	if n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Both(9), forward.Description("theirs")); n != 2 || err != nil {
		t.Errorf("DisableAll: %d, %v; want 2", n, err)
	}
	if got := listed(t, f); len(got) != 2 || !slices.Contains(got, ours) {
		t.Errorf("listed %q, want ours and another's", got)
	}
	// Everything: ours are closed, too.
	if n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything()); n != 2 || err != nil {
		t.Errorf("DisableAll: %d, %v; want 2", n, err)
	}
	if left := gw.Table(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := f.Disable(t.Context()); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable after all: %v, want ErrNoMapping", err)
	}
}

// What a gateway does not let go of is told, and does not stop the rest.
func TestForeignRefused(t *testing.T) {
	gw, f := startIGD(t, forward.Config{}, gatewaytest.Config{})
	occupy(t, gw, backends.TCP, 9000, "theirs")
	if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once()); err != nil {
		t.Fatal(err)
	}
	n, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything())
	if n != 1 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("DisableAll: %d, %v; want 1 and ErrNotAuthorized", n, err)
	}
	if left := gw.Table(); len(left) != 1 || left[0].External.Port() != 9000 {
		t.Errorf("left: %v", left)
	}
}

func TestForeignUnlisted(t *testing.T) {
	_, f := startIGD(t, forward.Config{}, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	if err := f.Disable(t.Context(), forward.Foreign(), forward.External(9000)); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Disable: %v, want ErrUnsupported", err)
	}
	if _, err := f.DisableAll(t.Context(), forward.Foreign(), forward.Everything()); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("DisableAll: %v, want ErrUnsupported", err)
	}
}

// What the preferred protocol cannot express goes by UPnP.
func TestByUPnP(t *testing.T) {
	for name, c := range map[string]struct {
		opts []forward.Option
		want gatewaytest.Entry
	}{
		"to another host": {
			[]forward.Option{forward.TCP(80), forward.To(netip.MustParseAddrPort("192.168.77.9:80"))},
			gatewaytest.Entry{Internal: netip.MustParseAddrPort("192.168.77.9:80"), Remaining: 2 * 60 * 60 * 1e9},
		},
		"without an end": {
			[]forward.Option{forward.TCP(80), forward.Lifetime(forward.Forever)},
			gatewaytest.Entry{Internal: netip.MustParseAddrPort("127.0.0.1:80"), Remaining: backends.Forever},
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := startIGD(t, forward.Config{}, gatewaytest.Config{
				ManualClock: true, Protocols: []string{"natpmp", "upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true, Version: 1}},
			})
			m, err := f.Enable(t.Context(), c.opts...)
			if err != nil {
				t.Fatal(err)
			}
			table := gw.Table()
			if m.Backend() != "upnp" || len(table) != 1 || table[0].Internal != c.want.Internal || table[0].Remaining != c.want.Remaining {
				t.Errorf("granted by %s: %+v, want %+v", m.Backend(), table, c.want)
			}
			if forever := c.want.Remaining == backends.Forever; m.Expires().IsZero() != forever {
				t.Errorf("expires %v", m.Expires())
			}
			if err := f.Disable(t.Context()); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Disable: %v, left %v", err, gw.Table())
			}
		})
	}
}

// The facade takes NAT-PMP where it is spoken, and UPnP where nothing else is.
func TestChooseUPnP(t *testing.T) {
	for want, router := range map[string]gatewaytest.Config{
		"natpmp": {},
		"pcp":    {Protocols: []string{"pcp", "upnp"}},
		"upnp":   {Protocols: []string{"upnp"}},
	} {
		t.Run(want, func(t *testing.T) {
			gw, f := startIGD(t, forward.Config{}, router)
			m, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil {
				t.Fatal(err)
			}
			if m.Backend() != want {
				t.Errorf("granted by %s, want %s", m.Backend(), want)
			}
			if addr, err := f.ExternalIP(t.Context()); err != nil || addr != gw.External() {
				t.Errorf("ExternalIP: %v, %v", addr, err)
			}
		})
	}
}

// A device that calls its connection down is waited for, and taken where there is
// no better one.
func TestDevicePending(t *testing.T) {
	gw, f := startIGD(t, forward.Config{}, gatewaytest.Config{
		Protocols: []string{"upnp"},
		Quirks:    quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{Connection: "Disconnected"}}},
	})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if m.Backend() != "upnp" || len(gw.Table()) != 1 {
		t.Errorf("granted by %s: %v", m.Backend(), gw.Table())
	}
}

// A root description that was named makes its host the gateway.
func TestIGD(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{UPnPURL: gw.UPnP().DescriptionURL(), Protocols: []string{"upnp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.Backend() != "upnp" || len(gw.Table()) != 1 {
		t.Fatalf("Enable: %v, %v, table %v", m, err, gw.Table())
	}
	for _, r := range gw.Requests() {
		if r.Op == "search" {
			t.Error("a device that was named was searched for")
		}
	}
	for _, raw := range []string{"https://127.0.0.1/x", "http://fritz.box/x", "127.0.0.1:5000", "http://"} {
		if _, err := forward.New(&forward.Config{UPnPURL: raw}); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("IGD %q: %v, want ErrInvalid", raw, err)
		}
	}
}
