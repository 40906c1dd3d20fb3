package gatewaytest

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var (
	vectorClient  = netip.MustParseAddrPort("192.168.1.10:40000")
	vectorClient6 = netip.MustParseAddrPort("[2001:db8:1:2::10]:40000")
)

// vectorGateway is a gateway as of the vectors that does not listen.
func vectorGateway(t testing.TB, config Config) *Gateway {
	t.Helper()
	config.ManualClock = true
	if !config.External.IsValid() {
		config.External = netip.MustParseAddr("203.0.113.7")
	}
	config, err := config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(config)
	t.Cleanup(g.stop)
	g.Advance(1234 * time.Second)
	return g
}

// exchange asks, and wants the answer; an empty one is silence.
func (g *Gateway) exchange(t *testing.T, from netip.AddrPort, request, want string) {
	t.Helper()
	request, want = strings.ReplaceAll(request, " ", ""), strings.ReplaceAll(want, " ", "")
	raw, err := hex.DecodeString(request)
	if err != nil {
		t.Fatal(err)
	}
	q := identify(raw)
	q.Source = from
	replies, _ := g.answer(q)
	var got strings.Builder
	for _, b := range replies {
		got.WriteString(hex.EncodeToString(b))
	}
	if got.String() != want {
		t.Errorf("%s:\n got %s\nwant %s", request, got.String(), want)
	}
}

// echoed is the answer that echoes the request with a result and a lifetime.
func echoed(request, result, lifetime string) string {
	b := strings.ReplaceAll(request, " ", "")
	tail := strings.Repeat("0", 24)
	if result == "03" { // the end of the client's address stays
		tail = b[24:48]
	}
	return "028" + b[3:4] + "00" + result + lifetime + "000004d2" + tail + b[48:]
}

