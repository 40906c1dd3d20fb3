package pcp_test

import (
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// parsers has every Parse function.
var parsers = map[string]func([]byte) (any, error){
	"header":           func(b []byte) (any, error) { return pcp.ParseHeader(b) },
	"announce request": func(b []byte) (any, error) { return pcp.ParseAnnounceRequest(b) },
	"announce":         func(b []byte) (any, error) { return pcp.ParseAnnounceResponse(b) },
	"map request":      func(b []byte) (any, error) { return pcp.ParseMapRequest(b) },
	"map":              func(b []byte) (any, error) { return pcp.ParseMapResponse(b) },
	"peer request":     func(b []byte) (any, error) { return pcp.ParsePeerRequest(b) },
	"peer":             func(b []byte) (any, error) { return pcp.ParsePeerResponse(b) },
	"error":            func(b []byte) (any, error) { return pcp.ParseErrorResponse(b) },
}

const (
	epoch      = 1234 * time.Second
	twoHours   = 2 * time.Hour
	halfHour   = 30 * time.Minute
	halfMinute = 30 * time.Second
)

var (
	nonce        = pcp.Nonce([]byte("\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b"))
	otherNonce   = pcp.Nonce([]byte("\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab"))
	client4      = netip.MustParseAddr("192.168.1.10")
	client6      = netip.MustParseAddr("2001:db8:1:2::10")
	thirdParty   = netip.MustParseAddr("192.168.1.20")
	external     = netip.MustParseAddr("203.0.113.7")
	unspecified4 = netip.IPv4Unspecified()
	unspecified6 = netip.IPv6Unspecified()
	remote       = netip.MustParseAddrPort("198.51.100.9:3478")
	subnet       = netip.MustParsePrefix("198.51.100.0/24")
)

// request returns a MapRequest with the fields that most vectors share.
func request(lifetime time.Duration, p backends.Protocol, internal, requested uint16, set func(*pcp.MapRequest)) pcp.MapRequest {
	r := pcp.MapRequest{
		Client: client4, Lifetime: lifetime, Nonce: nonce, Protocol: p,
		InternalPort: internal, ExternalPort: requested, External: unspecified4,
	}
	if set != nil {
		set(&r)
	}
	return r
}

// response returns a MapResponse with the fields that most vectors share.
func response(
	result pcp.ResultCode, lifetime time.Duration, p backends.Protocol, internal, port uint16, set func(*pcp.MapResponse),
) pcp.MapResponse {
	r := pcp.MapResponse{
		Result: result, Lifetime: lifetime, Epoch: epoch, Nonce: nonce, Protocol: p,
		InternalPort: internal, ExternalPort: port, External: unspecified4,
	}
	if set != nil {
		set(&r)
	}
	return r
}

var filters = []pcp.Filter{{}, {Prefix: subnet}}

// messages are the vectors that encode to the same bytes from which they are
// parsed.
var messages = []struct {
	name, parser string
	message      encoding.BinaryAppender
}{
	{"map udp", "map request", request(twoHours, backends.UDP, 6881, 0, nil)},
	{"mapped, shorter lifetime", "map", response(0, time.Hour, backends.UDP, 6881, 6881, func(r *pcp.MapResponse) { r.External = external })},
	{"renewal", "map request", request(twoHours, backends.UDP, 6881, 6881, func(r *pcp.MapRequest) { r.External = external })},
	{"delete", "map request", request(0, backends.UDP, 6881, 0, nil)},
	{"deleted", "map", response(0, 0, backends.UDP, 6881, 0, nil)},
	{"refused by policy", "map", response(pcp.NotAuthorized, halfHour, backends.UDP, 6881, 0, nil)},
	{"refused, another nonce", "map", response(
		pcp.NotAuthorized, 2345*time.Second, backends.UDP, 6881, 6881,
		func(r *pcp.MapResponse) { r.Nonce, r.External = otherNonce, external },
	)},
	{"out of resources", "map", response(pcp.NoResources, halfMinute, backends.UDP, 6881, 0, nil)},
	{"network failure", "map", response(pcp.NetworkFailure, halfMinute, backends.UDP, 6881, 0, nil)},
	{"quota exceeded", "map", response(pcp.UserExceededQuota, halfMinute, backends.UDP, 6881, 0, nil)},
	{"prefer failure", "map request", request(
		time.Hour, backends.TCP, 80, 80,
		func(r *pcp.MapRequest) { r.External, r.Options.PreferFailure = external, true },
	)},
	{"cannot provide", "map", response(
		pcp.CannotProvideExternal, 2*time.Minute, backends.TCP, 80, 80,
		func(r *pcp.MapResponse) { r.External, r.Options.PreferFailure = external, true },
	)},
	{"prefer failure of no port, refused", "map", response(
		pcp.MalformedOption, halfHour, backends.TCP, 80, 0,
		func(r *pcp.MapResponse) { r.Options.PreferFailure = true },
	)},
	{"filters", "map request", request(
		time.Hour, backends.TCP, 8443, 0,
		func(r *pcp.MapRequest) { r.Options.Filters = filters },
	)},
	{"too many filters", "map", response(
		pcp.ExcessiveRemotePeers, halfHour, backends.TCP, 8443, 0,
		func(r *pcp.MapResponse) { r.Options.Filters = filters },
	)},
	{"third party", "map request", request(
		time.Hour, backends.UDP, 5000, 0,
		func(r *pcp.MapRequest) { r.Options.ThirdParty = thirdParty },
	)},
	{"third party, refused", "map", response(
		pcp.UnsupportedOption, halfHour, backends.UDP, 5000, 0,
		func(r *pcp.MapResponse) { r.Options.ThirdParty = thirdParty },
	)},
	{"third party, mapped", "map", response(
		0, time.Hour, backends.UDP, 5000, 5000,
		func(r *pcp.MapResponse) { r.External, r.Options.ThirdParty = external, thirdParty },
	)},
	{"port set, ignored", "map", response(
		0, time.Hour, backends.UDP, 50000, 37056,
		func(r *pcp.MapResponse) { r.External = netip.MustParseAddr("192.0.2.3") },
	)},
	{"description", "map request", request(
		time.Hour, backends.UDP, 6881, 0,
		func(r *pcp.MapRequest) { r.Options.Description = "go map" },
	)},
	{"announce request", "announce request", pcp.AnnounceRequest{Client: client4}},
	{"announce", "announce", pcp.AnnounceResponse{Epoch: epoch}},
	{"announcement after boot", "announce", pcp.AnnounceResponse{}},
	{"map ipv6", "map request", request(
		twoHours, backends.TCP, 8333, 0,
		func(r *pcp.MapRequest) { r.Client, r.External = client6, unspecified6 },
	)},
	{"mapped ipv6, same address", "map", response(
		0, twoHours, backends.TCP, 8333, 8333,
		func(r *pcp.MapResponse) { r.External = client6 },
	)},
	{"map ipv4 to ipv6", "map request", request(twoHours, backends.TCP, 8333, 0, func(r *pcp.MapRequest) { r.External = unspecified6 })},
	{"peer request", "peer request", pcp.PeerRequest{
		Client: client4, Lifetime: 10 * time.Minute, Nonce: nonce, Protocol: backends.UDP,
		InternalPort: 40000, External: unspecified4, Remote: remote,
	}},
	{"peer", "peer", pcp.PeerResponse{
		Lifetime: 10 * time.Minute, Epoch: epoch, Nonce: nonce, Protocol: backends.UDP,
		InternalPort: 40000, ExternalPort: 40000, External: external, Remote: remote,
	}},
	{"map everything", "map request", request(time.Hour, 0, 0, 0, nil)},
	{"map everything, refused", "map", response(pcp.UnsupportedProtocol, halfHour, 0, 0, 0, nil)},
	{"mapping update", "map", response(
		0, 50*time.Minute, backends.UDP, 6881, 6900,
		func(r *pcp.MapResponse) { r.Epoch, r.External = 40*time.Second, netip.MustParseAddr("203.0.113.99") },
	)},
	{"mapped permanently", "map", response(
		0, backends.Forever, backends.UDP, 6881, 6881,
		func(r *pcp.MapResponse) { r.External = external },
	)},
}

// parseOnly are the vectors that encode to other bytes than those from which they
// are parsed.
var parseOnly = []struct {
	name, parser string
	want         any
}{
	{"address mismatch", "map", response(pcp.AddressMismatch, halfHour, backends.UDP, 6881, 0, nil)},
	{"version 3, refused", "map", response(pcp.UnsupportedVersion, halfHour, backends.UDP, 6881, 0, nil)},
	{"port set", "map request", request(time.Hour, backends.UDP, 50000, 0, nil)},
	{"port set, partly mapped", "map", response(
		0, time.Hour, backends.UDP, 50000, 37056,
		func(r *pcp.MapResponse) { r.External = netip.MustParseAddr("192.0.2.3") },
	)},
	{"unknown option, refused", "map", response(pcp.UnsupportedOption, halfHour, backends.UDP, 6881, 0, nil)},
	{"unknown opcode, refused", "error", pcp.ErrorResponse{
		Version: 2, Opcode: pcp.OpResponse | 9, Result: pcp.UnsupportedOpcode, Lifetime: halfHour, Epoch: epoch,
	}},
	{"mapping update", "error", pcp.ErrorResponse{
		Version: 2, Opcode: pcp.OpResponse | pcp.OpMap, Lifetime: 50 * time.Minute, Epoch: 40 * time.Second,
	}},
	{"version 3", "header", pcp.Header{Version: 3, Opcode: pcp.OpMap}},
	{"four bytes", "header", pcp.Header{Version: 2, Opcode: pcp.OpMap}},
}

var equal = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})

func TestMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range messages {
		want := vector(tt.name)
		got, err := tt.message.AppendBinary([]byte("before"))
		if err != nil || string(got) != "before"+string(want) {
			t.Errorf("%s: appended %x, %v; want %x", tt.name, got, err, want)
		}
		marshalled, err := tt.message.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil || string(marshalled) != string(want) {
			t.Errorf("%s: marshalled %x, %v; want %x", tt.name, marshalled, err, want)
		}
		parsed, err := parsers[tt.parser](want)
		if err != nil {
			t.Errorf("%s: parsing: %v", tt.name, err)
		} else if diff := cmp.Diff(any(tt.message), parsed, equal); diff != "" {
			t.Errorf("%s: parsed (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestParseOnly(t *testing.T) {
	t.Parallel()
	for _, tt := range parseOnly {
		got, err := parsers[tt.parser](vector(tt.name))
		if err != nil {
			t.Errorf("%s as %s: %v", tt.name, tt.parser, err)
		} else if diff := cmp.Diff(tt.want, got, equal); diff != "" {
			t.Errorf("%s as %s (-want +got):\n%s", tt.name, tt.parser, diff)
		}
	}
}

// TestVectorsUsed checks that each vector is used by a test of this package.
func TestVectorsUsed(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, tt := range messages {
		used[tt.name] = true
	}
	for _, tt := range parseOnly {
		used[tt.name] = true
	}
	for _, tt := range refusedRequests {
		used[tt.name] = true
	}
	for _, tt := range foreignMessages {
		used[tt.name] = true
	}
	for name := range vectors {
		if !used[name] {
			t.Errorf("no test uses %q", name)
		}
	}
}

// foreignMessages are messages that a client has to ignore or to report as another
// version.
var foreignMessages = []struct {
	name, bytes, parser string
	want                error
}{
	{"truncated in an address", vectors["truncated in an address"], "map", io.ErrUnexpectedEOF},
	{"truncated in an address", vectors["truncated in an address"], "error", backends.ErrMalformed},
	{"request instead of a response", vectors["request instead of a response"], "map", backends.ErrMalformed},
	{"request instead of a response", vectors["request instead of a response"], "error", backends.ErrMalformed},
	{"NAT-PMP", "0000 0001 000004d2", "map", &pcp.VersionError{}},
	{"NAT-PMP, opcode kept", "0081 0001 000004d2", "announce", &pcp.VersionError{}},
	{"NAT-PMP, another result", "0081 0002 000004d2", "map", backends.ErrMalformed},
	{"NAT-PMP, a result of 16 bits", "0081 0101 000004d2", "map", backends.ErrMalformed},
	{"NAT-PMP, a request", "0001 0001 000004d2", "map", backends.ErrMalformed},
	{"NAT-PMP, truncated", "0080 00", "map", io.ErrUnexpectedEOF},
	{"version 1", "01810001 00000708 000004d2 00000000 00000000 00000000", "peer", &pcp.VersionError{Version: 1, Lifetime: halfHour}},
	{"version 3, a request", "03010001 00000708 000004d2 00000000 00000000 00000000", "peer", backends.ErrMalformed},
	{"version 3, a success", "03810000 00000708 000004d2 00000000 00000000 00000000", "map", backends.ErrMalformed},
	{"an announcement", vectors["announce"], "map", backends.ErrMalformed},
	{"a header for a mapping", "02810003 00000708 000004d2 00000000 00000000 00000000", "map", io.ErrUnexpectedEOF},
	{"too long", vectors["announce"] + strings.Repeat("00", pcp.MaxMessage), "announce", backends.ErrMalformed},
	{"too long", vectors["announce"] + strings.Repeat("00", pcp.MaxMessage), "error", backends.ErrMalformed},
	{"size not a multiple of four", vectors["mapped, shorter lifetime"] + "00", "map", backends.ErrMalformed},
	{"size not a multiple of four", vectors["mapped, shorter lifetime"] + "00", "error", backends.ErrMalformed},
}

func TestForeignMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range foreignMessages {
		got, err := parsers[tt.parser](unhex(tt.bytes))
		var version, want *pcp.VersionError
		if errors.As(tt.want, &want) {
			if !errors.As(err, &version) || *version != *want || !errors.Is(err, backends.ErrUnsupported) {
				t.Errorf("%s as %s: %v, %v; want %v", tt.name, tt.parser, got, err, want)
			}
		} else if !errors.Is(err, tt.want) {
			t.Errorf("%s as %s: %v, %v; want %v", tt.name, tt.parser, got, err, tt.want)
		}
	}
}

// sizes and opcodes are the minimum size and the opcode of the messages of each
// parser.
var (
	sizes = map[string]int{
		"header": 2, "announce request": 24, "announce": 24, "map request": 60, "map": 60, "peer request": 80, "peer": 80, "error": 4,
	}
	opcodes = map[string]byte{
		"announce request": 0, "announce": 128, "map request": 1, "map": 129, "peer request": 2, "peer": 130,
	}
)

// TestPrefixes passes every prefix of every vector to every parser. A parser
// succeeds only on its own messages. If a message is too short, it reports an
// unexpected end or, for a server, a malformed request.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	for vector, s := range vectors {
		message := unhex(s)
		for n := range len(message) + 1 {
			for parser, parse := range parsers {
				got, err := parse(message[:n:n])
				var requestErr *pcp.RequestError
				op, hasOpcode := opcodes[parser]
				result := fmt.Sprintf("%s of %d bytes as %s: %v, %v", vector, n, parser, got, err)
				switch {
				case n < min(sizes[parser], 2):
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%s; want an unexpected end", result)
					}
				case err == nil:
					if n < sizes[parser] || hasOpcode && (message[0] != 2 || op != message[1] || n%4 != 0) {
						t.Errorf("%s; want an error", result)
					}
				case errors.Is(err, io.ErrUnexpectedEOF):
					if n >= sizes[parser] || strings.HasSuffix(parser, "request") && n >= 24 {
						t.Errorf("%s; want no unexpected end", result)
					}
				case errors.As(err, &requestErr):
					if !strings.HasSuffix(parser, "request") || message[1]&0x80 != 0 {
						t.Errorf("%s; want no RequestError", result)
					}
				case !errors.Is(err, backends.ErrMalformed):
					t.Errorf("%s; want ErrMalformed", result)
				case strings.HasSuffix(parser, "request") && message[1]&0x80 == 0:
					t.Errorf("%s; want a RequestError", result)
				}
			}
		}
	}
}

