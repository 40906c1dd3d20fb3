package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// TestUnmapRetriesRefused checks the order of deletions. A gateway may refuse to delete with
// one protocol the mapping of another protocol. unmap tries the first protocol again after
// another protocol has deleted the mapping.
func TestUnmapRetriesRefused(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if got := run(t, nil, append(at, "map", "8080", "--backend", "pcp")...); got.code != exitDone || len(gw.Table()) != 1 {
		t.Fatalf("map with PCP: %+v; the gateway has %v", got, gw.Table())
	}
	before := len(gw.Requests())
	if got := run(t, nil, append(at, "unmap", "8080")...); got.code != exitDone || len(gw.Table()) != 0 {
		t.Errorf("unmap: %+v; the gateway has %v; want exit code 0 and no mapping", got, gw.Table())
	}
	var services []string // the protocols of the requests; a request may be repeated
	for _, r := range gw.Requests()[before:] {
		if r.Op == "unmap" {
			services = append(services, r.Service)
		}
	}
	if want := []string{"natpmp", "pcp", "natpmp"}; !slices.Equal(slices.Compact(services), want) {
		t.Errorf("deletions were requested with %v, want %v", services, want)
	}
}

// TestUnmapOtherHost checks that unmap of a mapping to another host does not delete this host's
// mapping. A NAT-PMP request names no host.
func TestUnmapOtherHost(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp"}})
	at := []string{"-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if got := run(t, nil, append(at, "map", "8080")...); got.code != exitDone {
		t.Fatalf("map: %+v", got)
	}
	for _, args := range [][]string{{"--to", "192.168.7.7"}, {"--to", "192.168.7.7", "--foreign"}} {
		got := run(t, nil, append(append(at[:len(at):len(at)], "unmap", "8080"), args...)...)
		if got.code != exitOther || len(gw.Table()) != 1 {
			t.Errorf("unmap %v: %+v; the gateway has %v; want exit code 1 and the mapping of this host", args, got, gw.Table())
		}
	}
	if got := run(t, nil, append(at, "unmap", "8080", "--to", "127.0.0.1")...); got.code != exitDone || len(gw.Table()) != 0 {
		t.Errorf("unmap: %+v; the gateway has %v", got, gw.Table())
	}
}

// tableBackend is a backend with a table, with an error instead of the table, or with an error
// at its end.
type tableBackend struct {
	backends.Backend
	entries []backends.Mapping
	failure error
	refuse  error
	deleted []backends.Mapping

	tried       []backends.Mapping // deletions of mappings that are not in the table
	refuseTried error              // their result
}

func (*tableBackend) Supports(backends.Request) error { return nil }

