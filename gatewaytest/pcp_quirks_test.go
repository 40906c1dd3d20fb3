package gatewaytest_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

func TestPCPQuirks(t *testing.T) {
	t.Parallel()
	type config = gatewaytest.Config
	private := netip.MustParseAddr("100.64.0.2")
	for name, tt := range map[string]struct {
		config   config
		edit     func(*pcp.MapRequest)
		result   pcp.ResultCode
		lifetime time.Duration
		external string
	}{
		"private":         {config{External: private}, nil, pcp.Success, 2 * time.Hour, "100.64.0.2:8080"},
		"refuses private": {config{External: private, Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, nil, pcp.NoResources, 30 * time.Second, "100.64.0.2:8080"},
		"private, deleting": {
			config{External: private, Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, unmap, pcp.Success, 0, "0.0.0.0:0",
		},
		"deletes nothing": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{DeleteUnknownNoResources: true}}}, unmap, pcp.NoResources, 30 * time.Second, "0.0.0.0:0"},
		"short-lived errors": {
			config{Quirks: quirks.Quirks{PCP: quirks.PCP{ErrorLifetimeZero: true, NAT: true}}}, nil, pcp.AddressMismatch, 0, "0.0.0.0:8080",
		},
		"short-lived errors, short ones": {
			config{External: netip.IPv4Unspecified(), Quirks: quirks.Quirks{PCP: quirks.PCP{ErrorLifetimeZero: true}}},
			nil,
			pcp.NetworkFailure, 30 * time.Second, "0.0.0.0:8080",
		},
		"prefer failure ignored": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{PreferFailureIgnored: true}}}, func(m *pcp.MapRequest) {
			m.ExternalPort, m.Options.PreferFailure = 9, true
		}, pcp.Success, 2 * time.Hour, "203.0.113.7:10"},
		"all ports refused": {config{}, func(m *pcp.MapRequest) {
			m.InternalPort = 0
		}, pcp.UnsupportedProtocol, 30 * time.Minute, "0.0.0.0:8080"},
		"all ports malformed": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{WildcardMalformed: true}}}, func(m *pcp.MapRequest) {
			m.InternalPort = 0
		}, pcp.MalformedRequest, 30 * time.Minute, "0.0.0.0:8080"},
		"too many filters": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{MaxFilters: 1}}}, func(m *pcp.MapRequest) {
			m.Options.Filters = []pcp.Filter{anyFilter, {Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: netip.MustParsePrefix("192.0.3.0/24")}}
		}, pcp.ExcessiveRemotePeers, 30 * time.Minute, "0.0.0.0:8080"},
		"one filter": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{MaxFilters: 1}}}, func(m *pcp.MapRequest) {
			m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("192.0.3.0/24")}, anyFilter, {Prefix: netip.MustParsePrefix("192.0.2.0/24")}}
		}, pcp.Success, 2 * time.Hour, "203.0.113.7:8080"},
		"third party nowhere": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{ThirdParty: true}}}, func(m *pcp.MapRequest) {
			m.Options.ThirdParty = netip.IPv4Unspecified()
		}, pcp.MalformedRequest, 30 * time.Minute, "0.0.0.0:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := reference(t, tt.config)
			if tt.config.Quirks.PCP.PreferFailureIgnored {
				if err := gw.AddMapping(taken(backends.TCP, 9)); err != nil {
					t.Fatal(err)
				}
			}
			r := newHost(t, gw).pcp(tt.edit)
			want(t, r, tt.result, tt.lifetime)
			if got := netip.AddrPortFrom(r.External, r.ExternalPort).String(); got != tt.external {
				t.Errorf("external %s, want %s", got, tt.external)
			}
			if r.Result == pcp.Success && r.Options.PreferFailure {
				t.Error("prefer failure is said to be done")
			}
		})
	}
}

func TestPCPOptionsEchoed(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{OptionsEchoed: true}}})
	const unknown = "c8000001 ff000000" // option 200
	h := newHost(t, gw)
	h.expect("02010000 00000e10 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 06000000 00500000 "+
		"00000000 00000000 0000ffff 00000000"+unknown,
		"02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b 06000000 00500050 "+
			"00000000 00000000 0000ffff cb007107"+unknown)
}

func TestPCPAnnounceQuirks(t *testing.T) {
	t.Parallel()
	const question = "02000000 00000000 00000000 00000000 0000ffff 7f000001"
	for reply, q := range map[string]quirks.PCP{
		"02800000 00000000 000004d2 00000000 00000000 00000000": {},
		"02800004 00000708 000004d2 00000000 0000ffff 7f000001": {AnnounceUnsupported: true},
		"": {NoAnnounce: true},
	} {
		newHost(t, reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: q}})).expect(question, reply)
	}
}

// Who is asked in the wrong version says so in one of many ways.
func TestVersions(t *testing.T) {
	t.Parallel()
	const pcpMap = "02010000 00001c20 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b " +
		"06000000 00500000 00000000 00000000 0000ffff 00000000"
	pcpMapped := strings.Replace(strings.Replace(pcpMap, "0201", "0281", 1), "00500000", "00500050", 1)
	pcpMapped = strings.Replace(strings.Replace(pcpMapped, "00000000 00000000 0000ffff 7f000001", "000004d2 00000000 00000000 00000000", 1),
		"0000ffff 00000000", "0000ffff cb007107", 1)
	const wrongVersion = "00000708 000004d2 00000000 00000000 00000000"
	type exchange struct{ request, reply string }
	type config = gatewaytest.Config
	noNATPMP, noPCP := []string{"pcp", "upnp"}, []string{"natpmp", "upnp"}
	for name, tt := range map[string]struct {
		config    config
		exchanges []exchange
	}{
		"both": {config{}, []exchange{{"0000", addrReply}, {mapTCP, mapTCPReply}, {pcpMap, pcpMapped}, {"0300", "02800001" + wrongVersion}}},
		"pcp only": {config{Protocols: noNATPMP}, []exchange{
			{"0000", "02800001" + wrongVersion}, {mapTCP, "02820001" + wrongVersion}, {pcpMap, pcpMapped},
		}},
		"pcp only, by name": {config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}}, []exchange{
			{"0000", "02800001" + wrongVersion}, {pcpMap, pcpMapped},
		}},
		"pcp only, truncated": {config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}}, []exchange{
			{"0000", "0280"}, {mapTCP, "02820002 00000708 000004d2"}, {pcpMap, pcpMapped},
		}},
		"nat-pmp only":              {config{Protocols: noPCP}, []exchange{{pcpMap, "00000001 000004d2"}, {"0000", addrReply}}},
		"nat-pmp only, opcode kept": {config{Protocols: noPCP, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorOpcode}}}, []exchange{{pcpMap, "00810001 000004d2"}}},
		"nat-pmp only, silent":      {config{Protocols: noPCP, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorSilent}}}, []exchange{{pcpMap, ""}}},
		"the draft's version": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{VersionOne: true}}}, []exchange{
			{pcpMap, strings.Replace(pcpMap, "02010000 00001c20 00000000", "01810001 00000708 000004d2", 1)},
			{"0000", addrReply},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, reference(t, tt.config))
			for _, x := range tt.exchanges {
				h.expect(x.request, x.reply)
			}
		})
	}
}