func TestParseHeader(t *testing.T) {
	t.Parallel()
	for bytes, want := range map[string]pcp.Header{
		"0200":           {Version: 2, Opcode: pcp.OpAnnounce},
		"0201 1234 1f90": {Version: 2, Opcode: pcp.OpMap}, // the reserved field of a request is not a result
		"0282 0007":      {Version: 2, Opcode: pcp.OpPeer | pcp.OpResponse, Result: pcp.NetworkFailure},
		"0281 00":        {Version: 2, Opcode: pcp.OpMap | pcp.OpResponse},
		"0080 0001":      {Opcode: pcp.OpResponse, Result: pcp.UnsupportedVersion},
	} {
		if got, err := pcp.ParseHeader(unhex(bytes)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", bytes, got, err, want)
		}
	}
	for op, want := range map[pcp.Opcode]string{
		0: "announce", 1: "map", 2: "peer", 3: "authentication", 4: "opcode 4",
		128: "announce response", 129: "map response", 130: "peer response", 131: "authentication response", 137: "opcode 137",
	} {
		if got := op.String(); got != want {
			t.Errorf("opcode %d is %q, want %q", uint8(op), got, want)
		}
	}
}

// TestDurations checks that lifetimes are rounded up and limited to the range of
// the field, that only Forever is encoded as no end, and that the epoch is rounded
// down.
func TestDurations(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		d               time.Duration
		lifetime, epoch string
	}{
		{0, "00000000", "00000000"},
		{-time.Hour, "00000000", "00000000"},
		{math.MinInt64, "00000000", "00000000"},
		{1, "00000001", "00000000"},
		{time.Second - 1, "00000001", "00000000"},
		{time.Second, "00000001", "00000001"},
		{time.Second + 1, "00000002", "00000001"},
		{90 * time.Minute, "00001518", "00001518"},
		{(math.MaxUint32 - 1) * time.Second, "fffffffe", "fffffffe"},
		{(math.MaxUint32-1)*time.Second + 1, "fffffffe", "fffffffe"},
		{math.MaxUint32 * time.Second, "fffffffe", "ffffffff"},
		{math.MaxUint32*time.Second + 1, "fffffffe", "ffffffff"},
		{backends.Forever - 1, "fffffffe", "ffffffff"},
		{backends.Forever, "ffffffff", "ffffffff"},
	} {
		b, err := pcp.MapRequest{Client: client4, Lifetime: tt.d}.MarshalBinary()
		if got := hex.EncodeToString(b[4:8]); err != nil || got != tt.lifetime {
			t.Errorf("%v: requested %s, %v; want %s", tt.d, got, err, tt.lifetime)
		}
		for _, m := range []encoding.BinaryMarshaler{
			pcp.AnnounceResponse{Lifetime: tt.d, Epoch: tt.d},
			pcp.MapResponse{Lifetime: tt.d, Epoch: tt.d},
			pcp.PeerResponse{Lifetime: tt.d, Epoch: tt.d, Remote: remote},
			pcp.ErrorResponse{Lifetime: tt.d, Epoch: tt.d},
		} {
			b, err := m.MarshalBinary()
			if got := hex.EncodeToString(b[4:12]); err != nil || got != tt.lifetime+tt.epoch {
				t.Errorf("%v in %T: %s, %v; want %s", tt.d, m, got, err, tt.lifetime+tt.epoch)
			}
		}
	}
}