func (b *tableBackend) Unmap(_ context.Context, m backends.Mapping) error {
	if b.refuse != nil {
		return b.refuse
	}
	if !slices.ContainsFunc(b.entries, func(e backends.Mapping) bool { return e == m }) {
		b.tried = append(b.tried, m)
		return b.refuseTried
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
		{Protocol: backends.TCP, External: netip.MustParseAddrPort("45.45.45.1:85"), Internal: netip.AddrPortFrom(netip.Addr{}, 8085)},
		{Protocol: backends.UDP, External: netip.MustParseAddrPort("45.45.45.1:0"), Internal: netip.MustParseAddrPort("192.168.1.7:8080")},
		{Protocol: 0, External: netip.MustParseAddrPort("45.45.45.1:86"), Internal: netip.MustParseAddrPort("192.168.1.7:8080")},
	}
	table[6].Remote = netip.AddrPortFrom(peer, 0)
	tcp := []backends.Protocol{backends.TCP}
	for _, tt := range []struct {
		name     string
		spec     spec
		foreign  bool
		external []uint16 // external ports of the deleted mappings
		fails    bool
	}{
		{"all of this host", spec{internal: 8080}, false, []uint16{80, 81, 84}, false},
		{"one external port", spec{internal: 8080, external: 81}, false, []uint16{81}, false},
		{"another host's port", spec{internal: 8080, external: 82}, false, nil, false},
		{"another port", spec{internal: 8081}, false, nil, false},
		{"UDP", spec{internal: 8080, protocols: []backends.Protocol{backends.UDP}}, false, []uint16{80}, false},
		{"one peer", spec{internal: 8080, from: netip.AddrPortFrom(peer, 0)}, false, []uint16{84}, false},
		{"this host by its address", spec{internal: 8080, to: here}, false, []uint16{80, 81, 84}, false},
		{"another host", spec{internal: 8080, to: other}, false, nil, true},
		{"another host, with --foreign", spec{internal: 8080, to: other}, true, []uint16{82}, false},
		{"another host, another external port", spec{internal: 8080, to: third, external: 82}, true, nil, false},
		{"any host", spec{internal: 8080, external: 83}, true, []uint16{83}, false},
		{"any host, a mapping to this host", spec{internal: 8080, external: 80}, true, []uint16{80}, false},
		{"any host, unknown host", spec{internal: 8085, external: 85}, true, []uint16{85}, false},
		{"unknown host", spec{internal: 8085}, false, nil, true},
		{"unknown host, another external port", spec{internal: 8085, external: 86}, false, nil, false},
		{"one host, unknown host", spec{internal: 8085, to: other}, false, nil, true},
		{"one host, unknown host, with --foreign", spec{internal: 8085, to: other}, true, nil, true},
		{"any host, an entry without an external port", spec{internal: 8080, external: 80, protocols: []backends.Protocol{backends.UDP}}, true, []uint16{80}, false},
	} {
		if tt.spec.protocols == nil {
			tt.spec.protocols = tcp
		}
		u := unmapRequest{spec: tt.spec, foreign: tt.foreign}
		b := &tableBackend{entries: table}
		deleted, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(u.protocols[0]))
		var ports []uint16
		for _, m := range b.deleted {
			ports = append(ports, m.External.Port())
		}
		if (err != nil) != tt.fails || !slices.Equal(ports, tt.external) || len(deleted) != len(ports) {
			t.Errorf("%s: deleted %v, want %v; error %v", tt.name, ports, tt.external, err)
		}
	}
}

// TestUnmapRemaining checks that unmap reports the mappings to this host that it does not
// delete, because they have another external port or peer than the named one.
func TestUnmapRemaining(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	row := func(external, internal string) backends.Mapping {
		return backends.Mapping{Protocol: backends.TCP, Internal: netip.MustParseAddrPort(internal), External: netip.MustParseAddrPort(external)}
	}
	const ours, other = "192.168.1.7:8080", "192.168.1.8:8080"
	for _, tt := range []struct {
		entries []backends.Mapping
		spec    spec
		want    string
	}{
		{[]backends.Mapping{row("45.45.45.1:80", ours)}, spec{internal: 8080, external: 80}, ""},
		{[]backends.Mapping{row("45.45.45.1:55190", other)}, spec{internal: 8080, external: 80}, ""},
		{[]backends.Mapping{row("45.45.45.1:55190", ours)}, spec{internal: 8081, external: 80}, ""},
		{[]backends.Mapping{row("45.45.45.1:55190", ours)}, spec{internal: 8080, external: 80}, "tcp 45.45.45.1:55190 → 192.168.1.7:8080 stays: it has another external port or peer.\n"},
		{[]backends.Mapping{row("45.45.45.1:80", ours)}, spec{internal: 8080, from: netip.MustParseAddrPort("198.51.100.7:0")}, "tcp 45.45.45.1:80 → 192.168.1.7:8080 stays: it has another external port or peer.\n"},
	} {
		u := unmapRequest{spec: tt.spec}
		b := &tableBackend{entries: tt.entries}
		if _, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(backends.TCP)); err != nil || u.remark != tt.want {
			t.Errorf("%v, %d:%d: remark %q, want %q; error %v", tt.entries, tt.spec.external, tt.spec.internal, u.remark, tt.want, err)
		}
	}
}

