package pcp_test

import (
	"encoding"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

const (
	optThird   = "01000010 00000000 00000000 0000ffff c0a80114"
	optThird6  = "01000010 20010db8 00000000 00000000 00000001"
	optPrefer  = "02000000"
	optFilter  = "03000014 00780000 00000000 00000000 0000ffff c6336400"
	optUnknown = "e0000003 01020300"
)

// refusedRequests are requests that a server has to refuse with the code. If the
// code is 0, the server does not answer.
var refusedRequests = []struct {
	name, bytes string
	code        pcp.ResultCode
}{
	{"prefer failure of no port", vectors["prefer failure of no port"], pcp.MalformedOption},
	{"unknown option", vectors["unknown option"], pcp.UnsupportedOption},
	{"option past the end", vectors["option past the end"], pcp.MalformedOption},
	{"protocol 0 with a port", vectors["protocol 0 with a port"], pcp.MalformedRequest},
	{"version 3", vectors["version 3"], pcp.UnsupportedVersion},
	{"four bytes", vectors["four bytes"], 0},
	{"23 bytes", vectors["announce request"][:len(vectors["announce request"])-2], 0},
	{"a response", vectors["mapped, shorter lifetime"], 0},
	{"opcode 9", "02090000 00001c20 00000000 00000000 0000ffff c0a8010a deadbeef", pcp.UnsupportedOpcode},
	{"size not a multiple of four", vectors["map udp"] + "00", pcp.MalformedRequest},
	{"too short", vectors["announce request"][:2] + "01" + vectors["announce request"][4:], pcp.MalformedRequest},
	{"too long", vectors["map udp"] + strings.Repeat("e0000000", 261), pcp.MalformedRequest},
	{"third party twice", vectors["map udp"] + optThird + optThird6, pcp.MalformedOption},
	{"third party, short", vectors["map udp"] + "0100000c 00000000 00000000 0000ffff", pcp.MalformedOption},
	{"third party is the client", vectors["map udp"] + "01000010 00000000 00000000 0000ffff c0a8010a", pcp.MalformedRequest},
	{"prefer failure twice", vectors["renewal"] + optPrefer + optPrefer, pcp.MalformedOption},
	{"prefer failure, long", vectors["renewal"] + "02000001 00000000", pcp.MalformedOption},
	{"prefer failure of a delete", vectors["delete"] + optPrefer, pcp.MalformedOption},
	{"filter of a delete", vectors["delete"] + optFilter, pcp.MalformedOption},
	{"filter, short", vectors["map udp"] + "03000010 00780000 00000000 00000000 0000ffff", pcp.MalformedOption},
	{"filter, prefix of 129", vectors["map udp"] + "03000014 00810000 00000000 00000000 0000ffff c6336400", pcp.MalformedOption},
	{"filter, prefix within ::ffff", vectors["map udp"] + "03000014 005f0000 00000000 00000000 0000ffff c6336400", pcp.MalformedOption},
	{"description twice", vectors["description"] + "80000001 61000000", pcp.MalformedOption},
	{"description cleared and set", vectors["map udp"] + "80000000 80000001 61000000", pcp.MalformedOption},
	{"description, long", vectors["map udp"] + "800003f9" + strings.Repeat("61", 1017) + "000000", pcp.MalformedOption},
	{"unknown option, the last", vectors["map udp"] + optThird + "7f000000", pcp.UnsupportedOption},
	{"third party of a peer is the client", vectors["peer request"] + "01000010 00000000 00000000 0000ffff c0a8010a", pcp.MalformedRequest},
	{"filter of a peer", vectors["peer request"] + optFilter, pcp.UnsupportedOption},
	{"prefer failure of a peer", vectors["peer request"] + optPrefer, pcp.UnsupportedOption},
	{"third party of an announcement", vectors["announce request"] + optThird, pcp.UnsupportedOption},
	{"announcement, past the end", vectors["announce request"] + "80000001", pcp.MalformedOption},
}

func TestRefusedRequests(t *testing.T) {
	t.Parallel()
	for _, tt := range refusedRequests {
		b := unhex(strings.ReplaceAll(tt.bytes, " ", ""))
		parse := parsers["map request"]
		switch b[1] {
		case 0:
			parse = parsers["announce request"]
		case 2:
			parse = parsers["peer request"]
		}
		got, err := parse(b)
		var requestErr *pcp.RequestError
		switch {
		case err == nil:
			t.Errorf("%s: parsed as %+v", tt.name, got)
		case errors.As(err, &requestErr) != (tt.code != 0):
			t.Errorf("%s: %v, want result %d", tt.name, err, tt.code)
		case requestErr != nil && (requestErr.Code != tt.code || requestErr.Reason == ""):
			t.Errorf("%s: %v, want result %d", tt.name, err, tt.code)
		case requestErr == nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, backends.ErrMalformed):
			t.Errorf("%s: %v, want an unexpected end or ErrMalformed", tt.name, err)
		}
	}
}