// TestAddresses checks that the two forms of an IPv4 address are encoded to the
// same bytes, and that a request without a suggested address gets the unspecified
// address of the client's family.
func TestAddresses(t *testing.T) {
	t.Parallel()
	const mapped4, none4, none6 = "00000000000000000000ffffc0a8010a", "00000000000000000000ffff00000000", "00000000000000000000000000000000"
	for _, tt := range []struct {
		client, requested, clientBytes, requestedBytes string
	}{
		{"192.168.1.10", "", mapped4, none4},
		{"::ffff:192.168.1.10", "", mapped4, none4},
		{"192.168.1.10", "::", mapped4, none6},
		{"192.168.1.10", "0.0.0.0", mapped4, none4},
		{"fe80::1%eth0", "", "fe800000000000000000000000000001", none6},
		{"2001:db8::1", "0.0.0.0", "20010db8000000000000000000000001", none4},
		{"2001:db8::1", "192.168.1.10", "20010db8000000000000000000000001", mapped4},
	} {
		var requested netip.Addr
		if tt.requested != "" {
			requested = netip.MustParseAddr(tt.requested)
		}
		client := netip.MustParseAddr(tt.client)
		b, err := pcp.MapRequest{Client: client, External: requested}.MarshalBinary()
		if got := hex.EncodeToString(b); err != nil || got[16:48] != tt.clientBytes || got[88:] != tt.requestedBytes {
			t.Errorf("map for %s at %s: %s, %v", tt.client, tt.requested, got, err)
		}
		b, err = pcp.PeerRequest{Client: client, External: requested, Remote: remote}.MarshalBinary()
		if got := hex.EncodeToString(b); err != nil || got[16:48] != tt.clientBytes || got[88:120] != tt.requestedBytes {
			t.Errorf("peer for %s at %s: %s, %v", tt.client, tt.requested, got, err)
		}
	}
	b, err := pcp.MapResponse{}.MarshalBinary()
	if got := hex.EncodeToString(b); err != nil || got[88:] != none4 {
		t.Errorf("response without an address: %s, %v", got, err)
	}
}

