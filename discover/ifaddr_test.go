package discover

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

// RTM_NEWADDR messages as struct ifaddrmsg lays them out, little-endian:
// family, prefix length, flags, scope, index; then attributes.
func TestParseIfaddr(t *testing.T) {
	const (
		addr = "1400 0100 20010db8 00000000 00000000 00000010" // IFA_ADDRESS
		all  = "0800 0800 "                                    // IFA_FLAGS
	)
	for name, test := range map[string]struct {
		message string
		want    ifaddr
		lasting bool
	}{
		"permanent": {"0a 40 80 00 02000000" + addr + all + "80000000", ifaddr{2, netip.MustParseAddr("2001:db8::10"), 0x80}, true},
		"managed":   {"0a 40 00 00 02000000" + addr + all + "00010000", ifaddr{2, netip.MustParseAddr("2001:db8::10"), 0x100}, true},
		"temporary": {"0a 40 01 00 03000000" + addr + all + "01000000", ifaddr{3, netip.MustParseAddr("2001:db8::10"), 1}, false},
		"old form":  {"0a 40 20 00 03000000" + addr, ifaddr{3, netip.MustParseAddr("2001:db8::10"), 0x20}, false},
		"IPv4":      {"02 18 80 00 02000000 0800 0100 c0000201", ifaddr{2, netip.MustParseAddr("192.0.2.1"), 0x80}, true},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(test.message, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseIfaddr(b, binary.LittleEndian)
		if err != nil || got != test.want || got.lasting() != test.lasting {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
		for n := range b { // no prefix panics, and none has an address that the whole has not
			if cut, err := parseIfaddr(b[:n], binary.LittleEndian); err == nil && cut.addr.IsValid() && cut.addr != got.addr {
				t.Errorf("%s, %d bytes: %+v", name, n, cut)
			}
		}
	}
}