// TestUnmapUnlisted checks that unmap tries the likely mapping if the gateway cannot list its
// table or returns an empty table.
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
		{"cannot list", unmapRequest{spec: spec{internal: 80, external: 81}}, backends.ErrUnsupported, "192.168.1.7:80 :81", nil},
		{"refused", unmapRequest{spec: spec{internal: 80, to: here}}, backends.ErrNotAuthorized, "192.168.1.7:80 :80", nil},
		{"silent", unmapRequest{spec: spec{internal: 80}}, backends.ErrNoReply, "192.168.1.7:80 :80", nil},
		{"silent, any host", unmapRequest{spec: spec{internal: 80, external: 81}, foreign: true}, backends.ErrNoReply, "", backends.ErrNoReply},
		{"another host", unmapRequest{spec: spec{internal: 80, to: other}}, backends.ErrUnsupported, "", backends.ErrUnsupported},
		{"another host, with --foreign", unmapRequest{spec: spec{internal: 80, to: other}, foreign: true}, backends.ErrMalformed, "192.168.1.8:80 :80", nil},
		{"any host", unmapRequest{spec: spec{internal: 80, external: 81}, foreign: true}, backends.ErrUnsupported, "", backends.ErrUnsupported},
	} {
		b := &tableBackend{failure: tt.failure}
		_, err := tt.u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, tt.u.request(backends.TCP))
		got := ""
		for _, m := range b.tried {
			got += m.Internal.String() + " " + endpointText(m.External)
		}
		if got != tt.want || !errors.Is(err, tt.fails) {
			t.Errorf("%s: deleted %q, want %q; error %v", tt.name, got, tt.want, err)
		}
	}
}

// TestUnmapIncomplete checks that a table is no evidence of absence if its listing ends with an
// error or has no entry for the port: unmap then tries the likely mapping, and the result of
// that deletion counts.
func TestUnmapIncomplete(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	row := func(external uint16, internal string) backends.Mapping {
		return backends.Mapping{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort(internal),
			External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), external),
		}
	}
	ours, other, foreign := row(80, "192.168.1.7:80"), row(81, "192.168.1.7:81"), row(80, "192.168.1.8:80")
	for _, tt := range []struct {
		name    string
		entries []backends.Mapping
		failure error // of the listing
		result  error // of the deletion of the likely mapping
		tried   bool
		fails   error
		remark  bool
	}{
		{"ended early", []backends.Mapping{other}, backends.ErrMalformed, nil, true, nil, true},
		{"ended early, refused", []backends.Mapping{other}, backends.ErrMalformed, backends.ErrNotAuthorized, true, backends.ErrNotAuthorized, true},
		{"ended early, not supported", []backends.Mapping{other}, backends.ErrMalformed, backends.ErrUnsupported, true, backends.ErrMalformed, true},
		{"ended after the entry", []backends.Mapping{ours}, backends.ErrNoReply, nil, false, nil, true},
		{"ended after another host's entry", []backends.Mapping{foreign}, backends.ErrNoReply, nil, false, nil, true},
		{"missing", []backends.Mapping{other}, nil, nil, true, nil, false},
		{"missing, refused", []backends.Mapping{other}, nil, backends.ErrNotAuthorized, true, backends.ErrNotAuthorized, false},
		{"missing, not supported", []backends.Mapping{other}, nil, backends.ErrUnsupported, true, nil, false},
		{"empty, not supported", nil, nil, backends.ErrUnsupported, true, backends.ErrUnsupported, false},
	} {
		u := unmapRequest{spec: spec{internal: 80}}
		b := &tableBackend{entries: tt.entries, failure: tt.failure, refuseTried: tt.result}
		_, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(backends.TCP))
		if !errors.Is(err, tt.fails) || (len(b.tried) > 0) != tt.tried || (u.remark != "") != tt.remark {
			t.Errorf("%s: tried %v, remark %q, error %v", tt.name, b.tried, u.remark, err)
		}
	}
}

