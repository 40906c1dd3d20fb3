package gatewaytest_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	mapTCP  = "0002 0000 1f90 1f90 00001c20" // 8080 to 8080, 7200 s
	mapTCP2 = "0002 0000 1f90 0051 00001c20" // the same, with another requested port
	mapUDP  = "0001 0000 1ae1 1ae1 00001c20" // 6881 to 6881
)

// TestNATPMPPackets checks the responses byte by byte. The packets follow the diagrams
// of RFC 6886.
func TestNATPMPPackets(t *testing.T) {
	t.Parallel()
	type exchange struct{ request, reply string }
	tests := []struct {
		name      string
		config    gatewaytest.Config
		otherHost []gatewaytest.Entry
		exchanges []exchange
	}{
		{"external address", gatewaytest.Config{}, nil, []exchange{{"0000", "0080 0000 000004d2 cb007107"}}},
		{"no external address", gatewaytest.Config{External: netip.IPv4Unspecified()}, nil, []exchange{
			{"0000", "0080 0003 000004d2 00000000"},
			{mapUDP, "0081 0003 000004d2 1ae1 0000 00000000"},
			{"0001 0000 1ae1 0000 00000000", "0081 0000 000004d2 1ae1 0000 00000000"},
		}},
		{"map", gatewaytest.Config{}, nil, []exchange{
			{mapUDP, "0081 0000 000004d2 1ae1 1ae1 00001c20"},
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
			{"0002 ffff 1f90 1f90 00001c20", "0082 0000 000004d2 1f90 1f90 00001c20"}, // the reserved field is ignored
			{mapTCP2, "0082 0000 000004d2 1f90 1f90 00001c20"},                        // the port already assigned
			{"0001 0000 1f90 1f90 00001c20", "0081 0000 000004d2 1f90 1f90 00001c20"}, // the host may have the same port of the other protocol
			{"0002 0000 1f91 1f90 00001c20", "0082 0000 000004d2 1f91 1f91 00001c20"}, // the host itself has already mapped the port
			{"0002 0000 0050 0000 ffffffff", "0082 0000 000004d2 0050 c000 ffffffff"}, // any high port; the lifetime is not limited
		}},
		{"port taken", gatewaytest.Config{}, []gatewaytest.Entry{otherHostEntry(backends.UDP, 6881), otherHostEntry(backends.UDP, 6882)}, []exchange{
			{mapUDP, "0081 0000 000004d2 1ae1 1ae3 00001c20"},
		}},
		{"port of the other protocol taken", gatewaytest.Config{}, []gatewaytest.Entry{otherHostEntry(backends.TCP, 6881)}, []exchange{
			{mapUDP, "0081 0000 000004d2 1ae1 1ae2 00001c20"},
		}},
		{"last port taken", gatewaytest.Config{}, []gatewaytest.Entry{otherHostEntry(backends.UDP, 65535)}, []exchange{
			{"0001 0000 1ae1 ffff 00001c20", "0081 0000 000004d2 1ae1 0400 00001c20"},
		}},
		{"lifetime bounds", gatewaytest.Config{MinLifetime: 2 * time.Minute, MaxLifetime: time.Hour}, nil, []exchange{
			{mapUDP, "0081 0000 000004d2 1ae1 1ae1 00000e10"},
			{"0001 0000 1ae1 1ae1 00000001", "0081 0000 000004d2 1ae1 1ae1 00000078"},
		}},
		{"table limit", gatewaytest.Config{TableLimit: 1}, nil, []exchange{
			{mapUDP, "0081 0000 000004d2 1ae1 1ae1 00001c20"},
			{mapTCP, "0082 0004 000004d2 1f90 0000 00000000"},
			{mapUDP, "0081 0000 000004d2 1ae1 1ae1 00001c20"},
		}},
		{"delete", gatewaytest.Config{}, nil, []exchange{
			{"0002 0000 1f90 0000 00000000", "0082 0000 000004d2 1f90 0000 00000000"}, // there is no such mapping
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
			{"0002 0000 1f90 1f90 00000000", "0082 0002 000004d2 1f90 0000 00000000"}, // a deletion must not name the external port
			{"0002 0000 1f90 0000 00000000", "0082 0000 000004d2 1f90 0000 00000000"},
			{mapTCP2, "0082 0000 000004d2 1f90 0051 00001c20"}, // the mapping has been deleted: another port is assigned
		}},
		{"delete with external port", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{AnyDeletePort: true}}}, nil, []exchange{
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
			{"0002 0000 1f90 1f90 00000000", "0082 0000 000004d2 1f90 0000 00000000"},
		}},
		{"delete all", gatewaytest.Config{}, nil, []exchange{
			{"0001 0000 0000 0000 00000000", "0081 0000 000004d2 0000 0000 00000000"},
		}},
		{"map port 0", gatewaytest.Config{}, nil, []exchange{
			{"0001 0000 0000 1ae1 00001c20", "0081 0002 000004d2 0000 0000 00000000"},
		}},
		{"unknown version", gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}}, nil, []exchange{
			{"0100", "0000 0001 000004d2"},
			{"0281 0000 00000000", "0000 0001 000004d2"}, // the version is checked before the opcode
		}},
		{"unknown version, request opcode", gatewaytest.Config{
			Protocols: []string{"natpmp", "upnp"}, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorOpcode}},
		}, nil, []exchange{
			{"0201 0000 00000e10", "0081 0001 000004d2"},
		}},
		{"unknown version, silent", gatewaytest.Config{
			Protocols: []string{"natpmp", "upnp"}, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorSilent}},
		}, nil, []exchange{
			{"0201 0000 00000e10", ""},
		}},
		{"responses and short packets", gatewaytest.Config{}, nil, []exchange{
			{"0080", ""}, {"0085 0000", ""}, {"00ff", ""}, {"00", ""}, {"", ""}, {"0001 0000 1ae1 1ae1 00001c", ""},
		}},
		{"unknown opcode", gatewaytest.Config{}, nil, []exchange{
			{"0005 0000", "0085 0005"},
			{"0005", "0085 0005"},
			{"0003 1234 deadbeef 01", "0083 0005 deadbeef 01"},
		}},
		{"unknown opcode, short", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{ShortOpcodeError: true}}}, nil, []exchange{
			{"0005 0000", "0085 0005 000004d2"},
		}},
		{"several ports", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{MultiplePorts: true}}}, nil, []exchange{
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
			{mapTCP2, "0082 0000 000004d2 1f90 0051 00001c20"},
			{"0002 0000 1f90 0000 00001c20", "0082 0000 000004d2 1f90 1f90 00001c20"},
		}},
		{"private address", gatewaytest.Config{External: netip.MustParseAddr("192.168.0.2")}, nil, []exchange{
			{"0000", "0080 0000 000004d2 c0a80002"},
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
		}},
		{"private address refused", gatewaytest.Config{
			External: netip.MustParseAddr("100.64.0.2"), Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{RefusePrivate: true}},
		}, nil, []exchange{
			{"0000", "0080 0003 000004d2 00000000"},
			{mapTCP, "0082 0003 000004d2 1f90 0000 00000000"},
		}},
		{"errors echo the request", gatewaytest.Config{
			External: netip.IPv4Unspecified(), Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{EchoErrors: true}},
		}, nil, []exchange{
			{mapTCP, "0082 0003 000004d2 1f90 1f90 00001c20"},
		}},
		{"low byte", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{LowByte: true}}}, nil, []exchange{
			{mapTCP, "0082 0000 000004d2 0090 0090 00001c20"},
		}},
		{"epoch stuck", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{EpochStuck: true}}}, nil, []exchange{
			{"0000", "0080 0000 00000000 cb007107"},
		}},
		{"epoch back", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{EpochBack: true}}}, nil, []exchange{
			{"0000", "0080 0000 000008ba cb007107"},
			{"0000", "0080 0000 000004d2 cb007107"},
			{mapTCP, "0082 0000 000008ba 1f90 1f90 00001c20"},
		}},
		{"external address zero", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{ExternalZero: true}}}, nil, []exchange{
			{"0000", "0080 0000 000004d2 00000000"},
			{mapTCP, "0082 0000 000004d2 1f90 1f90 00001c20"},
		}},
		{"vpn", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VPN: true}}}, nil, []exchange{
			{"0001 0000 0000 0001 0000003c", "0081 0000 000004d2 0000 c000 0000003c"},
			{"0002 0000 0000 0001 0000003c", "0082 0000 000004d2 0000 c000 0000003c"},
			{"0002 0000 1f90 0000 00001c20", "0082 0000 000004d2 0000 c000 0000003c"},
			{"0002 0000 0000 0000 00000000", "0082 0000 000004d2 0000 0000 00000000"},
		}},
		{"pcp only", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}}, nil, []exchange{
			{"0000", "02800001 00000708 000004d2 00000000 00000000 00000000"},
			{mapUDP, "02810001 00000708 000004d2 00000000 00000000 00000000"},
		}},
		{"pcp only, truncated", gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}}, nil, []exchange{
			{"0000", "0280"},
			{mapUDP, "02810002 00000708 000004d2"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			gw := startReference(t, tt.config)
			for _, e := range tt.otherHost {
				if err := gw.AddMapping(e); err != nil {
					t.Fatal(err)
				}
			}
			h := newHost(t, gw)
			for _, x := range tt.exchanges {
				h.expect(x.request, x.reply)
			}
		})
	}
}

