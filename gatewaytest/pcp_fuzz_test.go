package gatewaytest

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// FuzzPCPHandle feeds the server anything, twice two datagrams, under every
// quirk. With fix, each says that it comes from where it does.
func FuzzPCPHandle(f *testing.F) {
	var seeds [][]byte
	for _, v := range pcpVectors {
		b, err := hex.DecodeString(strings.ReplaceAll(v, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	slices.SortFunc(seeds, slices.Compare)
	for i, seed := range seeds {
		other := seeds[(i+7)%len(seeds)]
		f.Add(seed, other, uint32(0), uint8(0), true)
		f.Add(seed, other, uint32(1)<<(i%18)|1<<17, uint8(i%5), true)
		f.Add(seed, other, ^uint32(0)&^(1<<4|1<<13), uint8(0), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, a, b []byte, bits uint32, result uint8, fix bool) {
		on := func(i int) bool { return bits>>i&1 != 0 }
		config := Config{
			TableLimit: 3, ManualClock: true,
			Quirks: quirks.Quirks{PCP: quirks.PCP{
				ThirdParty: on(0), AllPorts: on(1), WildcardMalformed: on(2), RefusePrivate: on(3), NAT: on(4),
				NonceLoose: on(5), FilterIgnored: on(6), PreferFailureIgnored: on(7), DeleteUnknownNoResources: on(8),
				ErrorLifetimeZero: on(9), OptionsEchoed: on(10), NoAnnounce: on(11), AnnounceUnsupported: on(12),
				VersionOne: on(13), NoPeer: on(14), MaxFilters: int(bits >> 18 & 3),
			}},
		}
		if on(15) {
			config.Protocols = []string{"pcp", "upnp"}
		}
		if on(16) {
			config.External = netip.MustParseAddr("100.64.0.1")
		}
		source := vectorClient6
		if on(17) {
			source = vectorClient
		}
		g := vectorGateway(t, config)
		if result != 0 {
			g.Inject(Fault{Result: int(result), Times: 1})
		}
		for _, raw := range [][]byte{a, b, a, b} {
			raw = slices.Clone(raw)
			if fix && len(raw) >= pcpHeader {
				a16 := source.Addr().As16()
				copy(raw[8:], a16[:])
			}
			q := identify(raw)
			q.Source = source
			replies, _ := g.answer(q)
			request := len(raw) >= pcpHeader && raw[0] == pcp.Version && raw[1]&0x80 == 0
			if request && len(replies) == 0 && !on(11) {
				t.Fatalf("no answer to %x", raw)
			}
			for _, r := range replies {
				checkReply(t, raw, r, config.Quirks.PCP)
			}
			checkTable(t, g, on(1))
			g.Advance(time.Hour)
		}
	})
}

func checkReply(t *testing.T, request, r []byte, rules quirks.PCP) {
	t.Helper()
	if r[0] == 0 {
		return // FuzzNATPMPHandle's
	}
	h, err := pcp.ParseErrorResponse(r)
	switch {
	case err != nil:
		t.Fatalf("%x to %x: %v", r, request, err)
	case len(r) < pcpHeader || len(r) > pcp.MaxMessage || len(r)%4 != 0:
		t.Fatalf("answer of %d bytes to %x", len(r), request)
	case rules.VersionOne != (h.Version == 1):
		t.Fatalf("answer of version %d", h.Version)
	case r[1] != request[1]|0x80:
		t.Fatalf("answer %x to opcode %x", r[1], request[1])
	case h.Result == pcp.Success && rules.NAT:
		t.Fatalf("success through another NAT: %x", r)
	}
	if h.Result == pcp.Success && h.Opcode == pcp.OpMap|pcp.OpResponse {
		if _, err := pcp.ParseMapResponse(r); err != nil {
			t.Fatal(err)
		}
	}
}

// checkTable looks for what must not be in a table, and asks after all of it.
func checkTable(t *testing.T, g *Gateway, allPorts bool) {
	t.Helper()
	all, n := len(g.Table()), 0 // nothing has expired from here on
	for at, rows := range g.table.outside {
		for _, r := range rows {
			n++
			switch {
			case at.Port() == 0 && !allPorts, (at.Port() == 0) != (r.Internal.Port() == 0):
				t.Fatalf("port 0 in the table: %+v", r.Entry)
			case r.Internal != rows[0].Internal:
				t.Fatalf("%v is shared by %v and %v", at, r.Internal, rows[0].Internal)
			case len(r.Filters) > g.config.Quirks.PCP.MaxFilters:
				t.Fatalf("%d filters", len(r.Filters))
			case !slices.Contains(g.table.inside[endpoint{r.Protocol, r.Internal}], r):
				t.Fatalf("not found inside: %+v", r.Entry)
			}
		}
		g.table.lookup(at.protocol, netip.AddrPortFrom(at.Addr(), 80), vectorClient)
	}
	if n != g.table.size || n > g.table.limit || n != all {
		t.Fatalf("%d rows, of size %d", n, g.table.size)
	}
	for _, c := range g.table.claims(func(claimed) bool { return false }) {
		if g.pcp.update(c, netip.IPv4Unspecified()) == nil {
			t.Fatalf("no update about %+v", c.Entry)
		}
	}
}