// set replaces the bytes of b from index i and returns b.
func set(b []byte, i int, with string) []byte {
	copy(b[i:], unhex(with))
	return b
}

// TestAppendErrorResponse checks the error responses of a server for given
// requests.
func TestAppendErrorResponse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want     string
		request  []byte
		lifetime time.Duration
	}{
		{"refused by policy", vector("map udp"), halfHour},
		{"refused, another nonce", set(vector("renewal"), 24, "a0a1a2a3 a4a5a6a7 a8a9aaab"), 2345 * time.Second},
		{"out of resources", vector("map udp"), halfMinute},
		{"network failure", vector("map udp"), halfMinute},
		{"quota exceeded", vector("map udp"), halfMinute},
		{"address mismatch", vector("map udp"), halfHour},
		{"cannot provide", vector("prefer failure"), 2 * time.Minute},
		{"prefer failure of no port, refused", vector("prefer failure of no port"), halfHour},
		{"too many filters", vector("filters"), halfHour},
		{"third party, refused", vector("third party"), halfHour},
		{"unknown option, refused", vector("unknown option"), halfHour},
		{"map everything, refused", vector("map everything"), halfHour},
		{"version 3, refused", vector("version 3"), halfHour},
		{"unknown opcode, refused", unhex("02090000 00001c20 00000000 00000000 0000ffff c0a8010a deadbeef"), halfHour},
	} {
		want := vector(tt.want)
		before := string(tt.request)
		got, err := pcp.AppendErrorResponse([]byte("before"), tt.request, pcp.ResultCode(want[3]), tt.lifetime, epoch)
		if err != nil || string(got) != "before"+string(want) {
			t.Errorf("%s:\n got %x, %v;\nwant %x", tt.want, got, err, want)
		}
		if string(tt.request) != before {
			t.Errorf("%s: the request was changed", tt.want)
		}
	}
}

