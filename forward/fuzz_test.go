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

// fastBackends returns backends with short timeouts.
func fastBackends(t *testing.T, gw *gatewaytest.Gateway) (all []backends.Backend) {
	t.Helper()
	const first, longest = 2 * time.Millisecond, 4 * time.Millisecond
	noReceiver := netip.MustParseAddrPort("127.0.0.1:0")
	n, nerr := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: first, LongestWait: longest, Announce: noReceiver})
	p, perr := pcp.New(pcp.Config{Gateway: gw.Addr(), Transmissions: 3, FirstWait: first, LongestWait: longest, Announce: noReceiver})
	u, uerr := upnp.New(upnp.Config{URL: gw.UPnP().DescriptionURL(), Timeout: 100 * time.Millisecond, Notify: noReceiver})
	if err := errors.Join(nerr, perr, uerr); err != nil {
		t.Fatal(err)
	}
	return []backends.Backend{n, p, u}
}

// FuzzClient checks that Enable returns in time, no matter how the replies of a gateway
// are changed in all protocols. A granted mapping must be for the requested port.
func FuzzClient(f *testing.F) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = gw.Close() })
	for i, seed := range attack.Seeds() {
		f.Add(seed, i%3 == 0, i%4 == 0)
	}
	f.Fuzz(func(t *testing.T, program []byte, both, samePort bool) {
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewMutator(program).Mutate})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		all := fastBackends(t, gw)
		defer attack.Watchdog()()
		forwarder, err := forward.New(&forward.Config{Backends: all, RequestTimeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		opts := []forward.Option{forward.TCP(8080)}
		if both {
			opts[0] = forward.Both(8080)
		}
		if samePort {
			opts = append(opts, forward.SamePort())
		}
		if m, err := forwarder.Enable(t.Context(), opts...); err == nil {
			checkGrants(t, m.Grants(), both, samePort)
			if err := m.Refresh(t.Context()); err == nil {
				checkGrants(t, m.Grants(), both, samePort)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_ = forwarder.Shutdown(ctx) // mappings that are not deleted in time remain
		for _, b := range all {
			_ = b.Close()
		}
	})
}

// checkGrants checks the grants for port 8080. No grant is valid too.
func checkGrants(t *testing.T, state []backends.Mapping, both, samePort bool) {
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
		if !samePort && m.Internal.Port() != 8080 || samePort && m.Internal.Port() != m.External.Port() || m.External.Port() != state[0].External.Port() {
			t.Errorf("granted %v to %v", m.External, m.Internal)
		}
	}
}
