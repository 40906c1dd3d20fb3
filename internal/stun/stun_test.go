package stun

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

// unhex decodes hexadecimal digits with spaces.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The responses of RFC 5769 §2.2 and §2.3. Each ends with MESSAGE-INTEGRITY and FINGERPRINT.
const (
	vector4 = "0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 00200008 0001a147e112a643" +
		"00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96"
	vector6 = "01010048 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220 00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9" +
		"00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c"
)

// Messages of coturn 4.6.1: the responses of turnserver, and the requests of turnutils_natdiscovery.
const (
	coturn4 = "01010048 2112a442 000102030405060708090a0b 00200008 0001bd530c3f8940 00010008 00019c412d2d2d02" +
		"802b0008 00010d962d2d2d02 802c0008 00010d972d2d2d03 80220014 436f7475726e2d342e362e312027476f72737427"
	coturn6 = "01010078 2112a442 000102030405060708090a0b 00200014 0002bd530b1ed335000302030405060708090a09" +
		"00010014 00029c412a0c7777000200000000000000000002 802b0014 00020d962a0c7777000200000000000000000002" +
		"802c0014 00020d972a0c7777000200000000000000000003 80220014 436f7475726e2d342e362e312027476f72737427"
	coturnError = "0111003c 2112a442 000102030405060708090a0b 00090018 00000414556e6b6e6f776e20417474726962757465000000" +
		"000a0002 77770000 80220014 436f7475726e2d342e362e312027476f72737427"

	coturnPlain        = "00010000 2112a442 70ccfdc90c441989bb90951b"
	coturnChange       = "00010008 2112a442 1f414d2eececd4a0e6a46d73 00030004 00000006"
	coturnResponsePort = "00010008 2112a442 d1c5a6d017ef2aa76c4ca254 00270004 d4c80000"
)

func TestParseResponse(t *testing.T) {
	for name, tt := range map[string]struct {
		message string
		want    Response
	}{
		"RFC 5769, IPv4": {vector4, Response{Mapped: netip.MustParseAddrPort("192.0.2.1:32853")}},
		"RFC 5769, IPv6": {vector6, Response{Mapped: netip.MustParseAddrPort("[2001:db8:1234:5678:11:2233:4455:6677]:32853")}},
		"coturn, IPv4": {coturn4, Response{
			Mapped: netip.MustParseAddrPort("45.45.45.2:40001"), Other: netip.MustParseAddrPort("45.45.45.3:3479"),
		}},
		"coturn, IPv6": {coturn6, Response{
			Mapped: netip.MustParseAddrPort("[2a0c:7777:2::2]:40001"), Other: netip.MustParseAddrPort("[2a0c:7777:2::3]:3479"),
		}},
		"coturn, error": {coturnError, Response{Code: 420, Reason: "Unknown Attribute"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := unhex(t, tt.message)
			if got, err := ParseResponse(b); err != nil || got != tt.want {
				t.Errorf("%+v, %v, want %+v", got, err, tt.want)
			}
			if id, ok := IDOf(b); !ok || id.First() != string(b[4:20]) {
				t.Errorf("ID %x, %v", id, ok)
			}
			for n := range b { // a truncated message is an error
				if got, err := ParseResponse(b[:n]); err == nil || got != (Response{}) {
					t.Errorf("%d of %d bytes: %+v, %v", n, len(b), got, err)
				}
				if n < 20 {
					continue
				}
				short := append([]byte(nil), b[:n]...) // the length fits, the last attribute does not
				binary.BigEndian.PutUint16(short[2:], uint16(n-20))
				if got, err := ParseResponse(short); err == nil && n%4 != 0 {
					t.Errorf("%d bytes: %+v", n, got)
				}
			}
			if got, err := ParseResponse(append(b, 0, 0, 0, 0)); err == nil {
				t.Errorf("a message with bytes behind it: %+v", got)
			}
		})
	}
}

// TestVectors checks that the vectors were copied correctly: each ends with a checksum of itself.
func TestVectors(t *testing.T) {
	for _, v := range []string{vector4, vector6} {
		b := unhex(t, v)
		if sum := crc32.ChecksumIEEE(b[:len(b)-8]) ^ 0x5354554e; sum != binary.BigEndian.Uint32(b[len(b)-4:]) {
			t.Errorf("fingerprint %x in %s", sum, v)
		}
	}
}

// TestRequest compares requests with those of another client.
func TestRequest(t *testing.T) {
	for _, tt := range []struct {
		want string
		r    Request
	}{
		{coturnPlain, Request{}},
		{coturnChange, Request{ChangeIP: true, ChangePort: true}},
		{coturnResponsePort, Request{ResponsePort: 54472}},
		// The server turnserver accepted these: it answered from another address to port 40000.
		{"00010010 2112a442 000102030405060708090a0b 00270004 9c400000 00030004 00000006", Request{ResponsePort: 40000, ChangeIP: true, ChangePort: true}},
		{"00010010 2112a442 000102030405060708090a0b 00270004 9c400000 00030004 00000004", Request{ResponsePort: 40000, ChangeIP: true}},
	} {
		want := unhex(t, tt.want)
		tt.r.ID, _ = IDOf(want)
		if got := tt.r.Append([]byte("before")); string(got) != "before"+string(want) {
			t.Errorf("%+v: % x, want % x", tt.r, got[6:], want)
		}
	}
	if a, b := NewID(), NewID(); a == b {
		t.Errorf("two IDs are %x", a)
	}
}

