package gatewaytest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// FuzzNATPMPHandle feeds the server anything under every quirk.
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
			replies, _ := g.answer(q)
			for _, r := range replies {
				if len(r) < 2 || len(r) > max(24, len(b)+4) {
					t.Fatalf("answer of %d bytes: %x", len(r), r)
				}
				if !on(11) && !on(12) && r[0] != 0 {
					t.Fatalf("answer of version %d: %x", r[0], r)
				}
			}
			g.Advance(time.Hour)
		}
		for e := range g.table.outside {
			if e.Port() == 0 {
				t.Fatal("port 0 in the table")
			}
		}
	})
}
