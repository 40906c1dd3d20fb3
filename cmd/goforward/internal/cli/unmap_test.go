package cli

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// A gateway may refuse to delete by one protocol what another protocol made. unmap asks
// again by the first protocol after another one has deleted the mapping.
func TestUnmapRetriesRefused(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if got := run(t, nil, append(at, "map", "8080", "--backend", "pcp")...); got.code != exitDone || len(gw.Table()) != 1 {
		t.Fatalf("map by PCP: %+v; the gateway has %v", got, gw.Table())
	}
	before := len(gw.Requests())
	if got := run(t, nil, append(at, "unmap", "8080")...); got.code != exitDone || len(gw.Table()) != 0 {
		t.Errorf("unmap: %+v; the gateway has %v; want exit code 0 and no mapping", got, gw.Table())
	}
	var asked []string // by which protocols; a request may be repeated
	for _, r := range gw.Requests()[before:] {
		if r.Op == "unmap" {
			asked = append(asked, r.Service)
		}
	}
	if want := []string{"natpmp", "pcp", "natpmp"}; !slices.Equal(slices.Compact(asked), want) {
		t.Errorf("deletions were asked for by %v, want %v", asked, want)
	}
}

// tableBackend has a table, or an error in its place or at its end.
type tableBackend struct {
	backends.Backend
	entries []backends.Mapping
	failure error
	refuse  error
	deleted []backends.Mapping
}

func (*tableBackend) Supports(backends.Request) error { return nil }

func (b *tableBackend) Unmap(_ context.Context, m backends.Mapping) error {
	if b.refuse != nil {
		return b.refuse
	}
	b.deleted = append(b.deleted, m)
	return nil
}

func (b *tableBackend) List(context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		for _, m := range b.entries {
			if !yield(backends.Entry{Mapping: m, Enabled: true}, nil) {
				return
			}
		}
		if b.failure != nil {
			yield(backends.Entry{}, b.failure)
		}
	}
}

func (*tableBackend) EntryAt(context.Context, int) (backends.Entry, error) {
	return backends.Entry{}, backends.ErrInvalid
}

func TestUnmapListed(t *testing.T) {
	t.Parallel()
	row := func(p backends.Protocol, external uint16, internal string) backends.Mapping {
		return backends.Mapping{
			Protocol: p, Internal: netip.MustParseAddrPort(internal),
			External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), external),
		}
	}
	here, other, third := netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("192.168.1.8"), netip.MustParseAddr("192.168.1.9")
	peer := netip.MustParseAddr("198.51.100.7")
	table := []backends.Mapping{
		row(backends.TCP, 80, "192.168.1.7:8080"), row(backends.TCP, 81, "192.168.1.7:8080"), row(backends.UDP, 80, "192.168.1.7:8080"),
		row(backends.TCP, 82, "192.168.1.8:8080"), row(backends.TCP, 83, "192.168.1.9:8080"), row(backends.TCP, 8080, "192.168.1.7:80"),
		row(backends.TCP, 84, "192.168.1.7:8080"),
		{Protocol: backends.TCP, External: netip.MustParseAddrPort("45.45.45.1:85"), Internal: netip.AddrPortFrom(netip.Addr{}, 8080)},
	}
	table[6].Remote = netip.AddrPortFrom(peer, 0)
	tcp := []backends.Protocol{backends.TCP}
	for _, tt := range []struct {
		name     string
		wish     spec
		foreign  bool
		external []uint16 // what goes
		fails    bool
	}{
		{"all of this host", spec{internal: 8080}, false, []uint16{80, 81, 84}, false},
		{"one external port", spec{internal: 8080, external: 81}, false, []uint16{81}, false},
		{"another host's port", spec{internal: 8080, external: 82}, false, nil, false},
		{"another port", spec{internal: 8081}, false, nil, false},
		{"of UDP", spec{internal: 8080, protocols: []backends.Protocol{backends.UDP}}, false, []uint16{80}, false},
		{"of one peer", spec{internal: 8080, from: netip.AddrPortFrom(peer, 0)}, false, []uint16{84}, false},
		{"this host by its name", spec{internal: 8080, to: here}, false, []uint16{80, 81, 84}, false},
		{"another host", spec{internal: 8080, to: other}, false, nil, true},
		{"another host, all the same", spec{internal: 8080, to: other}, true, []uint16{82}, false},
		{"another host, not that port", spec{internal: 8080, to: third, external: 82}, true, nil, false},
		{"any host", spec{internal: 8080, external: 83}, true, []uint16{83}, false},
		{"any host, this one", spec{internal: 8080, external: 80}, true, []uint16{80}, false},
		{"any host, none told", spec{internal: 8080, external: 85}, true, []uint16{85}, false},
	} {
		if tt.wish.protocols == nil {
			tt.wish.protocols = tcp
		}
		u := unmapRequest{spec: tt.wish, foreign: tt.foreign}
		b := &tableBackend{entries: table}
		gone, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(u.protocols[0]))
		var ports []uint16
		for _, m := range b.deleted {
			ports = append(ports, m.External.Port())
		}
		if (err != nil) != tt.fails || !slices.Equal(ports, tt.external) || len(gone) != len(ports) {
			t.Errorf("%s: %v, %v", tt.name, ports, err)
		}
	}
}

