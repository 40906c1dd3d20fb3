package forward_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// TestDisable checks which mappings Disable and DisableAll select.
func TestDisable(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	ctx := t.Context()
	if err := f.Disable(ctx); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable without a mapping: %v", err)
	}
	for _, opts := range [][]forward.Option{
		{forward.TCP(1001), forward.Description("a")},
		{forward.UDP(1001), forward.Description("b")},
		{forward.Both(1002), forward.Description("a")},
		{forward.TCP(1003), forward.External(2003)},
		{forward.TCP(1004)},
	} {
		if _, err := f.Enable(ctx, opts...); err != nil {
			t.Fatal(err)
		}
	}
	heldText := func() string {
		entries, err := f.Mappings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			if !e.Enabled || !e.Ours {
				t.Errorf("entry %+v", e)
			}
			out = append(out, fmt.Sprintf("%v%d", e.Mapping.Protocol, e.Mapping.Internal.Port()))
		}
		return strings.Join(out, " ")
	}
	steps := []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, "tcp1001 udp1001 tcp1002 udp1002 tcp1003 tcp1004"},
		{func() error { return f.Disable(ctx) }, "tcp1001 udp1001 tcp1002 udp1002 tcp1003"},
		{func() error { return f.Disable(ctx, forward.UDP(0)) }, "tcp1001 tcp1002 udp1002 tcp1003"},
		{func() error { return f.Disable(ctx, forward.External(2003)) }, "tcp1001 tcp1002 udp1002"},
		{func() error { return wantNoMapping(f.Disable(ctx, forward.TCP(1002))) }, "tcp1001 tcp1002 udp1002"},
		{func() error { return wantNoMapping(f.Disable(ctx, forward.TCP(1001), forward.Description("b"))) }, "tcp1001 tcp1002 udp1002"},
		{func() error { n, err := f.DisableAll(ctx, forward.Description("a")); return wantCount(n, 2, err) }, ""},
		{func() error { n, err := f.DisableAll(ctx); return wantCount(n, 0, err) }, ""},
	}
	for i, step := range steps {
		if err := step.do(); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		if got := heldText(); got != step.want {
			t.Errorf("step %d: mappings %q, want %q", i, got, step.want)
		}
	}
	if remaining := gw.live(); len(remaining) != 0 {
		t.Errorf("the gateway has %v", remaining)
	}
	if err := f.Disable(ctx, nil); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("nil selector: %v", err)
	}
	if _, err := f.MappingAt(ctx, 0); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("MappingAt: %v", err)
	}
}

// wantNoMapping returns an error unless err is ErrNoMapping.
func wantNoMapping(err error) error {
	if errors.Is(err, forward.ErrNoMapping) {
		return nil
	}
	return fmt.Errorf("%w, want ErrNoMapping", err)
}

// wantCount returns an error unless err is nil and the numbers are equal.
func wantCount(got, want int, err error) error {
	if err != nil || got != want {
		return fmt.Errorf("%d, %w; want %d", got, err, want)
	}
	return nil
}

// TestDisableFails checks that a failed deletion is reported, and that the Forwarder no
// longer has the mapping.
func TestDisableFails(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	for port := range uint16(3) {
		if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
			t.Fatal(err)
		}
	}
	gw.set(func() {
		gw.fail = func(op string, _ backends.Protocol, port uint16) error {
			if op == "unmap" && port == 1002 {
				return backends.ErrNotAuthorized
			}
			return nil
		}
	})
	n, err := f.DisableAll(t.Context())
	if n != 2 || !errors.Is(err, backends.ErrNotAuthorized) || !strings.Contains(err.Error(), "lifetime") {
		t.Errorf("DisableAll: %d, %v", n, err)
	}
	if err := f.Disable(t.Context()); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable after DisableAll: %v, want ErrNoMapping", err)
	}
}

// TestNoDefault checks that calls without selectors skip mappings with NoDefault, so that
// func main cannot disable the mapping of a library.
func TestNoDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		for _, opts := range [][]forward.Option{{forward.TCP(8080)}, {forward.TCP(9090), forward.NoDefault()}} {
			if _, err := f.Enable(t.Context(), opts...); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Disable(t.Context()); err != nil {
			t.Fatal(err)
		}
		if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
		for name, err := range map[string]error{"Disable": f.Disable(t.Context()), "Refresh": f.Refresh(t.Context())} {
			if !errors.Is(err, forward.ErrNoMapping) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := f.Disable(t.Context(), forward.TCP(0)); err != nil || len(gw.live()) != 0 {
			t.Errorf("Disable with a selector: %v, the gateway has %v", err, gw.live())
		}
	})
}