// TestAppendErrorResponseSizes checks that the size of an error response is valid
// for requests of any size.
func TestAppendErrorResponseSizes(t *testing.T) {
	t.Parallel()
	request := make([]byte, 2*pcp.MaxMessage)
	for i := range request {
		request[i] = 0x55
	}
	for n := 2; n <= len(request); n++ {
		for _, code := range []pcp.ResultCode{pcp.MalformedRequest, pcp.NoResources} {
			b, err := pcp.AppendErrorResponse(nil, request[:n], code, halfMinute, epoch)
			if want := min(max((n+3)/4*4, 24), pcp.MaxMessage); err != nil || len(b) != want {
				t.Fatalf("%d bytes for a request of %d, %v; want %d", len(b), n, err, want)
			}
			for i, c := range b[12:] {
				want := byte(0x55)
				if i+12 >= n || i < 12 && code == pcp.NoResources {
					want = 0
				}
				if c != want {
					t.Fatalf("byte %d for a request of %d is %#x, want %#x", i+12, n, c, want)
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		request string
		code    pcp.ResultCode
		want    error
	}{
		"one byte":   {"02", pcp.MalformedRequest, io.ErrUnexpectedEOF},
		"a response": {"0281", pcp.MalformedRequest, backends.ErrInvalid},
		"success":    {"0201", pcp.Success, backends.ErrInvalid},
	} {
		b, err := pcp.AppendErrorResponse([]byte("before"), unhex(tt.request), tt.code, halfMinute, epoch)
		if !errors.Is(err, tt.want) || string(b) != "before" {
			t.Errorf("%s: %x, %v; want %v", name, b, err, tt.want)
		}
	}
}

// TestParseErrorResponse checks which fields are parsed from error responses of
// different lengths and versions.
func TestParseErrorResponse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, bytes string
		want        pcp.ErrorResponse
	}{
		{"NAT-PMP", "0000 0001 000004d2", pcp.ErrorResponse{Result: 1}},
		{"NAT-PMP, opcode kept", "0081 0001 000004d2", pcp.ErrorResponse{Opcode: 129, Result: 1}},
		{"NAT-PMP, truncated", "0000 0001", pcp.ErrorResponse{Result: 1}},
		{
			"NAT-PMP, as long as a header", "00810001 000004d2 00000000 00000000 00000000 00000000",
			pcp.ErrorResponse{Opcode: 129, Result: 1},
		},
		{
			"version 3", "03810001 00000708 000004d2 00000000 00000000 00000000",
			pcp.ErrorResponse{Version: 3, Opcode: 129, Result: 1, Lifetime: halfHour, Epoch: epoch},
		},
		{
			"a header", "02810003 00000000 000004d2 00000000 00000000 00000000",
			pcp.ErrorResponse{Version: 2, Opcode: 129, Result: pcp.MalformedRequest, Epoch: epoch},
		},
		{
			"version error with an additional byte", "02810001 00000708 000004d2 00000000 00000000 00000000 00",
			pcp.ErrorResponse{Version: 2, Opcode: 129, Result: 1, Lifetime: halfHour, Epoch: epoch},
		},
		{
			"twelve bytes, in response to NAT-PMP", "02810002 a2a90000 004f8fd2",
			pcp.ErrorResponse{Version: 2, Opcode: 129, Result: pcp.NotAuthorized},
		},
		{"four bytes", "02800001", pcp.ErrorResponse{Version: 2, Opcode: 128, Result: 1}},
	} {
		if got, err := pcp.ParseErrorResponse(unhex(tt.bytes)); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	for _, bytes := range []string{"", "02", "0280", "028100"} {
		if got, err := pcp.ParseErrorResponse(unhex(bytes)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, %v; want an unexpected end", bytes, got, err)
		}
	}
	whole := pcp.ErrorResponse{Version: 2, Opcode: 129, Result: 3, Lifetime: halfHour, Epoch: epoch}
	b, err := whole.AppendBinary([]byte("before"))
	want := "before" + string(unhex("02810003 00000708 000004d2 00000000 00000000 00000000"))
	if err != nil || string(b) != want {
		t.Errorf("%x, %v; want %x", b, err, want)
	}
}

// TestAllocations is not parallel, because AllocsPerRun counts the allocations of
// the whole process.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, pcp.MaxMessage)
	announceRequest := pcp.AnnounceRequest{Client: client4}
	announce := pcp.AnnounceResponse{Epoch: epoch}
	mapRequest := request(twoHours, backends.TCP, 1, 2, nil)
	mapResponse := response(0, twoHours, backends.UDP, 1, 2, nil)
	peerRequest := pcp.PeerRequest{Client: client4, Lifetime: twoHours, Protocol: backends.UDP, InternalPort: 1, Remote: remote}
	peer := pcp.PeerResponse{Lifetime: twoHours, Epoch: epoch, Protocol: backends.UDP, InternalPort: 1, Remote: remote}
	errorResponse := pcp.ErrorResponse{Version: pcp.Version, Opcode: pcp.OpResponse, Result: pcp.UnsupportedVersion, Epoch: epoch}
	full := mapRequest
	full.Options = pcp.Options{ThirdParty: thirdParty, PreferFailure: true, Filters: filters, Description: "go map"}
	var (
		announceRequestBytes = vector("announce request")
		announceBytes        = vector("announce")
		mapRequestBytes      = vector("map udp")
		mapBytes             = vector("mapped, shorter lifetime")
		peerRequestBytes     = vector("peer request")
		peerBytes            = vector("peer")
		preferBytes          = vector("prefer failure")
		thirdBytes           = vector("third party, mapped")
		failureBytes         = vector("version 3, refused")
	)
	var err error
	for name, f := range map[string]func(){
		"AnnounceRequest.AppendBinary":     func() { _, err = announceRequest.AppendBinary(buf) },
		"AnnounceResponse.AppendBinary":    func() { _, err = announce.AppendBinary(buf) },
		"MapRequest.AppendBinary":          func() { _, err = mapRequest.AppendBinary(buf) },
		"MapRequest.AppendBinary, options": func() { _, err = full.AppendBinary(buf) },
		"MapResponse.AppendBinary":         func() { _, err = mapResponse.AppendBinary(buf) },
		"PeerRequest.AppendBinary":         func() { _, err = peerRequest.AppendBinary(buf) },
		"PeerResponse.AppendBinary":        func() { _, err = peer.AppendBinary(buf) },
		"ErrorResponse.AppendBinary":       func() { _, err = errorResponse.AppendBinary(buf) },
		"AppendErrorResponse":              func() { _, err = pcp.AppendErrorResponse(buf, mapRequestBytes, 3, halfMinute, epoch) },
		"ParseHeader":                      func() { _, err = pcp.ParseHeader(mapBytes) },
		"ParseAnnounceRequest":             func() { _, err = pcp.ParseAnnounceRequest(announceRequestBytes) },
		"ParseAnnounceResponse":            func() { _, err = pcp.ParseAnnounceResponse(announceBytes) },
		"ParseMapRequest":                  func() { _, err = pcp.ParseMapRequest(mapRequestBytes) },
		"ParseMapRequest, prefer failure":  func() { _, err = pcp.ParseMapRequest(preferBytes) },
		"ParseMapResponse":                 func() { _, err = pcp.ParseMapResponse(mapBytes) },
		"ParseMapResponse, third party":    func() { _, err = pcp.ParseMapResponse(thirdBytes) },
		"ParsePeerRequest":                 func() { _, err = pcp.ParsePeerRequest(peerRequestBytes) },
		"ParsePeerResponse":                func() { _, err = pcp.ParsePeerResponse(peerBytes) },
		"ParseErrorResponse":               func() { _, err = pcp.ParseErrorResponse(failureBytes) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v; want none", name, n, err)
		}
	}
}
