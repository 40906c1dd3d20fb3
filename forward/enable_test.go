package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func TestEnable(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	got, err := f.Enable(t.Context(), forward.UDP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.AddrPortFrom(external, 8080); got.External().AddrPort != want {
		t.Errorf("External %v, want %v", got.External(), want)
	}
	if want := netip.AddrPortFrom(here, 8080); got.Internal() != want {
		t.Errorf("Internal %v, want %v", got.Internal(), want)
	}
	if got.Backend() != "memory" || got.Scope() != backends.ScopePublic || got.Err() != nil || !got.Gateway().IsValid() {
		t.Errorf("backend %q, scope %v, err %v, gateway %v", got.Backend(), got.Scope(), got.Err(), got.Gateway())
	}
	if left := time.Until(got.Expires()); left < time.Hour || left > 2*time.Hour {
		t.Errorf("expires in %v, want the default of two hours", left)
	}
	if g := m.live(); len(g) != 1 || g[0].Protocol != backends.UDP || g[0].Description != "goforward" {
		t.Errorf("the gateway has %+v", g)
	}
}

// Without options: TCP, a local port that can be listened on, and the same
// number outside, since some gateways refuse to choose one.
func TestEnableNothing(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	got, err := f.Enable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Internal().Port() == 0 || got.External().Port() != got.Internal().Port() {
		t.Errorf("%v → %v, want one number", got.External(), got.Internal())
	}
	if g := m.live(); len(g) != 1 || g[0].Protocol != backends.TCP {
		t.Errorf("the gateway has %+v, want TCP", g)
	}
}

func TestEnableInvalid(t *testing.T) {
	peer := netip.MustParseAddrPort("198.51.100.1:0")
	for name, test := range map[string]struct {
		opts []forward.Option
		want error
	}{
		"two protocols":          {[]forward.Option{forward.TCP(1), forward.UDP(1)}, backends.ErrInvalid},
		"one protocol twice":     {[]forward.Option{forward.TCP(1), forward.TCP(1)}, backends.ErrInvalid},
		"protocol 0":             {[]forward.Option{forward.Protocol(0, 80)}, backends.ErrInvalid},
		"external port 0":        {[]forward.Option{forward.TCP(80), forward.External(0)}, backends.ErrInvalid},
		"negative lifetime":      {[]forward.Option{forward.TCP(80), forward.Lifetime(-1)}, backends.ErrInvalid},
		"once in the background": {[]forward.Option{forward.TCP(80), forward.Once(), forward.Background()}, backends.ErrInvalid},
		"exact without a port":   {[]forward.Option{forward.Exact()}, backends.ErrInvalid},
		"no address":             {[]forward.Option{forward.TCP(80), forward.To(netip.AddrPort{})}, backends.ErrInvalid},
		"no port at an address":  {[]forward.Option{forward.To(peer)}, backends.ErrInvalid},
		"no peer":                {[]forward.Option{forward.TCP(80), forward.From(netip.AddrPort{})}, backends.ErrInvalid},
		"same port, two ports":   {[]forward.Option{forward.TCP(80), forward.External(81), forward.SamePort()}, backends.ErrInvalid},
		"nil":                    {[]forward.Option{nil}, backends.ErrInvalid},
		"a peer, unsupported":    {[]forward.Option{forward.TCP(80), forward.From(peer)}, backends.ErrUnsupported},
		"no free port of SCTP":   {[]forward.Option{forward.Protocol(backends.SCTP, 0)}, backends.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			f := forwarder(t, forward.Config{}, m)
			defer f.Close()
			if got, err := f.Enable(t.Context(), test.opts...); !errors.Is(err, test.want) || got != nil {
				t.Errorf("Enable: %v, %v; want %v", got, err, test.want)
			}
			if calls := m.calls(); len(calls) > 0 {
				t.Errorf("asked the gateway %q", calls)
			}
		})
	}
}

// fails makes calls at these wishes fail.
func fails(err error, wishes ...uint16) func(string, backends.Protocol, uint16) error {
	return func(op string, _ backends.Protocol, wish uint16) error {
		for _, w := range wishes {
			if op == "map" && w == wish {
				return err
			}
		}
		return nil
	}
}

func always(err error) func(string, backends.Protocol, uint16) error {
	return func(op string, _ backends.Protocol, _ uint16) error {
		if op == "map" {
			return err
		}
		return nil
	}
}