// TestUnmapOtherBackendSucceeds checks that the success of one backend does not hide that
// the device of another backend cannot delete its entry.
func TestUnmapOtherBackendSucceeds(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	entries := []backends.Mapping{{Protocol: backends.TCP, Internal: netip.AddrPortFrom(here, 80), External: netip.MustParseAddrPort("45.45.45.1:80")}}
	for name, refuse := range map[string]error{"deleted": nil, "not supported": backends.ErrUnsupported} {
		table := availableBackend{protocol{name: "upnp"}, &tableBackend{entries: entries, refuse: refuse}, netip.AddrPort{}, here}
		other := availableBackend{protocol{name: "pcp"}, deleter{&tableBackend{}}, netip.AddrPort{}, here}
		a := newApp(io.Discard, io.Discard)
		failures := a.unmap(t.Context(), []*unmapRequest{{spec: spec{internal: 80, protocols: []backends.Protocol{backends.TCP}}}},
			&probeResult{available: []availableBackend{other, table}})
		err := a.unmapFailure(t.Context(), false, failures)
		if !errors.Is(err, refuse) {
			t.Errorf("%s: error %v, want %v", name, err, refuse)
		}
	}
}

// deleter hides the table of a backend.
type deleter struct{ backends.Backend }

// TestUnmapListedErrors checks that unmap returns the error if the deletion is refused.
func TestUnmapListedErrors(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	u := unmapRequest{spec: spec{internal: 80}}
	entries := []backends.Mapping{{Protocol: backends.TCP, Internal: netip.AddrPortFrom(here, 80), External: netip.MustParseAddrPort("45.45.45.1:80")}}
	b := &tableBackend{entries: entries, refuse: backends.ErrNotAuthorized}
	if deleted, err := u.unmapFrom(t.Context(), availableBackend{Backend: b, localAddr: here}, u.request(backends.TCP)); len(deleted) != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("deleted %v, error %v", deleted, err)
	}
}

// TestUnmapAllKept checks that NAT-PMP does not delete all mappings if a listed one stays.
func TestUnmapAllKept(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]bool{"deleted": false, "refused": true} {
		gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}})
		at := []string{"-g", gw.Addr().String(), "--ssdp", gw.SSDP().String(), "--notify", "127.0.0.1:0", "--announce", "127.0.0.1:0"}
		for _, port := range []string{"8080", "8081:8080", "8082"} {
			if got := run(t, nil, append(at[:len(at):len(at)], "map", port, "--backend", "upnp")...); got.code != exitDone {
				t.Fatalf("%s: map: %+v", name, got)
			}
		}
		if refuse {
			gw.Inject(gatewaytest.Fault{Result: 606, Match: func(q gatewaytest.Request) bool {
				return q.Service == "upnp" && q.Op == "unmap" && strings.Contains(string(q.Raw), ">8081<")
			}})
		}
		got := run(t, nil, append(at[:len(at):len(at)], "unmap", "--all", "--json")...)
		all := 0 // requests for internal port 0
		for _, q := range gw.Requests() {
			if q.Service == "natpmp" && q.Op == "unmap" && q.Raw[4] == 0 && q.Raw[5] == 0 {
				all++
			}
		}
		deleted := strings.Count(got.stdout, `"event":"unmapped"`)
		want := []int{exitDone, 3, 0, 2}
		if refuse {
			want = []int{exitRefused, 2, 1, 0}
		}
		if !slices.Equal([]int{got.code, deleted, len(gw.Table()), all}, want) {
			t.Errorf("%s: code, deleted, remaining, requests for all: %v, want %v: %+v", name, []int{got.code, deleted, len(gw.Table()), all}, want, got)
		}
		if refuse && !strings.HasPrefix(got.stderr[strings.Index(got.stderr, "goforward: "):], "goforward: 8080/tcp: tcp 45.45.45.1:8081 → 127.0.0.1:8080: upnp: ") {
			t.Errorf("%s: %s", name, got.stderr)
		}
	}
}

