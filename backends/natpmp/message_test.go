package natpmp_test

import (
	"encoding"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// unhex decodes hexadecimal digits and ignores spaces.
func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// parsers has every Parse function.
var parsers = map[string]func([]byte) (any, error){
	"header":                func(b []byte) (any, error) { return natpmp.ParseHeader(b) },
	"external addr request": func(b []byte) (any, error) { return natpmp.ParseExternalAddrRequest(b) },
	"external addr":         func(b []byte) (any, error) { return natpmp.ParseExternalAddrResponse(b) },
	"map request":           func(b []byte) (any, error) { return natpmp.ParseMapRequest(b) },
	"map":                   func(b []byte) (any, error) { return natpmp.ParseMapResponse(b) },
	"error":                 func(b []byte) (any, error) { return natpmp.ParseErrorResponse(b) },
}

const (
	epoch    = 1234 * time.Second
	twoHours = 2 * time.Hour
)

var external = netip.MustParseAddr("203.0.113.7")

// messages are the diagrams of RFC 6886, sections 3.2 to 3.5, with values filled in
// by hand.
var messages = []struct {
	name, parser, bytes string
	message             encoding.BinaryAppender
}{
	{"external address request", "external addr request", "0000", natpmp.ExternalAddrRequest{}},
	{
		"external address", "external addr", "0080 0000 000004d2 cb007107",
		natpmp.ExternalAddrResponse{Epoch: epoch, Addr: external},
	},
	{
		"no external address", "external addr", "0080 0003 000004d2 00000000",
		natpmp.ExternalAddrResponse{Result: natpmp.NetworkFailure, Epoch: epoch, Addr: netip.IPv4Unspecified()},
	},
	{
		"announcement after boot", "external addr", "0080 0000 00000000 cb007107",
		natpmp.ExternalAddrResponse{Addr: external},
	},
	{
		"map udp", "map request", "0001 0000 1ae1 1ae1 00001c20",
		natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881, ExternalPort: 6881, Lifetime: twoHours},
	},
	{
		"another port and a shorter lifetime", "map", "0081 0000 000004d2 1ae1 1ae2 00000e10",
		natpmp.MapResponse{Protocol: backends.UDP, Epoch: epoch, InternalPort: 6881, ExternalPort: 6882, Lifetime: time.Hour},
	},
	{
		"renewal", "map request", "0001 0000 1ae1 1ae2 00001c20",
		natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 6881, ExternalPort: 6882, Lifetime: twoHours},
	},
	{
		"map tcp, any port", "map request", "0002 0000 1f90 0000 00001c20",
		natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: twoHours},
	},
	{
		"mapped tcp", "map", "0082 0000 000004d2 1f90 c001 00001c20",
		natpmp.MapResponse{Protocol: backends.TCP, Epoch: epoch, InternalPort: 8080, ExternalPort: 49153, Lifetime: twoHours},
	},
	{
		"refused", "map", "0082 0002 000004d2 1f90 0000 00000000",
		natpmp.MapResponse{Protocol: backends.TCP, Result: natpmp.NotAuthorized, Epoch: epoch, InternalPort: 8080},
	},
	{
		"out of resources, request echoed", "map", "0082 0004 000004d2 0050 0050 00001c20",
		natpmp.MapResponse{
			Protocol: backends.TCP, Result: natpmp.OutOfResources, Epoch: epoch,
			InternalPort: 80, ExternalPort: 80, Lifetime: twoHours,
		},
	},
	{
		"network failure", "map", "0081 0003 000004d2 1ae1 0000 00000000",
		natpmp.MapResponse{Protocol: backends.UDP, Result: natpmp.NetworkFailure, Epoch: epoch, InternalPort: 6881},
	},
	{
		"undefined result", "map", "0081 0009 000004d2 1ae1 0000 00000000",
		natpmp.MapResponse{Protocol: backends.UDP, Result: 9, Epoch: epoch, InternalPort: 6881},
	},
	{
		"delete", "map request", "0002 0000 1f90 0000 00000000",
		natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080},
	},
	{
		"deleted", "map", "0082 0000 000004d2 1f90 0000 00000000",
		natpmp.MapResponse{Protocol: backends.TCP, Epoch: epoch, InternalPort: 8080},
	},
	{"delete all", "map request", "0001 0000 0000 0000 00000000", natpmp.MapRequest{Protocol: backends.UDP}},
	{
		"deleted all", "map", "0081 0000 000004d2 0000 0000 00000000",
		natpmp.MapResponse{Protocol: backends.UDP, Epoch: epoch},
	},
	{
		"unknown version", "error", "0000 0001 000004d2",
		natpmp.ErrorResponse{Result: natpmp.UnsupportedVersion, Epoch: epoch},
	},
	{
		"unknown version, opcode kept", "error", "0081 0001 000004d2",
		natpmp.ErrorResponse{Opcode: natpmp.OpResponse | 1, Result: natpmp.UnsupportedVersion, Epoch: epoch},
	},
	{
		"vpn, internal port 0", "map request", "0001 0000 0000 0001 0000003c",
		natpmp.MapRequest{Protocol: backends.UDP, ExternalPort: 1, Lifetime: time.Minute},
	},
	{
		"vpn, mapped", "map", "0081 0000 004630c0 0000 9686 0000003c",
		natpmp.MapResponse{Protocol: backends.UDP, Epoch: 4600000 * time.Second, ExternalPort: 38534, Lifetime: time.Minute},
	},
	{
		"another internal port", "map", "0081 0000 000004d2 1b57 1b57 00001c20",
		natpmp.MapResponse{Protocol: backends.UDP, Epoch: epoch, InternalPort: 6999, ExternalPort: 6999, Lifetime: twoHours},
	},
	{
		"all bits", "map", "0082 ffff ffffffff ffff ffff ffffffff",
		natpmp.MapResponse{
			Protocol: backends.TCP, Result: 0xffff, Epoch: math.MaxUint32 * time.Second,
			InternalPort: 0xffff, ExternalPort: 0xffff, Lifetime: math.MaxUint32 * time.Second,
		},
	},
}