func TestPCPPackets(t *testing.T) {
	t.Parallel()
	v := pcpVectors
	hour := Config{MaxLifetime: time.Hour}
	neighbour := func(g *Gateway) {
		e := Entry{
			Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.168.1.99:80"),
			External: netip.AddrPortFrom(netip.Addr{}, 80), Remaining: 2 * time.Minute,
		}
		if err := g.AddMapping(e); err != nil {
			t.Error(err)
		}
	}
	fault := func(result int) func(*Gateway) {
		return func(g *Gateway) { g.Inject(Fault{Result: result}) }
	}
	type exchange struct{ request, reply string }
	tests := []struct {
		name      string
		config    Config
		prepare   func(*Gateway)
		from      netip.AddrPort
		exchanges []exchange
	}{
		{"map, renew, delete", hour, nil, vectorClient, []exchange{
			{v["delete"], v["deleted"]},
			{v["map udp"], v["mapped for less"]},
			{v["renewal"], v["mapped for less"]},
			{v["map udp"], v["mapped for less"]},
			{v["delete"], v["deleted"]},
			{v["delete"], v["deleted"]},
		}},
		{"refused by policy", Config{}, fault(2), vectorClient, []exchange{{v["map udp"], v["refused by policy"]}}},
		{"quota", Config{}, fault(10), vectorClient, []exchange{{v["map udp"], v["quota exceeded"]}}},
		{"too many filters", Config{}, fault(13), vectorClient, []exchange{{v["filters"], v["too many filters"]}}},
		{"another nonce", Config{MaxLifetime: 2345 * time.Second}, nil, vectorClient, []exchange{
			{v["map udp"], strings.Replace(v["mapped for less"], "00000e10", "00000929", 1)},
			{
				strings.Replace(v["renewal"], "10111213 14151617 18191a1b", "a0a1a2a3 a4a5a6a7 a8a9aaab", 1),
				v["refused, another nonce"],
			},
		}},
		{"table full", Config{TableLimit: 1}, neighbour, vectorClient, []exchange{{v["map udp"], v["out of resources"]}}},
		{"no address", Config{External: netip.IPv4Unspecified()}, nil, vectorClient, []exchange{
			{v["map udp"], v["network failure"]},
			{v["delete"], v["deleted"]},
		}},
		{"address mismatch", Config{}, nil, netip.MustParseAddrPort("192.168.1.11:40000"), []exchange{
			{v["map udp"], v["address mismatch"]},
			{v["announce"], "0280000c 00000708 000004d2 00000000 0000ffff c0a8010a"},
		}},
		{"another NAT", Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NAT: true}}}, nil, vectorClient, []exchange{{v["map udp"], v["address mismatch"]}}},
		{"prefer failure, taken", Config{}, neighbour, vectorClient, []exchange{{v["prefer failure"], v["cannot provide"]}}},
		{"prefer failure, free", Config{}, nil, vectorClient, []exchange{
			{v["prefer failure"], "0281 0000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"06000000 00500050 00000000 00000000 0000ffff cb007107 02000000"},
		}},
		{"prefer failure of no port", Config{}, nil, vectorClient, []exchange{
			{v["prefer failure of no port"], v["prefer failure of no port, refused"]},
		}},
		{"filters", Config{}, nil, vectorClient, []exchange{
			{v["filters"], "02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"06000000 20fb20fb 00000000 00000000 0000ffff cb007107 " +
				"03000014 00000000 00000000 00000000 00000000 00000000 " +
				"03000014 00780000 00000000 00000000 0000ffff c6336400"},
		}},
		{"third party off", Config{}, nil, vectorClient, []exchange{{v["third party"], v["third party refused"]}}},
		{"third party", Config{Quirks: quirks.Quirks{PCP: quirks.PCP{ThirdParty: true}}}, nil, vectorClient, []exchange{
			{v["third party"], v["third party mapped"]},
		}},
		{"port set, which it does not know", Config{External: netip.MustParseAddr("192.0.2.3")}, nil, vectorClient, []exchange{
			{v["port set"], "02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"11000000 c350c350 00000000 00000000 0000ffff c0000203"},
		}},
		{"description", Config{}, nil, vectorClient, []exchange{
			{v["description"], "02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"11000000 1ae11ae1 00000000 00000000 0000ffff cb007107 80000006 676f206d 61700000"},
		}},
		{"unknown option", Config{}, nil, vectorClient, []exchange{{v["unknown option"], v["unknown option refused"]}}},
		{"option past the end", Config{}, nil, vectorClient, []exchange{
			{v["option past the end"], echoed(v["option past the end"], "06", "00000708")},
		}},
		{"announce", Config{}, nil, vectorClient, []exchange{{v["announce"], v["announced"]}}},
		{"pinhole", Config{}, nil, vectorClient6, []exchange{{v["map ipv6"], v["pinhole"]}}},
		{"another family", Config{}, nil, vectorClient, []exchange{
			{v["map to ipv6"], echoed(v["map to ipv6"], "0b", "00000708")},
		}},
		{"peer", Config{}, nil, vectorClient, []exchange{{v["peer"], v["peer mapped"]}, {v["peer"], v["peer mapped"]}}},
		{"everything", Config{}, nil, vectorClient, []exchange{{v["map everything"], v["everything refused"]}}},
		{"port of all protocols", Config{}, nil, vectorClient, []exchange{
			{v["port of all protocols"], echoed(v["port of all protocols"], "03", "00000708")},
		}},
		{"version 3", Config{}, nil, vectorClient, []exchange{{v["version 3"], v["version 3 refused"]}}},
		{"opcode 9", Config{}, nil, vectorClient, []exchange{
			{"02090000 00000000 00000000 00000000 0000ffff c0a8010a deadbeef", v["opcode 9 refused"]},
			{"02090000 00000000 00000000 00000000 0000ffff c0a8010a dead", "02890003" +
				"00000708 000004d2 00000000 0000ffff c0a8010a dead0000"},
		}},
		{"runts and responses", Config{}, nil, vectorClient, []exchange{
			{v["runt"], ""}, {v["response"], ""}, {"02", ""}, {"", ""}, {v["announced"], ""}, {"0201", ""},
		}},
		{"for ever", Config{}, nil, vectorClient, []exchange{
			{strings.Replace(v["map udp"], "00001c20", "ffffffff", 1), v["mapped for ever"]},
		}},
		{"at most 1100 bytes come back", Config{}, nil, vectorClient, []exchange{
			{v["announce"] + strings.Repeat("00", 1100), "02800003 00000708 000004d2 00000000 0000ffff c0a8010a" +
				strings.Repeat("00", 1076)},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := vectorGateway(t, tt.config)
			if tt.prepare != nil {
				tt.prepare(g)
			}
			for _, x := range tt.exchanges {
				g.exchange(t, tt.from, x.request, x.reply)
			}
		})
	}
}