// TestUnmapAllEntries checks which entries of a table --all selects.
func TestUnmapAllEntries(t *testing.T) {
	t.Parallel()
	here := netip.MustParseAddr("192.168.1.7")
	row := func(p backends.Protocol, external uint16, internal netip.AddrPort) backends.Mapping {
		return backends.Mapping{Protocol: p, Internal: internal, External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), external)}
	}
	ours, other := netip.AddrPortFrom(here, 8080), netip.MustParseAddrPort("192.168.1.8:8080")
	peer := row(backends.TCP, 80, ours)
	peer.Remote = netip.MustParseAddrPort("198.51.100.7:0")
	unknown := row(backends.TCP, 80, netip.AddrPortFrom(netip.Addr{}, 8080))
	for _, tt := range []struct {
		name    string
		entries []backends.Mapping
		udpOnly bool
		failure error // of the table
		deleted int
		fails   error
	}{
		{"ours", []backends.Mapping{row(backends.TCP, 80, ours), row(backends.TCP, 81, ours), row(backends.UDP, 80, ours), peer}, false, nil, 4, nil},
		{"one protocol", []backends.Mapping{row(backends.TCP, 80, ours), row(backends.UDP, 80, ours)}, true, nil, 1, nil},
		{"another host", []backends.Mapping{row(backends.TCP, 80, other), row(backends.TCP, 81, ours)}, false, nil, 1, nil},
		{"unknown host", []backends.Mapping{unknown, row(backends.TCP, 81, ours)}, false, nil, 1, nil},
		{"no external port", []backends.Mapping{row(backends.TCP, 0, ours), row(backends.TCP, 81, ours)}, false, nil, 1, backends.ErrUnsupported},
		{"no protocol", []backends.Mapping{row(0, 80, ours), row(backends.TCP, 81, ours)}, false, nil, 1, backends.ErrUnsupported},
		{"all protocols of another host", []backends.Mapping{row(0, 0, netip.AddrPortFrom(other.Addr(), 0))}, false, nil, 0, nil},
		{"ended early", []backends.Mapping{row(backends.TCP, 80, ours)}, false, backends.ErrMalformed, 1, backends.ErrMalformed},
		{"no reply", nil, false, backends.ErrNoReply, 0, backends.ErrNoReply},
		{"not supported", nil, false, backends.ErrUnsupported, 0, backends.ErrUnsupported},
		{"empty", nil, false, nil, 0, nil},
	} {
		b := &tableBackend{entries: tt.entries, failure: tt.failure}
		u := unmapRequest{all: true}
		if tt.udpOnly {
			u.protocols = []backends.Protocol{backends.UDP}
		}
		var stderr bytes.Buffer
		a := newApp(io.Discard, &stderr)
		failures, err := a.unmapAll(t.Context(), &u, withTableReaders(&probeResult{available: []availableBackend{{Backend: b, localAddr: here}}}))
		if len(b.deleted) != tt.deleted || len(b.tried) > 0 || len(failures) > 0 || !errors.Is(err, tt.fails) || tt.fails == nil && err != nil {
			t.Errorf("%s: deleted %v and %v, want %d; errors %v, %v", tt.name, b.deleted, b.tried, tt.deleted, failures, err)
		}
		if nothing := strings.Contains(stderr.String(), "nothing to delete"); nothing != (tt.deleted == 0 && tt.fails == nil) {
			t.Errorf("%s: %s", tt.name, &stderr)
		}
	}
}

// TestUnmapInterrupted checks that the mappings that an interrupted unmap did not delete are no
// failures of their own.
func TestUnmapInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout bytes.Buffer
	a := newApp(&stdout, io.Discard)
	a.settings.json = true
	one := mapError{&spec{internal: 80, count: 1, protocols: []backends.Protocol{backends.TCP}}, context.Canceled}
	if err := a.unmapFailure(ctx, true, mapErrors{one, one}); !errors.Is(err, errInterrupted) || stdout.Len() > 0 {
		t.Errorf("error %v, output %s", err, &stdout)
	}
}
