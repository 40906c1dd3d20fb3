package pcp_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// set returns b with the bytes from i replaced.
func set(b []byte, i int, with string) []byte {
	copy(b[i:], unhex(with))
	return b
}

// A server's refusals, from the request.
func TestAppendErrorResponse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want     string
		request  []byte
		lifetime time.Duration
	}{
		{"refused by policy", vector("map udp"), halfHour},
		{"refused, another nonce", set(vector("renewal"), 24, "a0a1a2a3 a4a5a6a7 a8a9aaab"), 2345 * time.Second},
		{"out of resources", vector("map udp"), soon},
		{"network failure", vector("map udp"), soon},
		{"quota exceeded", vector("map udp"), soon},
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

// The size of a refusal is legal whatever the request's was.
func TestAppendErrorResponseSizes(t *testing.T) {
	t.Parallel()
	request := make([]byte, 2*pcp.MaxMessage)
	for i := range request {
		request[i] = 0x55
	}
	for n := 2; n <= len(request); n++ {
		for _, code := range []pcp.ResultCode{pcp.MalformedRequest, pcp.NoResources} {
			b, err := pcp.AppendErrorResponse(nil, request[:n], code, soon, epoch)
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
		"a runt":     {"02", pcp.MalformedRequest, io.ErrUnexpectedEOF},
		"a response": {"0281", pcp.MalformedRequest, backends.ErrInvalid},
		"no error":   {"0201", pcp.Success, backends.ErrInvalid},
	} {
		b, err := pcp.AppendErrorResponse([]byte("before"), unhex(tt.request), tt.code, soon, epoch)
		if !errors.Is(err, tt.want) || string(b) != "before" {
			t.Errorf("%s: %x, %v; want %v", name, b, err, tt.want)
		}
	}
}

// What can be read of a response that is not what was hoped for.
func TestParseErrorResponse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, bytes string
		want        pcp.ErrorResponse
	}{
		{"NAT-PMP", "0000 0001 000004d2", pcp.ErrorResponse{Result: 1}},
		{"NAT-PMP, opcode kept", "0081 0001 000004d2", pcp.ErrorResponse{Opcode: 129, Result: 1}},
		{"NAT-PMP, cut short", "0000 0001", pcp.ErrorResponse{Result: 1}},
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
			"a header and too much, but of a version", "02810001 00000708 000004d2 00000000 00000000 00000000 00",
			pcp.ErrorResponse{Version: 2, Opcode: 129, Result: 1, Lifetime: halfHour, Epoch: epoch},
		},
		{
			"twelve bytes, as an answer to NAT-PMP", "02810002 a2a90000 004f8fd2",
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