// Which refusals are worth another external port, and how often.
func TestPortHunt(t *testing.T) {
	for name, test := range map[string]struct {
		fail  func(string, backends.Protocol, uint16) error
		opts  []forward.Option
		want  error
		asked int
	}{
		"taken":                  {fails(backends.ErrConflict, 8080), []forward.Option{forward.TCP(8080)}, nil, 2},
		"taken for ever":         {always(backends.ErrConflict), []forward.Option{forward.TCP(8080)}, backends.ErrConflict, 9},
		"taken, exact":           {fails(backends.ErrConflict, 8080), []forward.Option{forward.TCP(8080), forward.Exact()}, backends.ErrConflict, 1},
		"low port refused":       {fails(backends.ErrNotAuthorized, 80), []forward.Option{forward.TCP(80)}, nil, 2},
		"low port refused, else": {fails(backends.ErrNotAuthorized, 80), []forward.Option{forward.TCP(8080), forward.External(80)}, nil, 2},
		"refused":                {always(backends.ErrNotAuthorized), []forward.Option{forward.TCP(80)}, backends.ErrNotAuthorized, 2},
		"high port refused":      {always(backends.ErrNotAuthorized), []forward.Option{forward.TCP(8080)}, backends.ErrNotAuthorized, 1},
		"no WAN":                 {always(backends.ErrNetworkFailure), []forward.Option{forward.TCP(8080)}, backends.ErrNetworkFailure, 1},
		"full":                   {always(backends.ErrNoResources), []forward.Option{forward.TCP(8080)}, backends.ErrNoResources, 1},
		"private WAN":            {always(backends.ErrPrivateWAN), []forward.Option{forward.TCP(8080)}, backends.ErrPrivateWAN, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			m.fail = test.fail
			f := forwarder(t, forward.Config{}, m)
			defer f.Close()
			got, err := f.Enable(t.Context(), test.opts...)
			if !errors.Is(err, test.want) {
				t.Errorf("Enable: %v, %v; want %v", got, err, test.want)
			}
			calls := m.calls()
			if len(calls) != test.asked {
				t.Errorf("asked %q, want %d requests", calls, test.asked)
			}
			if err == nil && got.External().Port() < 49152 {
				t.Errorf("port %d, want a dynamic one", got.External().Port())
			}
		})
	}
}

func TestBoth(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	m.taken[8080] = true
	got, err := f.Enable(t.Context(), forward.Both(8080))
	if err != nil {
		t.Fatal(err)
	}
	state := got.Grants()
	if len(state) != 2 || state[0].External != state[1].External || state[0].External.Port() != 8081 {
		t.Fatalf("granted %+v, want TCP and UDP on 8081", state)
	}
	if diff := cmp.Diff([]string{"map tcp 8080", "map udp 8081"}, m.calls()); diff != "" {
		t.Error(diff)
	}
	if err := got.Close(); err != nil || len(m.live()) != 0 {
		t.Errorf("Close: %v; the gateway has %v", err, m.live())
	}
}

// TCP and UDP on two numbers are neither: at most four tries, and nothing stays.
func TestBothUneven(t *testing.T) {
	m := newMemory()
	m.reserved = 7000
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	got, err := f.Enable(t.Context(), forward.Both(8080)) // the second try wishes what UDP got
	if err != nil || got.External().Port() != 7000 {
		t.Fatalf("Enable: %v, %v; want port 7000 for both", got, err)
	}
	if err := got.Close(); err != nil {
		t.Fatal(err)
	}
	m.taken[7000] = true // never for TCP
	m.calls()
	if got, err = f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Enable: %v, %v; want ErrConflict", got, err)
	}
	tries := slices.DeleteFunc(m.calls(), func(call string) bool { return !strings.HasPrefix(call, "map tcp") })
	if len(tries) != 4 {
		t.Errorf("tries %q, want 4", tries)
	}
	if left := m.live(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	m.set(func() { m.reserved, m.fail = 0, fails(backends.ErrNotAuthorized, 8080) })
	m.fail = func(op string, p backends.Protocol, _ uint16) error {
		if op == "map" && p == backends.UDP {
			return backends.ErrNotAuthorized
		}
		return nil
	}
	if _, err = f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrNotAuthorized) || len(m.live()) != 0 {
		t.Errorf("with UDP refused: %v, left %v", err, m.live())
	}
}

func TestSamePort(t *testing.T) {
	m := newMemory()
	m.taken[8080] = true
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	got, err := f.Enable(t.Context(), forward.Both(8080), forward.SamePort())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range got.Grants() {
		if g.External.Port() != 8081 || g.Internal.Port() != 8081 {
			t.Errorf("%v → %v, want 8081 on both sides", g.External, g.Internal)
		}
	}
	if n := len(m.live()); n != 2 {
		t.Errorf("the gateway has %v", m.live())
	}
}