var equal = cmpopts.EquateComparable(netip.Addr{})

func TestMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range messages {
		want := unhex(tt.bytes)
		got, err := tt.message.AppendBinary([]byte("before"))
		if err != nil || string(got) != "before"+string(want) {
			t.Errorf("%s: appended %x, %v; want %x", tt.name, got, err, want)
		}
		marshalled, err := tt.message.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil || string(marshalled) != string(want) {
			t.Errorf("%s: marshalled %x, %v; want %x", tt.name, marshalled, err, want)
		}
		// Bytes after the end of a message are ignored.
		for _, b := range [][]byte{want, append(unhex(tt.bytes), 0xff, 0xff)} {
			parsed, err := parsers[tt.parser](b)
			if err != nil {
				t.Errorf("%s: parsing: %v", tt.name, err)
			} else if diff := cmp.Diff(any(tt.message), parsed, equal); diff != "" {
				t.Errorf("%s: parsed (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

// TestPrefixes passes every prefix of every message to every parser. A parser
// succeeds only on its own messages, and reports an unexpected end if the message
// is too short.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	size := map[string]int{
		"header": 2, "external addr request": 2, "external addr": 12, "map request": 12, "map": 16, "error": 4,
	}
	for _, tt := range messages {
		message := unhex(tt.bytes)
		for n := range len(message) + 1 {
			for name, parse := range parsers {
				got, err := parse(message[:n:n])
				switch {
				case n < size[name]:
					if !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Errorf("%s of %d bytes as %s: %v, %v; want an unexpected end", tt.name, n, name, got, err)
					}
				case opcodeOf(name, message[1]):
					if err != nil {
						t.Errorf("%s of %d bytes as %s: %v", tt.name, n, name, err)
					}
				default:
					if !errors.Is(err, backends.ErrMalformed) {
						t.Errorf("%s of %d bytes as %s: %v, %v; want ErrMalformed", tt.name, n, name, got, err)
					}
				}
			}
		}
	}
}

// opcodeOf reports whether a message with the opcode is for the parser. The parsers
// of headers and errors accept all opcodes.
func opcodeOf(parser string, op byte) bool {
	switch parser {
	case "external addr request":
		return op == 0
	case "external addr":
		return op == 128
	case "map request":
		return op == 1 || op == 2
	case "map":
		return op == 129 || op == 130
	}
	return true
}

// TestForeignMessages checks messages of gateways that do not support NAT-PMP or
// are defective.
func TestForeignMessages(t *testing.T) {
	t.Parallel()
	var version *natpmp.VersionError
	for _, tt := range []struct {
		name, bytes string
		want        natpmp.ErrorResponse
	}{
		{"PCP, complete", "02800001 00000708 000004d2 00000000 00000000 00000000", natpmp.ErrorResponse{Version: 2, Opcode: 128, Result: 1}},
		{"PCP, two bytes", "0280", natpmp.ErrorResponse{Version: 2, Opcode: 128}},
		{"PCP, twelve bytes", "02810002 a2a90000 004f8fd2", natpmp.ErrorResponse{Version: 2, Opcode: 129, Result: 2}},
		{"unknown opcode, echoed", "0085 0005", natpmp.ErrorResponse{Opcode: 133, Result: 5}},
		{"unknown opcode, with a possible epoch", "0085 0005 000004d2", natpmp.ErrorResponse{Opcode: 133, Result: 5}},
		{"unknown version, truncated", "0000 0001", natpmp.ErrorResponse{Result: 1}},
	} {
		b := unhex(tt.bytes)
		got, err := natpmp.ParseErrorResponse(b)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
		if b[0] == 0 || len(b) < 12 {
			continue
		}
		for _, name := range []string{"external addr request", "external addr", "map request", "map"} {
			if len(b) < 16 && name == "map" {
				continue
			}
			_, err := parsers[name](b)
			if !errors.As(err, &version) || version.Version != 2 || !errors.Is(err, backends.ErrUnsupported) {
				t.Errorf("%s as %s: %v, want a VersionError", tt.name, name, err)
			}
		}
	}
	if _, err := natpmp.ParseErrorResponse(unhex("008100")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a response of three bytes: %v", err)
	}
	for _, v := range []string{"natpmp: the gateway supports PCP, not NAT-PMP", "natpmp: the gateway supports version 7, not NAT-PMP"} {
		e := &natpmp.VersionError{Version: 2}
		if strings.Contains(v, "7") {
			e.Version = 7
		}
		if e.Error() != v {
			t.Errorf("got %q, want %q", e.Error(), v)
		}
	}
}

func TestParseHeader(t *testing.T) {
	t.Parallel()
	for bytes, want := range map[string]natpmp.Header{
		"0000":           {Opcode: natpmp.OpExternalAddr},
		"0002 1234 1f90": {Opcode: natpmp.OpMapTCP}, // the reserved field of a request is not a result
		"0081 0003":      {Opcode: natpmp.OpMapUDP | natpmp.OpResponse, Result: natpmp.NetworkFailure},
		"0081 00":        {Opcode: natpmp.OpMapUDP | natpmp.OpResponse},
		"0280 0001":      {Version: 2, Opcode: natpmp.OpResponse, Result: natpmp.UnsupportedVersion},
	} {
		if got, err := natpmp.ParseHeader(unhex(bytes)); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", bytes, got, err, want)
		}
	}
}

