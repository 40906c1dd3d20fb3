package gatewaytest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// FuzzNATPMPHandle sends arbitrary datagrams to the NAT-PMP server, with all
// combinations of quirks.
func FuzzNATPMPHandle(f *testing.F) {
	for _, seed := range []string{
		"", "\x00", "\x00\x00", "\x00\x05", "\x00\x85\x00\x05", "\x02\x01", "\xff\xff\xff",
		"\x00\x01\x00\x00\x1a\xe1\x1a\xe1\x00\x00\x1c\x20",
		"\x00\x02\x00\x00\x1f\x90\x00\x00\x00\x00\x1c\x20",
		"\x00\x02\x00\x00\x1f\x90\x00\x00\x00\x00\x00\x00",
		"\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x00\x01\x00\x00\x1a\xe1\xff\xff\xff\xff\xff\xff",
	} {
		for i := range 13 {
			f.Add([]byte(seed), uint16(1<<i), uint8(0))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, bits uint16, result uint8) {
		on := func(i int) bool { return bits>>i&1 != 0 }
		protocols := []string{"upnp"}
		if !on(14) {
			protocols = append(protocols, "natpmp")
		}
		g := newGateway(Config{
			Protocols: protocols, TableLimit: 3, External: defaultExternal, ManualClock: true,
			Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{
				MultiplePorts: on(0), VersionError: quirks.VersionErrorForm(bits >> 1 & 3), ShortOpcodeError: on(3), RefusePrivate: on(4),
				EchoErrors: on(5), LowByte: on(6), EpochStuck: on(7), EpochBack: on(8), ExternalZero: on(9),
				VPN: on(10), PCPOnly: on(11), PCPOnlyTruncated: on(12), AnyDeletePort: on(13),
			}},
		})
		defer g.stop()
		if result != 0 {
			g.Inject(Fault{Result: int(result), Times: 1, Duplicate: 1})
		}
		for range 3 {
			q := identify(b)
			q.Source = netip.MustParseAddrPort("127.0.0.1:1")
			replies, _ := g.respond(q)
			for _, r := range replies {
				if len(r) < 2 || len(r) > max(24, len(b)+4) {
					t.Fatalf("response of %d bytes: %x", len(r), r)
				}
				if !on(11) && !on(12) && r[0] != 0 {
					t.Fatalf("response of version %d: %x", r[0], r)
				}
			}
			g.Advance(time.Hour)
		}
		for e := range g.table.byExternal {
			if e.Port() == 0 {
				t.Fatal("port 0 in the table")
			}
		}
	})
}

// FuzzPCPHandle sends two arbitrary datagrams twice to the PCP server, with all
// combinations of quirks. If fix is set, it writes the real source address into each
// datagram.
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
		g := newVectorGateway(t, config)
		if result != 0 {
			g.Inject(Fault{Result: int(result), Times: 1})
		}
		for _, raw := range [][]byte{a, b, a, b} {
			raw = slices.Clone(raw)
			if fix && len(raw) >= pcpHeaderSize {
				a16 := source.Addr().As16()
				copy(raw[8:], a16[:])
			}
			q := identify(raw)
			q.Source = source
			replies, _ := g.respond(q)
			request := len(raw) >= pcpHeaderSize && raw[0] == pcp.Version && raw[1]&0x80 == 0
			if request && len(replies) == 0 && !on(11) {
				t.Fatalf("no response to %x", raw)
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
		return // a NAT-PMP response, which FuzzNATPMPHandle checks
	}
	h, err := pcp.ParseErrorResponse(r)
	switch {
	case err != nil:
		t.Fatalf("response %x to %x: %v", r, request, err)
	case len(r) < pcpHeaderSize || len(r) > pcp.MaxMessage || len(r)%4 != 0:
		t.Fatalf("response of %d bytes to %x", len(r), request)
	case rules.VersionOne != (h.Version == 1):
		t.Fatalf("response of version %d", h.Version)
	case r[1] != request[1]|0x80:
		t.Fatalf("response with opcode %x to opcode %x", r[1], request[1])
	case h.Result == pcp.Success && rules.NAT:
		t.Fatalf("success although there is another NAT: %x", r)
	}
	if h.Result == pcp.Success && h.Opcode == pcp.OpMap|pcp.OpResponse {
		if _, err := pcp.ParseMapResponse(r); err != nil {
			t.Fatal(err)
		}
	}
}

