package natpmp_test

import (
	"context"
	"encoding"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/attack"
)

func seed(f *testing.F) {
	f.Add([]byte(nil))
	for _, tt := range messages {
		b := unhex(tt.bytes)
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add(unhex("0280"))
	f.Add(unhex("02810002 a2a90000 004f8fd2"))
	f.Add(unhex("0085 0005"))
}

// FuzzParse checks that no parser panics, keeps its input or changes it. A parsed
// message can be encoded, and the result parses to an equal message.
func FuzzParse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		for name, parse := range parsers {
			first, err := parse(b)
			if string(b) != in {
				t.Fatalf("%s changed its input", name)
			}
			m, ok := first.(encoding.BinaryAppender)
			if err != nil || !ok {
				continue
			}
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
// bytes, except for the reserved field of requests.
func FuzzParseExact(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, exact := range []struct {
			parser string
			size   int
		}{{"external addr request", 2}, {"external addr", 12}, {"map request", 12}, {"map", 16}} {
			got, err := parsers[exact.parser](b)
			if len(b) < exact.size {
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%s of %d bytes: %v", exact.parser, len(b), err)
				}
				continue
			}
			if err != nil {
				continue
			}
			want := string(b[:exact.size])
			if exact.parser == "map request" {
				want = want[:2] + "\x00\x00" + want[4:]
			}
			written, err := got.(encoding.BinaryAppender).AppendBinary(nil)
			if err != nil || string(written) != want {
				t.Fatalf("%s: parsed %x, encoded %x, %v", exact.parser, want, written, err)
			}
		}
	})
}

// FuzzClient checks that every call returns in time and returns valid mappings,
// even if the gateway's responses are corrupted.
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
		b, err := natpmp.New(natpmp.Config{
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
		}
		if err := attack.Exercise(ctx, b, r); err != nil {
			t.Error(err)
		}
		// The client only returns ports and a lifetime. The gateway may assign its own
		// internal port, with the same number outside.
		m, err := b.Client().Map(ctx, natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 9090})
		if err == nil && (m.InternalPort != 9090 && m.InternalPort != 0 && m.InternalPort != m.ExternalPort || m.ExternalPort == 0 || m.Lifetime <= 0 || m.Protocol != backends.UDP) {
			t.Errorf("Map: %+v", m)
		}
	})
}
