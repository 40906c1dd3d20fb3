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

// newVectorGateway returns a gateway for the test vectors. It does not listen.
func newVectorGateway(t testing.TB, config Config) *Gateway {
	t.Helper()
	config.ManualClock, config.Uptime = true, 1234*time.Second
	if !config.External.IsValid() {
		config.External = netip.MustParseAddr("203.0.113.7")
	}
	config, err := config.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(config)
	t.Cleanup(g.stop)
	return g
}

// checkExchange handles a request and checks the response. An empty response means that
// there must be none.
func (g *Gateway) checkExchange(t *testing.T, from netip.AddrPort, request, want string) {
	t.Helper()
	request, want = strings.ReplaceAll(request, " ", ""), strings.ReplaceAll(want, " ", "")
	raw, err := hex.DecodeString(request)
	if err != nil {
		t.Fatal(err)
	}
	q := identify(raw)
	q.Source = from
	replies, _ := g.respond(q)
	var got strings.Builder
	for _, b := range replies {
		got.WriteString(hex.EncodeToString(b))
	}
	if got.String() != want {
		t.Errorf("%s:\n got %s\nwant %s", request, got.String(), want)
	}
}

// echoedError returns the error response that copies the request, with a result and a
// lifetime.
func echoedError(request, result, lifetime string) string {
	hexRequest := strings.ReplaceAll(request, " ", "")
	clientField := strings.Repeat("0", 24)
	if result == "03" { // the last 12 bytes of the client's address are kept
		clientField = hexRequest[24:48]
	}
	return "028" + hexRequest[3:4] + "00" + result + lifetime + "000004d2" + clientField + hexRequest[48:]
}