// A table that is not told, or looks empty, may have something all the same.
func TestUnmapUnlisted(t *testing.T) {
	t.Parallel()
	here, other := netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("192.168.1.8")
	for _, tt := range []struct {
		name    string
		u       unmapRequest
		failure error
		want    string // internal and external endpoint
		fails   error
	}{
		{"empty", unmapRequest{spec: spec{internal: 80}}, nil, "192.168.1.7:80 :80", nil},
		{"not told", unmapRequest{spec: spec{internal: 80, external: 81}}, backends.ErrUnsupported, "192.168.1.7:80 :81", nil},
		{"refused", unmapRequest{spec: spec{internal: 80, to: here}}, backends.ErrNotAuthorized, "192.168.1.7:80 :80", nil},
		{"silent", unmapRequest{spec: spec{internal: 80}}, backends.ErrNoReply, "", backends.ErrNoReply},
		{"another host", unmapRequest{spec: spec{internal: 80, to: other}}, backends.ErrUnsupported, "", backends.ErrUnsupported},
		{"another host, all the same", unmapRequest{spec: spec{internal: 80, to: other}, foreign: true}, backends.ErrMalformed, "192.168.1.8:80 :80", nil},
		{"any host", unmapRequest{spec: spec{internal: 80, external: 81}, foreign: true}, backends.ErrUnsupported, "", backends.ErrUnsupported},
	} {
		b := &tableBackend{failure: tt.failure}
		_, err := tt.u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, tt.u.request(backends.TCP))
		got := ""
		for _, m := range b.deleted {
			got += m.Internal.String() + " " + endpointText(m.External)
		}
		if got != tt.want || !errors.Is(err, tt.fails) {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

// What breaks off, or is refused, fails for what was found before all the same.
func TestUnmapListedErrors(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	u := unmapRequest{spec: spec{internal: 80}}
	entries := []backends.Mapping{{Protocol: backends.TCP, Internal: netip.AddrPortFrom(here, 80), External: netip.MustParseAddrPort("45.45.45.1:80")}}
	b := &tableBackend{entries: entries, failure: backends.ErrMalformed}
	if gone, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(backends.TCP)); len(gone) != 1 || !errors.Is(err, backends.ErrMalformed) {
		t.Errorf("%v, %v", gone, err)
	}
	b = &tableBackend{entries: entries, refuse: backends.ErrNotAuthorized}
	if gone, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(backends.TCP)); len(gone) != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("%v, %v", gone, err)
	}
}