// TestOptions checks how a server parses options.
func TestOptions(t *testing.T) {
	t.Parallel()
	third6 := netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		name, bytes  string
		want         pcp.Options
		notCanonical bool // encoded to other bytes
	}{
		{"none", "", pcp.Options{}, false},
		{"third party", optThird6, pcp.Options{ThirdParty: third6}, false},
		{
			"all", optThird6 + optPrefer + optFilter + optFilter + "80000004 61626320",
			pcp.Options{
				ThirdParty: third6, PreferFailure: true,
				Filters: []pcp.Filter{{Prefix: subnet}, {Prefix: subnet}}, Description: "abc",
			},
			false,
		},
		{
			"in another order", "80000003 61626300" + optPrefer + optUnknown + optThird6,
			pcp.Options{ThirdParty: third6, PreferFailure: true, Description: "abc"},
			true,
		},
		{"reserved bytes and padding", "80ff0003 616263ff", pcp.Options{Description: "abc"}, true},
		{"description with spaces at its end", "80000008 61622020 20202020", pcp.Options{Description: "ab"}, true},
		{"description of spaces", "80000004 20202020", pcp.Options{ClearDescription: true}, true},
		{"no description", "80000000", pcp.Options{ClearDescription: true}, false},
		{"description is not UTF-8", "80000001 ff000000", pcp.Options{}, true},
		{"description with a NUL", "80000003 61006200", pcp.Options{}, true},
		{
			"longest description", "800003f8" + strings.Repeat("61", 1016),
			pcp.Options{Description: strings.Repeat("a", 1016)},
			false,
		},
		{
			"filters", "03000014 00801f90 20010db8 00000000 00000000 00000001" +
				"03000014 00010000 80000000 00000000 00000000 00000000" +
				"03000014 00600000 00000000 00000000 0000ffff 00000000" +
				"03000014 00000050 00000000 00000000 00000000 00000000",
			pcp.Options{Filters: []pcp.Filter{
				{Prefix: netip.MustParsePrefix("2001:db8::1/128"), Port: 8080},
				{Prefix: netip.MustParsePrefix("8000::/1")},
				{Prefix: netip.MustParsePrefix("0.0.0.0/0")},
				{Port: 80},
			}},
			false,
		},
		{
			"filter cleared at an address", "03000014 00000000 00000000 00000000 0000ffff c6336400",
			pcp.Options{Filters: []pcp.Filter{{}}},
			true,
		},
	} {
		b := append(vector("renewal"), unhex(tt.bytes)...)
		got, err := pcp.ParseMapRequest(b)
		if diff := cmp.Diff(tt.want, got.Options, equal); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
		if written, err := got.MarshalBinary(); err != nil || !tt.notCanonical && string(written) != string(b) {
			t.Errorf("%s: encoded %x, %v; want %x", tt.name, written, err, b)
		}
	}
}

// TestResponseOptions checks that a client parses the options that are valid and
// skips the others: the server has created the mapping already.
func TestResponseOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, bytes string
		want        pcp.Options
	}{
		{"unknown, below 128 too", "64000004 01020304" + optUnknown + optThird, pcp.Options{ThirdParty: thirdParty}},
		{"twice", optThird + optThird6, pcp.Options{ThirdParty: thirdParty}},
		{"of a wrong size", "02000004 00000000" + "01000000" + optThird, pcp.Options{ThirdParty: thirdParty}},
		{"past the end", optPrefer + "80000004", pcp.Options{PreferFailure: true}},
		{"invalid filter", "03000014 00810000 00000000 00000000 00000000 00000000" + optPrefer, pcp.Options{PreferFailure: true}},
	} {
		got, err := pcp.ParseMapResponse(append(vector("mapped, shorter lifetime"), unhex(tt.bytes)...))
		if diff := cmp.Diff(tt.want, got.Options, equal); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
	peer, err := pcp.ParsePeerResponse(append(vector("peer"), unhex(optPrefer+optFilter+optThird+"80000001 61000000")...))
	if diff := cmp.Diff(pcp.Options{ThirdParty: thirdParty, Description: "a"}, peer.Options, equal); err != nil || diff != "" {
		t.Errorf("peer: %v (-want +got):\n%s", err, diff)
	}
	if b, err := pcp.ParseAnnounceResponse(append(vector("announce"), unhex(optUnknown+"02000000 01000001")...)); err != nil {
		t.Errorf("announcement with options: %+v, %v", b, err)
	}
	if b, err := pcp.ParseAnnounceRequest(append(vector("announce request"), unhex(optUnknown+"80000001 61000000")...)); err != nil {
		t.Errorf("announce request with options: %+v, %v", b, err)
	}
}