func TestPCPPackets(t *testing.T) {
	t.Parallel()
	v := pcpVectors
	hour := Config{MaxLifetime: time.Hour}
	addOtherHost := func(g *Gateway) {
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
			{v["map udp"], v["mapped for shorter lifetime"]},
			{v["renewal"], v["mapped for shorter lifetime"]},
			{v["map udp"], v["mapped for shorter lifetime"]},
			{v["delete"], v["deleted"]},
			{v["delete"], v["deleted"]},
		}},
		{"refused by policy", Config{}, fault(2), vectorClient, []exchange{{v["map udp"], v["refused by policy"]}}},
		{"quota", Config{}, fault(10), vectorClient, []exchange{{v["map udp"], v["quota exceeded"]}}},
		{"too many filters", Config{}, fault(13), vectorClient, []exchange{{v["filters"], v["too many filters"]}}},
		{"another nonce", Config{MaxLifetime: 2345 * time.Second}, nil, vectorClient, []exchange{
			{v["map udp"], strings.Replace(v["mapped for shorter lifetime"], "00000e10", "00000929", 1)},
			{
				strings.Replace(v["renewal"], "10111213 14151617 18191a1b", "a0a1a2a3 a4a5a6a7 a8a9aaab", 1),
				v["refused, another nonce"],
			},
		}},
		{"table full", Config{TableLimit: 1}, addOtherHost, vectorClient, []exchange{{v["map udp"], v["out of resources"]}}},
		{"no external address", Config{External: netip.IPv4Unspecified()}, nil, vectorClient, []exchange{
			{v["map udp"], v["network failure"]},
			{v["delete"], v["deleted"]},
		}},
		{"address mismatch", Config{}, nil, netip.MustParseAddrPort("192.168.1.11:40000"), []exchange{
			{v["map udp"], v["address mismatch"]},
			{v["announce"], "0280000c 00000708 000004d2 00000000 0000ffff c0a8010a"},
		}},
		{"another NAT", Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NAT: true}}}, nil, vectorClient, []exchange{{v["map udp"], v["address mismatch"]}}},
		{"prefer failure, taken", Config{}, addOtherHost, vectorClient, []exchange{{v["prefer failure"], v["cannot provide"]}}},
		{"prefer failure, free", Config{}, nil, vectorClient, []exchange{
			{v["prefer failure"], "0281 0000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"06000000 00500050 00000000 00000000 0000ffff cb007107 02000000"},
		}},
		{"prefer failure without port", Config{}, nil, vectorClient, []exchange{
			{v["prefer failure without port"], v["prefer failure without port, refused"]},
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
		{"port set, not supported", Config{External: netip.MustParseAddr("192.0.2.3")}, nil, vectorClient, []exchange{
			{v["port set"], "02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"11000000 c350c350 00000000 00000000 0000ffff c0000203"},
		}},
		{"description", Config{}, nil, vectorClient, []exchange{
			{v["description"], "02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b " +
				"11000000 1ae11ae1 00000000 00000000 0000ffff cb007107 80000008 676f206d 61702020"},
		}},
		{"unknown option", Config{}, nil, vectorClient, []exchange{{v["unknown option"], v["unknown option refused"]}}},
		{"option past the end", Config{}, nil, vectorClient, []exchange{
			{v["option past the end"], echoedError(v["option past the end"], "06", "00000708")},
		}},
		{"announce", Config{}, nil, vectorClient, []exchange{{v["announce"], v["announced"]}}},
		{"pinhole", Config{}, nil, vectorClient6, []exchange{{v["map ipv6"], v["pinhole"]}}},
		{"another address family", Config{}, nil, vectorClient, []exchange{
			{v["map to ipv6"], echoedError(v["map to ipv6"], "0b", "00000708")},
		}},
		{"peer", Config{}, nil, vectorClient, []exchange{{v["peer"], v["peer mapped"]}, {v["peer"], v["peer mapped"]}}},
		{"all protocols", Config{}, nil, vectorClient, []exchange{{v["map all protocols"], v["all protocols refused"]}}},
		{"port of all protocols", Config{}, nil, vectorClient, []exchange{
			{v["port of all protocols"], echoedError(v["port of all protocols"], "03", "00000708")},
		}},
		{"version 3", Config{}, nil, vectorClient, []exchange{{v["version 3"], v["version 3 refused"]}}},
		{"opcode 9", Config{}, nil, vectorClient, []exchange{
			{"02090000 00000000 00000000 00000000 0000ffff c0a8010a deadbeef", v["opcode 9 refused"]},
			{"02090000 00000000 00000000 00000000 0000ffff c0a8010a dead", "02890003" +
				"00000708 000004d2 00000000 0000ffff c0a8010a dead0000"},
		}},
		{"short packets and responses", Config{}, nil, vectorClient, []exchange{
			{v["short packet"], ""}, {v["response"], ""}, {"02", ""}, {"", ""}, {v["announced"], ""}, {"0201", ""},
		}},
		{"infinite lifetime", Config{}, nil, vectorClient, []exchange{
			{strings.Replace(v["map udp"], "00001c20", "ffffffff", 1), v["mapped without expiry"]},
		}},
		{"response limited to 1100 bytes", Config{}, nil, vectorClient, []exchange{
			{v["announce"] + strings.Repeat("00", 1100), "02800003 00000708 000004d2 00000000 0000ffff c0a8010a" +
				strings.Repeat("00", 1076)},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newVectorGateway(t, tt.config)
			if tt.prepare != nil {
				tt.prepare(g)
			}
			for _, x := range tt.exchanges {
				g.checkExchange(t, tt.from, x.request, x.reply)
			}
		})
	}
}

// pcpVectors are messages that follow the diagrams of RFC 6887 (sections 7 and 11 to
// 14), RFC 7220 and RFC 7753. They are for the client 192.168.1.10 or 2001:db8:1:2::10,
// the external address 203.0.113.7 and the epoch 1234.
var pcpVectors = map[string]string{
	"map udp": "" +
		"02010000 00001c20 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"mapped for shorter lifetime": "" +
		"02810000 00000e10 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae11ae1 00000000 " +
		"00000000 0000ffff cb007107",
	"renewal": "" +
		"02010000 00001c20 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae11ae1 00000000 " +
		"00000000 0000ffff cb007107",
	"delete": "" +
		"02010000 00000000 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"deleted": "" +
		"02810000 00000000 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"refused by policy": "" +
		"02810002 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"refused, another nonce": "" +
		"02810002 00000929 000004d2 00000000 " +
		"00000000 00000000 a0a1a2a3 a4a5a6a7 " +
		"a8a9aaab 11000000 1ae11ae1 00000000 " +
		"00000000 0000ffff cb007107",
	"out of resources": "" +
		"02810008 0000001e 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"network failure": "" +
		"02810007 0000001e 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"quota exceeded": "" +
		"0281000a 0000001e 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"address mismatch": "" +
		"0281000c 00000708 000004d2 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"prefer failure": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 06000000 00500050 00000000 " +
		"00000000 0000ffff cb007107 02000000",
	"cannot provide": "" +
		"0281000b 00000078 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 06000000 00500050 00000000 " +
		"00000000 0000ffff cb007107 02000000",
	"prefer failure without port": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 06000000 00500000 00000000 " +
		"00000000 0000ffff 00000000 02000000",
	"prefer failure without port, refused": "" +
		"02810006 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 06000000 00500000 00000000 " +
		"00000000 0000ffff 00000000 02000000",
	"filters": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 06000000 20fb0000 00000000 " +
		"00000000 0000ffff 00000000 03000014 " +
		"00000000 00000000 00000000 00000000 " +
		"00000000 03000014 00780000 00000000 " +
		"00000000 0000ffff c6336400",
	"too many filters": "" +
		"0281000d 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 06000000 20fb0000 00000000 " +
		"00000000 0000ffff 00000000 03000014 " +
		"00000000 00000000 00000000 00000000 " +
		"00000000 03000014 00780000 00000000 " +
		"00000000 0000ffff c6336400",
	"third party": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 13880000 00000000 " +
		"00000000 0000ffff 00000000 01000010 " +
		"00000000 00000000 0000ffff c0a80114",
	"third party refused": "" +
		"02810005 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 13880000 00000000 " +
		"00000000 0000ffff 00000000 01000010 " +
		"00000000 00000000 0000ffff c0a80114",
	"third party mapped": "" +
		"02810000 00000e10 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 13881388 00000000 " +
		"00000000 0000ffff cb007107 01000010 " +
		"00000000 00000000 0000ffff c0a80114",
	"port set": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 c3500000 00000000 " +
		"00000000 0000ffff 00000000 82000005 " +
		"0064c350 00000000",
	"description": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000 80000006 " +
		"676f206d 61700000",
	"unknown option": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000 64000004 " +
		"01020304",
	"unknown option refused": "" +
		"02810005 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000 64000004 " +
		"01020304",
	"option past the end": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000 030000c8",
	"announce": "" +
		"02000000 00000000 00000000 00000000 " +
		"0000ffff c0a8010a",
	"announced": "" +
		"02800000 00000000 000004d2 00000000 " +
		"00000000 00000000",
	"announcement after a restart": "" +
		"02800000 00000000 00000000 00000000 " +
		"00000000 00000000",
	"map ipv6": "" +
		"02010000 00001c20 20010db8 00010002 " +
		"00000000 00000010 10111213 14151617 " +
		"18191a1b 06000000 208d0000 00000000 " +
		"00000000 00000000 00000000",
	"pinhole": "" +
		"02810000 00001c20 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 06000000 208d208d 20010db8 " +
		"00010002 00000000 00000010",
	"map to ipv6": "" +
		"02010000 00001c20 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 06000000 208d0000 00000000 " +
		"00000000 00000000 00000000",
	"peer": "" +
		"02020000 00000258 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 9c400000 00000000 " +
		"00000000 0000ffff 00000000 0d960000 " +
		"00000000 00000000 0000ffff c6336409",
	"peer mapped": "" +
		"02820000 00000258 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 9c409c40 00000000 " +
		"00000000 0000ffff cb007107 0d960000 " +
		"00000000 00000000 0000ffff c6336409",
	"map all protocols": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 00000000 00000000 00000000 " +
		"00000000 0000ffff 00000000",
	"all protocols refused": "" +
		"02810009 00000708 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 00000000 00000000 00000000 " +
		"00000000 0000ffff 00000000",
	"port of all protocols": "" +
		"02010000 00000e10 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 00000000 00500000 00000000 " +
		"00000000 0000ffff 00000000",
	"version 3": "" +
		"03010000 00001c20 00000000 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"version 3 refused": "" +
		"02810001 00000708 000004d2 00000000 " +
		"0000ffff c0a8010a 10111213 14151617 " +
		"18191a1b 11000000 1ae10000 00000000 " +
		"00000000 0000ffff 00000000",
	"opcode 9 refused": "" +
		"02890004 00000708 000004d2 00000000 " +
		"0000ffff c0a8010a deadbeef",
	"short packet": "" +
		"02010000",
	"mapping update": "" +
		"02810000 00000bb8 00000028 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae11af4 00000000 " +
		"00000000 0000ffff cb007163",
	"mapped without expiry": "" +
		"02810000 ffffffff 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae11ae1 00000000 " +
		"00000000 0000ffff cb007107",
	"response": "" +
		"02810000 00000e10 000004d2 00000000 " +
		"00000000 00000000 10111213 14151617 " +
		"18191a1b 11000000 1ae11ae1 00000000 " +
		"00000000 0000ffff cb00",
}