// message returns a message with these attributes.
func message(t testing.TB, kind string, attrs ...string) []byte {
	t.Helper()
	all := unhex(t, strings.Join(attrs, ""))
	b := unhex(t, kind+"0000 2112a442 000102030405060708090a0b")
	binary.BigEndian.PutUint16(b[2:], uint16(len(all)))
	return append(b, all...)
}

func TestParseHostile(t *testing.T) {
	const mapped, other = "00200008 0001bd530c3f8940", "802c0008 00010d972d2d2d03"
	for name, tt := range map[string]struct {
		b  []byte
		ok bool
	}{
		"nothing else":                 {message(t, "0101"), true},
		"mapped":                       {message(t, "0101", mapped), true},
		"mapped twice":                 {message(t, "0101", mapped, "00200008 0001bd53ffffffff"), true},
		"mapped twice, second bad":     {message(t, "0101", mapped, "00200004 0001bd53"), true},
		"other twice":                  {message(t, "0101", mapped, other, "802c0008 0001ffff01010101"), true},
		"an optional attribute":        {message(t, "0101", "ffff0003 61626300", mapped), true},
		"an empty attribute":           {message(t, "0101", "80220000", mapped), true},
		"a required attribute":         {message(t, "0101", mapped, "7fff0000"), false},
		"family 0":                     {message(t, "0101", "00200008 0000bd530c3f8940"), false},
		"family 3":                     {message(t, "0101", "802c0008 00030d972d2d2d03"), false},
		"IPv4 in 16 bytes":             {message(t, "0101", "00200014 0001bd530b1ed335000302030405060708090a09"), false},
		"IPv6 in 4 bytes":              {message(t, "0101", "00200008 0002bd530c3f8940"), false},
		"IPv4 in IPv6":                 {message(t, "0101", "802c0014 00020d97 00000000000000000000ffff2d2d2d03"), false},
		"an address of 0 bytes":        {message(t, "0101", "00200000"), false},
		"an address of 1 byte":         {message(t, "0101", "00200001 00000000"), false},
		"a value longer than the rest": {message(t, "0101", "00200009 0001bd530c3f8940"), false},
		"padding longer than the rest": {message(t, "0101", "80220001 61"), false},
		"a length of 65535":            {message(t, "0101", "8022ffff"), false},
		"a request":                    {message(t, "0001", mapped), false},
		"an indication":                {message(t, "0011", mapped), false},
		"another method":               {message(t, "0103", mapped), false},
		"no cookie":                    {append([]byte{1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43}, make([]byte, 12)...), false},
		"the first bits":               {message(t, "8101", mapped), false},
		"an error":                     {message(t, "0111", "00090004 00000414"), true},
		"an error without a code":      {message(t, "0111", mapped), false},
		"an error of class 0":          {message(t, "0111", "00090004 00000014"), false},
		"an error of class 7":          {message(t, "0111", "00090004 00000714"), false},
		"an error number of 100":       {message(t, "0111", "00090004 00000464"), false},
		"a short error":                {message(t, "0111", "00090003 00000400"), false},
	} {
		got, err := ParseResponse(tt.b)
		if (err == nil) != tt.ok || err != nil && got != (Response{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if want := netip.MustParseAddrPort("45.45.45.2:40001"); tt.ok && got.Mapped.IsValid() && got.Mapped != want {
			t.Errorf("%s: mapped %v, want %v, the first one", name, got.Mapped, want)
		}
		if want := netip.MustParseAddrPort("45.45.45.3:3479"); tt.ok && got.Other.IsValid() && got.Other != want {
			t.Errorf("%s: other %v, want %v, the first one", name, got.Other, want)
		}
	}
	long := message(t, "0111", "000903ec 00000414"+strings.Repeat("61", 1000))
	if got, err := ParseResponse(long); err != nil || got.Reason != strings.Repeat("a", MaxReason) {
		t.Errorf("a long reason: %+v, %v", got, err)
	}
	if id, ok := IDOf(message(t, "8101")); ok {
		t.Errorf("ID %x of what is not a STUN message", id)
	}
	both := message(t, "0111", mapped, other, "00090004 00000414")
	if got, err := ParseResponse(both); err != nil || got != (Response{Code: 420}) {
		t.Errorf("an error with addresses: %+v, %v", got, err)
	}
	if got, err := ParseResponse(message(t, "0101", mapped, "00090004 00000414")); err != nil || got.Code != 0 {
		t.Errorf("a success with a code: %+v, %v", got, err)
	}
}

func FuzzParseResponse(f *testing.F) {
	for _, m := range []string{vector4, vector6, coturn4, coturn6, coturnError, coturnChange} {
		f.Add(unhex(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseResponse(b)
		if _, ok := IDOf(b); err == nil && !ok {
			t.Error("a response without an ID")
		}
		if err != nil && r != (Response{}) {
			t.Errorf("%+v with %v", r, err)
		}
		if len(r.Reason) > MaxReason || r.Code != 0 && (r.Code < 300 || r.Code > 699) || r.Mapped.Addr().Is4In6() || r.Other.Addr().Is4In6() {
			t.Errorf("%+v", r)
		}
	})
}
