package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/attack"
)

// impatient are backends that do not wait long for a gateway.
func impatient(t *testing.T, gw *gatewaytest.Gateway) (all []backends.Backend) {
	t.Helper()
	const first, longest = 2 * time.Millisecond, 4 * time.Millisecond
	nowhere := netip.MustParseAddrPort("127.0.0.1:0")
	n, nerr := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: first, LongestWait: longest, Announce: nowhere})
	p, perr := pcp.New(pcp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: first, LongestWait: longest, Announce: nowhere})
	u, uerr := upnp.New(upnp.Config{URL: gw.UPnP().DescriptionURL(), Timeout: 100 * time.Millisecond, Notify: nowhere})
	if err := errors.Join(nerr, perr, uerr); err != nil {
		t.Fatal(err)
	}
	return []backends.Backend{n, p, u}
}

// FuzzClient: whatever becomes of a gateway's answers, in all protocols, Enable
// ends in its time, and what it says was granted is of the port that was asked
// for.
func FuzzClient(f *testing.F) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = gw.Close() })
	for i, seed := range attack.Seeds() {
		f.Add(seed, i%3 == 0, i%4 == 0)
	}
	f.Fuzz(func(t *testing.T, program []byte, both, same bool) {
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewMutator(program).Mutate})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		all := impatient(t, gw)
		defer attack.Watchdog()()
		fw, err := forward.New(&forward.Config{Backends: all, RequestTimeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		opts := []forward.Option{forward.TCP(8080)}
		if both {
			opts[0] = forward.Both(8080)
		}
		if same {
			opts = append(opts, forward.SamePort())
		}
		if m, err := fw.Enable(t.Context(), opts...); err == nil {
			checkState(t, m.Grants(), both, same)
			if err := m.Refresh(t.Context()); err == nil {
				checkState(t, m.Grants(), both, same)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_ = fw.Shutdown(ctx) // what the gateway does not take back, it keeps
		for _, b := range all {
			_ = b.Close()
		}
	})
}

// checkState checks what was granted for port 8080; nothing is fine.
func checkState(t *testing.T, state []backends.Mapping, both, same bool) {
	t.Helper()
	want := 1
	if both {
		want = 2
	}
	if len(state) != 0 && len(state) != want {
		t.Errorf("%d mappings, want %d", len(state), want)
	}
	for i, m := range state {
		r := backends.Request{Protocol: []backends.Protocol{backends.TCP, backends.UDP}[i%2]}
		if err := attack.Check(m, r); err != nil {
			t.Error(err)
		}
		if !same && m.Internal.Port() != 8080 || same && m.Internal.Port() != m.External.Port() || m.External.Port() != state[0].External.Port() {
			t.Errorf("granted %v to %v", m.External, m.Internal)
		}
	}
}
