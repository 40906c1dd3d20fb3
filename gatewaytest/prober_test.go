package gatewaytest_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/freeport"
	"github.com/natforward/goforward/reach"
)

// TestProber checks the verdicts of the prober for TCP and UDP: with a mapping, without one, and with
// one that is listed and not forwarded.
func TestProber(t *testing.T) {
	for name, tt := range map[string]struct {
		config gatewaytest.Config
		entry  bool
		want   reach.Verdict
	}{
		"mapped":        {entry: true, want: reach.Reachable},
		"not mapped":    {want: reach.Unreachable},
		"not forwarded": {config: gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{NoTraffic: true}}}}, entry: true, want: reach.Unreachable},
	} {
		for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
			t.Run(name+", "+p.String(), func(t *testing.T) {
				t.Parallel() // a missing datagram takes two seconds
				gw := gatewaytest.New(t, tt.config)
				internal, err := freeport.UDP() // no other socket has it, also for TCP
				if err != nil {
					t.Fatal(err)
				}
				external := netip.AddrPortFrom(gw.External(), 8080)
				if tt.entry {
					if err := gw.AddMapping(gatewaytest.Entry{Service: "upnp", Protocol: p, External: external, Internal: internal}); err != nil {
						t.Fatal(err)
					}
				}
				target := reach.Target{Protocol: p, External: external, Internal: internal}
				port, err := reach.Open(t.Context(), target)
				if err != nil {
					t.Fatal(err)
				}
				defer port.Close()
				e, err := gw.Prober().Probe(t.Context(), target, port)
				if err != nil || e.Verdict != tt.want || e.Level != reach.LevelInternet {
					t.Errorf("%+v, %v, want %v", e, err, tt.want)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if e, err := gw.Prober().Probe(ctx, target, port); e.Verdict == reach.Unreachable && err == nil {
					t.Error("unreachable, because the context had ended")
				}
			})
		}
	}
}