// checkTable checks that the table is consistent, and exercises lookups and updates for
// all its entries.
func checkTable(t *testing.T, g *Gateway, allPorts bool) {
	t.Helper()
	all, count := len(g.Table()), 0 // Table has deleted expired entries; no more expire below
	for at, rows := range g.table.byExternal {
		for _, r := range rows {
			count++
			switch {
			case at.Port() == 0 && !allPorts, (at.Port() == 0) != (r.Internal.Port() == 0):
				t.Fatalf("port 0 in the table: %+v", r.Entry)
			case r.Internal != rows[0].Internal:
				t.Fatalf("external endpoint %v has the internal endpoints %v and %v", at, r.Internal, rows[0].Internal)
			case len(r.Filters) > g.config.Quirks.PCP.MaxFilters:
				t.Fatalf("%d filters", len(r.Filters))
			case !slices.Contains(g.table.byInternal[transportAddr{r.Protocol, r.Internal}], r):
				t.Fatalf("not in the internal index: %+v", r.Entry)
			}
		}
		g.table.lookup(at.protocol, netip.AddrPortFrom(at.Addr(), 80), vectorClient)
	}
	if count != g.table.size || count > g.table.limit || count != all {
		t.Fatalf("%d rows, want %d", count, g.table.size)
	}
	for _, c := range g.table.hostedEntries(func(hostedEntry) bool { return false }) {
		if g.pcp.updateResponse(c, netip.IPv4Unspecified()) == nil {
			t.Fatalf("no update for %+v", c.Entry)
		}
	}
}

// newFuzzGateway returns a gateway that does not listen.
func newFuzzGateway(t testing.TB, u quirks.UPnP) *Gateway {
	config, err := Config{TableLimit: 3, ManualClock: true, Quirks: quirks.Quirks{UPnP: u}, Listen6: netip.MustParseAddrPort("[::1]:0")}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(config)
	t.Cleanup(g.stop)
	return g
}

