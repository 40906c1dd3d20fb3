package pcp_test

import (
	"bytes"
	"context"
	"encoding"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/attack"
)

func seed(f *testing.F) {
	f.Add([]byte(nil))
	for _, s := range vectors {
		b := unhex(s)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	for _, tt := range refusedRequests {
		f.Add(unhex(tt.bytes))
	}
	for _, tt := range foreignMessages {
		f.Add(unhex(tt.bytes))
	}
	f.Add(append(vector("renewal"), unhex(optThird+optPrefer+optFilter+"80000003 61626300"+optUnknown)...))
	f.Add(append(vector("peer request"), unhex(optThird6+"80000000")...))
	f.Add(append(vector("mapped, shorter lifetime"), unhex("80000001 ff000000"+optThird+optThird+"03000014")...))
}

// FuzzParse checks that no parser panics, keeps its input or changes it. A parsed
// message can be encoded, and the result parses to an equal message.
func FuzzParse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, parse := range parsers {
			in := bytes.Clone(b)
			first, err := parse(in)
			if !bytes.Equal(b, in) {
				t.Fatalf("%s changed its input", name)
			}
			m, ok := first.(encoding.BinaryAppender)
			if err != nil || !ok {
				continue
			}
			clear(in)
			written, err := m.AppendBinary(nil)
			if err != nil {
				t.Fatalf("%s: cannot encode the parsed message %+v: %v", name, first, err)
			}
			again, err := parse(written)
			if err != nil {
				t.Fatalf("%s: cannot parse %x again: %v", name, written, err)
			}
			if diff := cmp.Diff(first, again, equal); diff != "" {
				t.Fatalf("%s of %x (-first +again):\n%s", name, b, diff)
			}
		}
	})
}

// FuzzParseExact checks that a message of the exact size is encoded to the same
// bytes, except for the reserved fields.
func FuzzParseExact(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, size := range sizes {
			op, ok := opcodes[name]
			if !ok || len(b) != size {
				continue
			}
			got, err := parsers[name](b)
			if err != nil {
				continue
			}
			want := bytes.Clone(b)
			clear(want[2:3])
			if op&0x80 != 0 {
				clear(want[12:24])
			} else {
				clear(want[3:4])
			}
			if op == 0 {
				clear(want[4:8]) // an announcement has no lifetime
			}
			if size >= 60 {
				clear(want[37:40])
			}
			if size >= 80 {
				clear(want[62:64])
			}
			written, err := got.(encoding.BinaryAppender).AppendBinary(nil)
			if err != nil || string(written) != string(want) {
				t.Fatalf("%s: parsed %x, encoded %x, %v", name, want, written, err)
			}
		}
	})
}

// FuzzRefuse checks that the response to each refused request is valid, has the
// code of the error, and can be parsed by a client.
func FuzzRefuse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{"announce request", "map request", "peer request"} {
			_, err := parsers[name](b)
			var requestErr *pcp.RequestError
			if !errors.As(err, &requestErr) {
				continue
			}
			refusal, err := pcp.AppendErrorResponse(nil, b, requestErr.Code, halfHour, epoch)
			if err != nil || len(refusal) < 24 || len(refusal) > pcp.MaxMessage || len(refusal)%4 != 0 {
				t.Fatalf("%s: %x, %v", name, refusal, err)
			}
			got, err := pcp.ParseErrorResponse(refusal)
			want := pcp.ErrorResponse{
				Version: pcp.Version, Opcode: pcp.Opcode(b[1]) | pcp.OpResponse,
				Result: requestErr.Code, Lifetime: halfHour, Epoch: epoch,
			}
			if err != nil || got != want {
				t.Fatalf("%s: %+v, %v; want %+v", name, got, err, want)
			}
		}
	})
}

// FuzzClient checks that every call returns in time and returns valid mappings,
// even if the server's responses are corrupted.
func FuzzClient(f *testing.F) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = gw.Close() })
	for _, seed := range attack.Seeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewMutator(program).Mutate})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		b, err := pcp.New(pcp.Config{
			Gateway: gw.Addr(), Transmissions: 3, FirstWait: 2 * time.Millisecond, LongestWait: 4 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		defer attack.Watchdog()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := backends.Request{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), External: netip.AddrPortFrom(netip.Addr{}, 8081),
			Remote: netip.MustParseAddrPort("198.51.100.7:0"), Description: "fuzz",
		}
		if err := attack.Exercise(ctx, b, r); err != nil {
			t.Error(err)
		}
		// The client returns the fields of the request, the ports and a lifetime.
		nonce := pcp.Nonce{1, 2, 3}
		m, err := b.Client().Map(ctx, pcp.MapRequest{Protocol: backends.UDP, InternalPort: 9090, Lifetime: time.Hour, Nonce: nonce})
		if err == nil && (m.Nonce != nonce || m.InternalPort != 9090 || m.ExternalPort == 0 || m.Lifetime <= 0 || m.Protocol != backends.UDP) {
			t.Errorf("Map: %+v", m)
		}
		if _, err := b.Client().Announce(ctx); err == nil {
			_, _ = b.Client().Peer(ctx, pcp.PeerRequest{
				Protocol: backends.UDP, InternalPort: 9090, Lifetime: time.Minute, Remote: netip.MustParseAddrPort("198.51.100.7:9"),
			})
		}
	})
}