// TestDurations checks that lifetimes are rounded up and limited to the range of
// the field, and that the epoch is rounded down.
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
		{(math.MaxUint32-1)*time.Second + 1, "ffffffff", "fffffffe"},
		{math.MaxUint32 * time.Second, "ffffffff", "ffffffff"},
		{math.MaxUint32*time.Second + 1, "ffffffff", "ffffffff"},
		{(math.MaxUint32 + 1) * time.Second, "ffffffff", "ffffffff"},
		{backends.Forever, "ffffffff", "ffffffff"},
	} {
		b, err := natpmp.MapRequest{Protocol: backends.TCP, Lifetime: tt.d}.MarshalBinary()
		if got := hex.EncodeToString(b[8:]); err != nil || got != tt.lifetime {
			t.Errorf("%v: requested %s, %v; want %s", tt.d, got, err, tt.lifetime)
		}
		b, err = natpmp.MapResponse{Protocol: backends.TCP, Lifetime: tt.d, Epoch: tt.d}.MarshalBinary()
		if got := hex.EncodeToString(b[12:]); err != nil || got != tt.lifetime {
			t.Errorf("%v: granted %s, %v; want %s", tt.d, got, err, tt.lifetime)
		}
		if got := hex.EncodeToString(b[4:8]); got != tt.epoch {
			t.Errorf("%v: epoch %s, want %s", tt.d, got, tt.epoch)
		}
		b, _ = natpmp.ExternalAddrResponse{Epoch: tt.d}.MarshalBinary()
		if got := hex.EncodeToString(b[4:8]); got != tt.epoch {
			t.Errorf("%v: epoch %s in the external address, want %s", tt.d, got, tt.epoch)
		}
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for addr, want := range map[netip.Addr]string{
		external: "cb007107",
		netip.MustParseAddr("::ffff:203.0.113.7"): "cb007107",
		netip.MustParseAddr("2001:db8::1"):        "00000000",
		{}:                                        "00000000",
	} {
		b, err := natpmp.ExternalAddrResponse{Addr: addr}.MarshalBinary()
		if got := hex.EncodeToString(b[8:]); err != nil || got != want {
			t.Errorf("%v: %s, %v; want %s", addr, got, err, want)
		}
	}
}

