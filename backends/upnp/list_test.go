package upnp_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// listedPorts returns the external ports that List yields.
func listedPorts(t *testing.T, b *upnp.Backend) (ports []uint16, err error) {
	t.Helper()
	for e, err := range b.List(t.Context()) {
		if err != nil {
			return ports, err
		}
		ports = append(ports, e.Mapping.External.Port())
	}
	return ports, nil
}

func addEntries(t *testing.T, gw *gatewaytest.Gateway, n int) {
	t.Helper()
	for i := range n {
		occupy(t, gw, uint16(1000+i))
	}
}

// TestListQuirks checks that each entry is listed exactly once. Devices report the
// end of their table in several ways, or not at all.
func TestListQuirks(t *testing.T) {
	t.Parallel()
	type listing = quirks.Listing
	for name, tt := range map[string]struct {
		version int
		listing listing
		rows    int
		want    error
	}{
		"nothing":            {0, listing{}, 0, nil},
		"713":                {0, listing{}, 3, nil},
		"714":                {0, listing{EndOfList: 714}, 3, nil},
		"402":                {0, listing{EndOfList: 402}, 3, nil},
		"501":                {0, listing{EndOfList: 501}, 3, nil},
		"899":                {0, listing{EndOfList: 899}, 3, nil},
		"601":                {0, listing{EndOfList: 601}, 3, nil},
		"endless":            {0, listing{Endless: true}, 3, nil},
		"endless, one entry": {1, listing{Endless: true}, 1, nil},
		"ranges, escaped":    {0, listing{IndexFails: 602, RangeEscaped: true}, 3, nil},
		"ranges, many entries, crashes on large ranges": {0, listing{IndexFails: 401, RangeCrashes: true}, 150, nil},
		"neither index nor ranges":                      {1, listing{IndexFails: 401}, 3, backends.ErrUnsupported},
		"neither index nor ranges, version 2":           {0, listing{IndexFails: 401, NoRange: true}, 3, backends.ErrUnsupported},
		"ranges reset the connection":                   {0, listing{IndexFails: 401, RangeResets: true}, 3, backends.ErrNoReply},
		"not authorized":                                {0, listing{IndexFails: 606}, 3, backends.ErrNotAuthorized},
		"many entries":                                  {0, listing{Endless: true}, 40, nil},
		"no GetSpecificPortMappingEntry":                {0, listing{NoSpecific: true}, 3, nil},
		"absent entries reported as 402":                {0, listing{Absent: 402, EndOfList: 402}, 3, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Version: tt.version, Listing: tt.listing})
			addEntries(t, gw, tt.rows)
			got, err := listedPorts(t, b)
			if tt.want != nil {
				wantError(t, err, tt.want, 0)
				return
			}
			if err != nil || len(got) != tt.rows {
				t.Fatalf("listed %d rows, %v; want %d", len(got), err, tt.rows)
			}
			seen := map[uint16]bool{}
			for _, port := range got {
				if seen[port] {
					t.Errorf("port %d is listed twice", port)
				}
				seen[port] = true
			}
			checkRangeSizes(t, gw)
		})
	}
}

// checkRangeSizes checks that no requested range is larger than common daemons
// survive.
func checkRangeSizes(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	for _, args := range actionCalls(gw, "GetListOfPortMappings") {
		first, _ := strconv.Atoi(args["NewStartPort"])
		last, _ := strconv.Atoi(args["NewEndPort"])
		n, _ := strconv.Atoi(args["NewNumberOfPorts"])
		if size := last - first + 1; first < 1 || size < 1 || size > 128 || n < 1 || n > 128 {
			t.Fatalf("requested %v", args)
		}
	}
}

// TestListMalformedEntry checks that a malformed entry does not hide the others.
func TestListMalformedEntry(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	addEntries(t, gw, 5)
	gw.Inject(gatewaytest.Fault{Times: 1, Match: func(q gatewaytest.Request) bool {
		return strings.Contains(string(q.Raw), "<NewPortMappingIndex>2<")
	}, Corrupt: func(b []byte) []byte {
		return []byte(strings.Replace(string(b), "<NewProtocol>TCP", "<NewProtocol>???", 1))
	}})
	if got, err := listedPorts(t, b); err != nil || fmt.Sprint(got) != "[1000 1001 1003 1004]" {
		t.Errorf("listed %v, %v", got, err)
	}
}