// A backend that cannot express a request, or refuses it, gives way to the next.
func TestFallThrough(t *testing.T) {
	for name, fail := range map[string]error{
		"refused": backends.ErrNotAuthorized, "silent": backends.ErrNoReply, "broken": backends.ErrMalformed,
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newMemory(), newMemory()
			first.name, first.fail = "first", always(fail)
			second.name = "second"
			f := forwarder(t, forward.Config{}, first, second)
			defer f.Close()
			got, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil || got.Backend() != "second" {
				t.Errorf("Enable: %v by %q, %v", got, got.Backend(), err)
			}
		})
	}
}

// Equal identities are one mapping, which goes with the last that holds it.
func TestShared(t *testing.T) {
	m := newMemory()
	m.taken[8080] = true
	a, b := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
	defer a.Close()
	defer b.Close()
	first, err := a.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if first.External() != second.External() {
		t.Errorf("%v and %v, want one", first.External(), second.External())
	}
	if other, err := b.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("on other terms: %v, %v; want ErrConflict", other, err)
	}
	if err := first.Close(); err != nil || len(m.live()) != 1 {
		t.Errorf("after the first Close (%v) the gateway has %v", err, m.live())
	}
	if err := first.Close(); err != nil || len(m.live()) != 1 {
		t.Errorf("after closing the first again (%v) the gateway has %v", err, m.live())
	}
	if err := second.Close(); err != nil || len(m.live()) != 0 {
		t.Errorf("after the last Close (%v) the gateway has %v", err, m.live())
	}
}

// A caller's own deadline shows as such; ours shows as no reply.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.block = true
		f := forwarder(t, forward.Config{RequestTimeout: 5 * time.Second}, m)
		defer f.Close()
		begun := time.Now()
		_, err := f.Enable(t.Context(), forward.TCP(8080))
		if !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 5*time.Second {
			t.Errorf("own timeout: %v after %v", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun = time.Now()
		_, err = f.Enable(ctx, forward.TCP(8080))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 20*time.Second {
			t.Errorf("caller's deadline: %v after %v", err, time.Since(begun))
		}
	})
}

func TestOpenPorts(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	port, err := f.OpenExternalPort(t.Context(), backends.UDP)
	if err != nil || port < 49152 || len(m.live()) != 0 {
		t.Errorf("OpenExternalPort: %d, %v; left %v", port, err, m.live())
	}
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if port, err := forward.OpenLocalPort(p); err != nil || port == 0 {
			t.Errorf("OpenLocalPort(%v): %d, %v", p, port, err)
		}
	}
	for range 100 {
		if port := forward.RandomPort(); port < 49152 {
			t.Errorf("RandomPort: %d", port)
		}
	}
}

func TestExternalIP(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	if got, err := f.ExternalIP(t.Context()); err != nil || got != external {
		t.Errorf("ExternalIP: %v, %v", got, err)
	}
	m.set(func() { m.external = netip.Addr{} })
	if got, err := f.ExternalIP(t.Context()); !errors.Is(err, backends.ErrNetworkFailure) {
		t.Errorf("of a gateway that does not know: %v, %v", got, err)
	}
}

// A conflict within the process is none that another backend can help with.
func TestSharedNotElsewhere(t *testing.T) {
	first, second := newMemory(), newMemory()
	first.name, second.name = "first", "second"
	f := forwarder(t, forward.Config{}, first, second)
	defer f.Close()
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Enable(t.Context(), forward.TCP(8080), forward.External(9090)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("on other terms: %v, %v; want ErrConflict", m, err)
	}
	if calls := second.calls(); len(calls) != 0 {
		t.Errorf("the second backend was asked %q", calls)
	}
}

// One backend that falls silent leaves time for the next; the last has all that
// is left, and the error does not say of a backend that was never asked that it
// was silent.
func TestSilentShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newMemory(), newMemory()
		first.name, first.block, second.name = "first", true, "second"
		f := forwarder(t, forward.Config{}, first, second)
		defer f.Close()
		begun := time.Now()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil || m.Backend() != "second" || time.Since(begun) != 4*time.Second {
			t.Errorf("Enable: %v, %v after %v", m, err, time.Since(begun))
		}
		second.set(func() { second.block = true })
		begun = time.Now()
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); !errors.Is(err, backends.ErrNoReply) || time.Since(begun) != 15*time.Second {
			t.Errorf("Enable: %v after %v", err, time.Since(begun))
		}
	})
}