func TestNATPMPRequestsNotHandled(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Admit: func(netip.Addr) bool { return false }})
	h := newHost(t, gw)
	h.send("0000")
	h.send(mapTCP)
	if _, err := gw.AwaitRequests(testContext(t), 2, nil); err != nil {
		t.Fatal(err)
	}
	if s := gw.Stats(); s.Ignored != 2 || s.Replies != 0 || len(gw.Table()) != 0 {
		t.Errorf("requests of a host that is not admitted were handled: %+v, %v", s, gw.Table())
	}

	upnpOnly := startReference(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	newHost(t, upnpOnly).send("0000")
	if _, err := upnpOnly.AwaitRequests(testContext(t), 1, nil); err != nil {
		t.Fatal(err)
	}
	if s := upnpOnly.Stats(); s.Ignored != 1 || s.Replies != 0 {
		t.Errorf("response of a gateway without NAT-PMP and PCP: %+v", s)
	}
}

func TestNATPMPDeleteAll(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	if err := gw.AddMapping(otherHostEntry(backends.TCP, 80)); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, gw)
	h.request(mapTCP)
	h.request("0002 0000 1f91 1f91 00001c20")
	h.request(mapUDP)
	h.expect("0002 0000 0000 0000 00000000", "0082 0000 000004d2 0000 0000 00000000")
	var remaining []string
	for _, e := range gw.Table() {
		remaining = append(remaining, e.Protocol.String()+" "+e.External.String())
	}
	// The mappings of the other host and of the other protocol are kept.
	if len(remaining) != 2 || remaining[0] != "tcp 203.0.113.7:80" || remaining[1] != "udp 203.0.113.7:6881" {
		t.Errorf("remaining entries: %v", remaining)
	}

	// A static mapping is kept, with result 2; the others are deleted.
	static := gatewaytest.Entry{
		Protocol: backends.UDP, Internal: netip.MustParseAddrPort("127.0.0.1:53"), External: externalPort(53), Static: true,
	}
	if err := gw.AddMapping(static); err != nil {
		t.Fatal(err)
	}
	h.expect("0001 0000 0035 0000 00000000", "0081 0002 000004d2 0035 0000 00000000")
	h.expect("0001 0000 0000 0000 00000000", "0081 0002 000004d2 0000 0000 00000000")
	h.expect("0001 0000 0035 1234 00001c20", "0081 0000 000004d2 0035 0035 00001c20")
	if all := gw.Table(); len(all) != 2 || !all[1].Static || all[1].Remaining != backends.Forever {
		t.Errorf("remaining entries: %v", all)
	}
}