func TestProtocols(t *testing.T) {
	t.Parallel()
	for _, p := range []backends.Protocol{0, 1, backends.SCTP, backends.DCCP, backends.UDPLite, 255} {
		for _, m := range []encoding.BinaryAppender{natpmp.MapRequest{Protocol: p}, natpmp.MapResponse{Protocol: p}} {
			b, err := m.AppendBinary([]byte("before"))
			if !errors.Is(err, backends.ErrUnsupported) || string(b) != "before" {
				t.Errorf("%T of protocol %v: %x, %v; want ErrUnsupported", m, p, b, err)
			}
		}
	}
	for op, want := range map[natpmp.Opcode]string{
		0: "external address", 1: "map udp", 2: "map tcp", 3: "opcode 3",
		128: "external address response", 129: "map udp response", 130: "map tcp response", 133: "opcode 133",
	} {
		if got := op.String(); got != want {
			t.Errorf("opcode %d is %q, want %q", uint8(op), got, want)
		}
	}
}

// TestAllocations is not parallel, because AllocsPerRun counts the allocations of
// the whole process.
func TestAllocations(t *testing.T) {
	buf := make([]byte, 0, 64)
	addrRequest := natpmp.ExternalAddrRequest{}
	addr := natpmp.ExternalAddrResponse{Epoch: epoch, Addr: external}
	mapRequest := natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 1, ExternalPort: 2, Lifetime: twoHours}
	mapResponse := natpmp.MapResponse{Protocol: backends.UDP, InternalPort: 1, ExternalPort: 2, Lifetime: twoHours}
	errorResponse := natpmp.ErrorResponse{Result: natpmp.UnsupportedVersion, Epoch: epoch}
	var (
		addrRequestBytes = unhex("0000")
		addrBytes        = unhex("0080 0000 000004d2 cb007107")
		mapRequestBytes  = unhex("0001 0000 1ae1 1ae1 00001c20")
		mapBytes         = unhex("0081 0000 000004d2 1ae1 1ae2 00000e10")
		failureBytes     = unhex("0000 0001 000004d2")
	)
	var err error
	for name, f := range map[string]func(){
		"ExternalAddrRequest.AppendBinary":  func() { _, err = addrRequest.AppendBinary(buf) },
		"ExternalAddrResponse.AppendBinary": func() { _, err = addr.AppendBinary(buf) },
		"MapRequest.AppendBinary":           func() { _, err = mapRequest.AppendBinary(buf) },
		"MapResponse.AppendBinary":          func() { _, err = mapResponse.AppendBinary(buf) },
		"ErrorResponse.AppendBinary":        func() { _, err = errorResponse.AppendBinary(buf) },
		"ParseHeader":                       func() { _, err = natpmp.ParseHeader(mapBytes) },
		"ParseExternalAddrRequest":          func() { _, err = natpmp.ParseExternalAddrRequest(addrRequestBytes) },
		"ParseExternalAddrResponse":         func() { _, err = natpmp.ParseExternalAddrResponse(addrBytes) },
		"ParseMapRequest":                   func() { _, err = natpmp.ParseMapRequest(mapRequestBytes) },
		"ParseMapResponse":                  func() { _, err = natpmp.ParseMapResponse(mapBytes) },
		"ParseErrorResponse":                func() { _, err = natpmp.ParseErrorResponse(failureBytes) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v; want none", name, n, err)
		}
	}
}
