package reach

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// Tables of the IP helper API, laid out by hand from tcpmib.h, udpmib.h and iprtrmib.h.
var winTables = map[string]struct {
	protocol backends.Protocol
	is6      bool
	hex      string
	want     []socket // at port 8080
}{
	"MIB_TCPTABLE_OWNER_PID": {
		protocol: backends.TCP, hex: `
		06000000                                                // dwNumEntries
		02000000 00000000 1f900000 00000000 a55a0000 d2040000   // LISTEN 0.0.0.0:8080; the remote port has no meaning
		02000000 7f000001 1f900000 00000000 00000000 d2040000   // LISTEN 127.0.0.1:8080
		02000000 00000000 901f0000 00000000 00000000 d2040000   // LISTEN 0.0.0.0:36895
		05000000 c0a80107 1f90ffff 2e2e2e01 d431ffff d2040000   // ESTAB, the upper half of a port has no meaning
		04000000 c0a80107 1f900000 2e2e2e02 d4320000 00000000   // SYN_RCVD
		0b000000 c0a80107 1f900000 2e2e2e03 d4330000 00000000   // TIME_WAIT`,
		want: []socket{
			{local: netip.MustParseAddr("0.0.0.0"), remote: netip.MustParseAddrPort("0.0.0.0:42330"), listens: true},
			{local: netip.MustParseAddr("127.0.0.1"), remote: netip.MustParseAddrPort("0.0.0.0:0"), listens: true},
			{local: netip.MustParseAddr("192.168.1.7"), remote: netip.MustParseAddrPort("46.46.46.1:54321"), open: true},
			{local: netip.MustParseAddr("192.168.1.7"), remote: netip.MustParseAddrPort("46.46.46.2:54322")},
			{local: netip.MustParseAddr("192.168.1.7"), remote: netip.MustParseAddrPort("46.46.46.3:54323"), open: true},
		},
	},
	"MIB_TCP6TABLE_OWNER_PID": {
		protocol: backends.TCP, is6: true, hex: `
		04000000
		00000000000000000000000000000000 00000000 1f900000        // ucLocalAddr [::], dwLocalScopeId, dwLocalPort
		00000000000000000000000000000000 00000000 00000000        // remote
		02000000 d2040000                                         // LISTEN, dwOwningPid
		fe800000000000000000000000000007 0c000000 1f900000
		fe800000000000000000000000000001 0c000000 d4310000
		05000000 d2040000                                         // ESTAB
		00000000000000000000ffffc0a80107 00000000 1f900000
		00000000000000000000ffff2e2e2e01 00000000 d4320000
		08000000 d2040000                                         // CLOSE_WAIT, IPv4-mapped
		20010db8000000000000000000000001 00000000 d4310000
		20010db8000000000000000000000002 00000000 1f900000
		05000000 d2040000                                         // the remote port is 8080`,
		want: []socket{
			{local: netip.MustParseAddr("::"), remote: netip.MustParseAddrPort("[::]:0"), listens: true},
			{local: netip.MustParseAddr("fe80::7"), remote: netip.MustParseAddrPort("[fe80::1]:54321"), open: true},
			{local: netip.MustParseAddr("192.168.1.7"), remote: netip.MustParseAddrPort("46.46.46.1:54322"), open: true},
		},
	},
	"MIB_UDPTABLE_OWNER_PID": {
		protocol: backends.UDP, hex: `
		03000000
		00000000 1f900000 d2040000   // dwLocalAddr, dwLocalPort, dwOwningPid
		00000000 14e90000 d2040000
		c0a80107 1f900000 d2040000`,
		want: []socket{
			{local: netip.MustParseAddr("0.0.0.0"), listens: true},
			{local: netip.MustParseAddr("192.168.1.7"), listens: true},
		},
	},
	"MIB_UDP6TABLE_OWNER_PID": {
		protocol: backends.UDP, is6: true, hex: `
		02000000
		00000000000000000000000000000000 00000000 1f900000 d2040000
		fe800000000000000000000000000007 0c000000 1f900000 d2040000`,
		want: []socket{
			{local: netip.MustParseAddr("::"), listens: true},
			{local: netip.MustParseAddr("fe80::7"), listens: true},
		},
	},
}

func TestParseIPHelper(t *testing.T) {
	t.Parallel()
	for name, tt := range winTables {
		b := unhex(t, tt.hex)
		got, err := parseIPHelper(append(slices.Clone(b), 1, 2, 3), tt.protocol, tt.is6, 8080) // the buffer is longer than the table
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %+v\nwant %+v", name, err, got, tt.want)
		}
		for n := range b {
			if got, err := parseIPHelper(b[:n], tt.protocol, tt.is6, 8080); !errors.Is(err, errMalformed) {
				t.Errorf("%s: cut to %d bytes: %+v, %v", name, n, got, err)
			}
		}
		if got, err := parseIPHelper(make([]byte, 4), tt.protocol, tt.is6, 0); err != nil || len(got) > 0 {
			t.Errorf("%s: an empty table: %+v, %v", name, got, err)
		}
		if got, err := parseIPHelper(append([]byte{255, 255, 255, 255}, b...), tt.protocol, tt.is6, 8080); !errors.Is(err, errMalformed) {
			t.Errorf("%s: too many rows: %+v, %v", name, got, err)
		}
	}
}

func FuzzParseIPHelper(f *testing.F) {
	for _, tt := range winTables {
		f.Add(unhex(f, tt.hex), uint16(8080))
	}
	f.Fuzz(func(t *testing.T, b []byte, port uint16) {
		for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
			for _, is6 := range []bool{false, true} {
				all, err := parseIPHelper(b, p, is6, port)
				if err != nil && len(all) > 0 {
					t.Errorf("%+v and %v", all, err)
				}
				for _, s := range all {
					checkSocket(t, s)
				}
			}
		}
	})
}

// checkSocket checks what is true for each row of every table.
func checkSocket(t *testing.T, s socket) {
	t.Helper()
	if !s.local.IsValid() || s.local.Is4In6() || s.local.Zone() != "" || s.listens && s.open || s.open && (!s.remote.IsValid() || s.remote.Port() == 0) {
		t.Errorf("%+v", s)
	}
}

// unhex decodes hexadecimal numbers with comments.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(s) {
		code, _, _ := strings.Cut(line, "//")
		digits.WriteString(strings.Join(strings.Fields(code), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