func FuzzUPnPRequest(f *testing.F) {
	for _, seed := range []string{
		addRequest, "GET /rootDesc.xml HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.0\n\n", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
		strings.ReplaceAll(addRequest, "AddPortMapping", "AddAnyPortMapping"),
		post("/ctl/0/WANIPConnection", "urn:schemas-upnp-org:service:WANIPConnection:2#GetListOfPortMappings",
			`<Envelope><Body><GetListOfPortMappings><NewStartPort>1</NewStartPort><NewEndPort>9</NewEndPort><NewProtocol>TCP</NewProtocol><NewManage>1</NewManage><NewNumberOfPorts>0</NewNumberOfPorts></GetListOfPortMappings></Body></Envelope>`),
		post("/ctl/0/WANIPConnection", "urn:schemas-upnp-org:service:WANIPConnection:2#GetGenericPortMappingEntry",
			`<Envelope><Body><GetGenericPortMappingEntry><NewPortMappingIndex>0</NewPortMappingIndex></GetGenericPortMappingEntry></Body></Envelope>`),
		post("/ctl/0/WANIPv6FirewallControl", "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1#AddPinhole",
			`<Envelope><Body><AddPinhole><RemoteHost>::2</RemoteHost><RemotePort>0</RemotePort><InternalClient>::1</InternalClient><InternalPort>80</InternalPort><Protocol>6</Protocol><LeaseTime>60</LeaseTime></AddPinhole></Body></Envelope>`),
	} {
		f.Add([]byte(seed), uint16(0), int16(0))
		f.Add([]byte(seed), uint16(0xffff), int16(725))
	}
	f.Fuzz(func(t *testing.T, b []byte, bits uint16, result int16) {
		on := func(i int) bool { return bits>>i&1 != 0 }
		device := quirks.UPnP{
			AnyClient: on(0), Wire: quirks.Wire{Chunked: on(1), LFOnly: on(2)}, XML: quirks.XML{Latin1: on(3), BOM: on(4)},
			Listing: quirks.Listing{Endless: on(5), RangeCrashes: on(6), RangeEscaped: on(7)},
			Rules:   quirks.Rules{OnePort: on(8), FullSilent: on(9), AddAnyResets: on(10)},
			Demands: quirks.Demands{Compact: on(11), SOAPActionNotLast: on(12), LiteralHost: on(13)}, Version: 1 + int(bits>>14&1),
		}
		g := newFuzzGateway(t, device)
		if result != 0 {
			g.Inject(Fault{Result: int(result), Times: 1, Duplicate: 1})
		}
		for i := range 3 {
			r, err := readRequest(bufio.NewReaderSize(bytes.NewReader(b), maxHeaderBytes))
			r.err, r.base = err, "http://127.0.0.1:1"
			r.source = netip.MustParseAddrPort([]string{"127.0.0.1:1", "[::1]:1", "127.0.0.1:1"}[i])
			q := g.upnp.identify(&r)
			replies, _ := g.respondWith(q, func(forcedResult int) [][]byte {
				b, _ := g.upnp.respond(&r, forcedResult)
				return oneReply(b)
			})
			if len(replies) > 1 {
				t.Fatalf("%d responses", len(replies))
			}
			for _, reply := range replies {
				if !bytes.HasPrefix(reply, []byte("HTTP/1.1 ")) {
					t.Fatalf("response %q", reply)
				}
				if bits == 0 {
					wellFormed(t, reply)
				}
			}
			g.Advance(time.Hour)
		}
		for at := range g.table.byExternal {
			if at.Port() == 0 {
				t.Fatal("port 0 in the table")
			}
		}
	})
}

// wellFormed fails unless the body of the response is well-formed XML.
func wellFormed(t *testing.T, reply []byte) {
	t.Helper()
	_, body, ok := bytes.Cut(reply, []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("response %q", reply)
	}
	in := xml.NewDecoder(bytes.NewReader(body))
	for {
		_, err := in.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
}

func FuzzSSDP(f *testing.F) {
	for _, seed := range []string{
		"", searchSeed, strings.ReplaceAll(searchSeed, "\r", ""), strings.Replace(searchSeed, "urn:", "ssdp:all\r\n", 1),
		"M-SEARCH * HTTP/1.1\nMAN:\"ssdp:discover\"\nST:upnp:rootdevice\n\n", "NOTIFY * HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(seed), true, 0)
		f.Add([]byte(seed), false, 2)
	}
	f.Fuzz(func(t *testing.T, b []byte, v6 bool, version int) {
		g := newFuzzGateway(t, quirks.UPnP{Search: quirks.Search{Version: version & 1}, Version: 1 + version>>1&1})
		q, ok := parseSearch(b)
		from := netip.MustParseAddrPort("127.0.0.1:1")
		if v6 {
			from = netip.MustParseAddrPort("[::1]:1")
		}
		if !ok || g.upnp.ignores(q, from) {
			return
		}
		all := g.upnp.searchResponses(q, from)
		if len(all) > len(g.upnp.searchTargets()) {
			t.Fatalf("%d responses", len(all))
		}
		for _, reply := range all {
			if head := "HTTP/1.1 200 OK\r\n"; !strings.HasPrefix(string(reply), head) || !strings.HasSuffix(string(reply), "\r\n\r\n") ||
				strings.Count(string(reply), "\r\n") != 10 {
				t.Fatalf("response %q", reply)
			}
		}
	})
}