// TestAppendInvalid checks that invalid messages are not encoded.
func TestAppendInvalid(t *testing.T) {
	t.Parallel()
	good := request(time.Hour, backends.TCP, 80, 80, nil)
	with := func(change func(*pcp.MapRequest)) pcp.MapRequest { r := good; change(&r); return r }
	many := make([]pcp.Filter, 44)
	for name, m := range map[string]encoding.BinaryAppender{
		"announce without a client": pcp.AnnounceRequest{},
		"map without a client":      with(func(r *pcp.MapRequest) { r.Client = netip.Addr{} }),
		"protocol 0 with a port":    with(func(r *pcp.MapRequest) { r.Protocol = 0 }),
		"the client as third party": with(func(r *pcp.MapRequest) { r.Options.ThirdParty = netip.MustParseAddr("::ffff:192.168.1.10") }),
		"the client, with its zone": with(func(r *pcp.MapRequest) {
			r.Client, r.Options.ThirdParty = netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("fe80::1")
		}),
		"prefer failure of no port": with(func(r *pcp.MapRequest) { r.Options.PreferFailure, r.ExternalPort = true, 0 }),
		"prefer failure of a delete": with(func(r *pcp.MapRequest) {
			r.Options.PreferFailure, r.Lifetime = true, 0
		}),
		"filter of a delete": with(func(r *pcp.MapRequest) { r.Options.Filters, r.Lifetime = filters, -1 }),
		"too many filters":   with(func(r *pcp.MapRequest) { r.Options.Filters = many }),
		"filter of ::/0":     with(func(r *pcp.MapRequest) { r.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("::/0")}} }),
		"filter within ::ffff": with(func(r *pcp.MapRequest) {
			r.Options.Filters = []pcp.Filter{{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:198.51.100.0"), 95)}}
		}),
		"filter of an invalid prefix": with(func(r *pcp.MapRequest) {
			r.Options.Filters = []pcp.Filter{{}, {Prefix: netip.PrefixFrom(thirdParty, 33)}}
		}),
		"description too long":        with(func(r *pcp.MapRequest) { r.Options.Description = strings.Repeat("a", 1017) }),
		"description not UTF-8":       with(func(r *pcp.MapRequest) { r.Options.Description = "\xff" }),
		"description with a NUL":      with(func(r *pcp.MapRequest) { r.Options.Description = "a\x00" }),
		"description set and cleared": with(func(r *pcp.MapRequest) { r.Options.Description, r.Options.ClearDescription = "a", true }),
		"description and filter": with(func(r *pcp.MapRequest) {
			r.Options.Description, r.Options.Filters = strings.Repeat("a", 1016), many[:1]
		}),
		"map response too long":       pcp.MapResponse{Options: pcp.Options{Filters: many}},
		"peer without a client":       pcp.PeerRequest{Remote: remote},
		"peer without a peer":         pcp.PeerRequest{Client: client4},
		"peer of all protocols":       pcp.PeerRequest{Client: client4, InternalPort: 1, Remote: remote},
		"peer and filter":             pcp.PeerRequest{Client: client4, Remote: remote, Options: pcp.Options{Filters: filters}},
		"peer and prefer failure":     pcp.PeerRequest{Client: client4, Remote: remote, Options: pcp.Options{PreferFailure: true}},
		"peer for the client":         pcp.PeerRequest{Client: client4, Remote: remote, Options: pcp.Options{ThirdParty: client4}},
		"peer response and filter":    pcp.PeerResponse{Remote: remote, Options: pcp.Options{Filters: filters}},
		"peer response, no peer":      pcp.PeerResponse{},
		"peer response, invalid text": pcp.PeerResponse{Remote: remote, Options: pcp.Options{Description: "\xff"}},
	} {
		if b, err := m.AppendBinary([]byte("before")); !errors.Is(err, backends.ErrInvalid) || string(b) != "before" {
			t.Errorf("%s: %x, %v; want ErrInvalid", name, b, err)
		}
	}
	// A message of the maximum size.
	r := with(func(r *pcp.MapRequest) {
		r.Options = pcp.Options{ThirdParty: thirdParty, Description: strings.Repeat("é", 508)[2:]}
	})
	if b, err := r.MarshalBinary(); err != nil || len(b) != pcp.MaxMessage {
		t.Errorf("%d bytes, %v; want %d", len(b), err, pcp.MaxMessage)
	}
	// An IPv4 prefix and the IPv4-mapped form of it are encoded to the same bytes.
	r = with(func(r *pcp.MapRequest) {
		r.Options.Filters = []pcp.Filter{{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:198.51.100.0"), 120)}}
	})
	b, err := r.MarshalBinary()
	if want := strings.ReplaceAll(optFilter, " ", ""); err != nil || !strings.HasSuffix(hex.EncodeToString(b), want) {
		t.Errorf("%x, %v; want %s at the end", b, err, want)
	}
	for code, want := range map[pcp.OptionCode]string{
		1: "third party", 2: "prefer failure", 3: "filter", 128: "description", 130: "option 130",
	} {
		if got := code.String(); got != want {
			t.Errorf("option %d is %q, want %q", uint8(code), got, want)
		}
	}
}