// TestListMalformedOnly checks that a table with only malformed entries is not listed as an
// empty one.
func TestListMalformedOnly(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Listing: quirks.Listing{MalformedRow: true}})
	addEntries(t, gw, 1)
	got, err := listedPorts(t, b)
	if wantError(t, err, backends.ErrMalformed, 0); len(got) != 0 {
		t.Errorf("listed %v", got)
	}
	addEntries(t, gw, 3)
	if got, err := listedPorts(t, b); err != nil || len(got) != 2 {
		t.Errorf("listed %v, %v", got, err)
	}
}

// TestListFails checks that an error ends the list after the entries before it.
func TestListFails(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	addEntries(t, gw, 5)
	gw.Inject(gatewaytest.Fault{Drop: true, Match: func(q gatewaytest.Request) bool {
		return strings.Contains(string(q.Raw), "<NewPortMappingIndex>3<")
	}})
	got, err := listedPorts(t, b)
	if wantError(t, err, backends.ErrNoReply, 0); len(got) != 3 {
		t.Errorf("listed %v", got)
	}
}

// TestListStopped checks that leaving the loop ends the requests, and that other
// calls work inside the loop.
func TestListStopped(t *testing.T) {
	t.Parallel()
	for _, listing := range []quirks.Listing{{}, {IndexFails: 401}} {
		gw, b := startBackend(t, quirks.UPnP{Listing: listing})
		addEntries(t, gw, 5)
		mustMap(t, gw, b, request(8080, 999))
		for e, err := range b.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Mapping.External.Port() == 999 || listing.IndexFails == 0 {
				gw.ResetStats()
				if err := b.Unmap(t.Context(), e.Mapping); err == nil && e.Mapping.External.Port() != 999 {
					t.Error("deleted another host's entry")
				}
				break
			}
		}
		if n := count(gw, "GetGenericPortMappingEntry") + count(gw, "GetListOfPortMappings"); n != 0 {
			t.Errorf("%d more requests", n)
		}
	}
}

// TestListEntry checks that an entry has all that the device reports, and that
// Unmap can delete it.
func TestListEntry(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{AnyClient: true})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.UDP, Internal: netip.MustParseAddrPort("192.168.77.9:53"), Disabled: true,
		External: netip.AddrPortFrom(gw.External(), 5353), Description: "evil\x1b[31m\r\n\u202eentry",
	}); err != nil {
		t.Fatal(err)
	}
	r := request(8080, 9000)
	r.Remote = netip.MustParseAddrPort("45.45.45.77:0")
	m := mustMap(t, gw, b, r)
	first, err := b.EntryAt(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	got := first.Mapping
	if got.Protocol != backends.UDP || first.Enabled || got.Lifetime != backends.Forever ||
		got.External != netip.AddrPortFrom(gw.External(), 5353) || got.Internal != netip.MustParseAddrPort("192.168.77.9:53") {
		t.Errorf("listed %+v", first)
	}
	if strings.ContainsFunc(got.Description, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("Description is %q", got.Description)
	}
	second, err := b.EntryAt(t.Context(), 1)
	if err != nil || !second.Enabled || second.Mapping.Remote != r.Remote || second.Mapping.Lifetime != m.Lifetime || second.Mapping.Internal != m.Internal {
		t.Errorf("listed %+v, %v", second, err)
	}
	if err := b.Unmap(t.Context(), second.Mapping); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
	}
}

// TestEntryAtEnd checks that an index past the end is ErrInvalid, for every code
// that devices use for it.
func TestEntryAtEnd(t *testing.T) {
	t.Parallel()
	for _, code := range []int{713, 714, 402, 501, 899} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{Listing: quirks.Listing{EndOfList: code}})
			occupy(t, gw, 9000)
			for _, index := range []int{1, -1, 1 << 20} {
				_, err := b.EntryAt(t.Context(), index)
				wantError(t, err, backends.ErrInvalid, 0)
			}
		})
	}
}
