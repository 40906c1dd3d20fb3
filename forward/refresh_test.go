package forward_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// Refresh sends one request per protocol.
func TestRefreshRequests(t *testing.T) {
	for name, c := range map[string]struct {
		enable forward.Option
		want   int
	}{
		"one protocol": {forward.TCP(8080), 1},
		"Both":         {forward.Both(8080), 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				got, err := f.Enable(t.Context(), c.enable)
				if err != nil {
					t.Fatal(err)
				}
				m.calls()
				if err := got.Refresh(t.Context()); err != nil {
					t.Errorf("Refresh: %v", err)
				}
				if calls := m.calls(); len(calls) != c.want || slices.ContainsFunc(calls, isAddressCall) {
					t.Errorf("Refresh made the calls %q, want %d that request the mapping", calls, c.want)
				}
			})
		})
		t.Run(name+" by PCP", func(t *testing.T) {
			gw, f := start(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
			got, err := f.Enable(t.Context(), c.enable)
			if err != nil {
				t.Fatal(err)
			}
			gw.ResetStats()
			if err := got.Refresh(t.Context()); err != nil {
				t.Errorf("Refresh: %v", err)
			}
			if requests := gw.Stats().Requests; total(requests) != c.want {
				t.Errorf("Refresh sent the requests %v, want %d", requests, c.want)
			}
		})
	}
}

// A gateway that ignores requests for its external address does not delay Refresh.
func TestRefreshWithoutAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newDelayed(t, nil)
		got := enable8080(t, f)
		d.set(func() { d.silentAddress = true })
		before := got.Expires()
		time.Sleep(time.Minute)
		begin := time.Now()
		err := got.Refresh(t.Context())
		if took := time.Since(begin); err != nil || took > 0 {
			t.Errorf("Refresh: %v after %v, want nil at once: the gateway grants every request at once", err, took)
		}
		if after := got.Expires(); !after.After(before) {
			t.Errorf("Refresh left the expiry at %v, want it later", after)
		}
	})
}

func isAddressCall(call string) bool { return strings.HasPrefix(call, "address") }

func total(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

// Refresh refuses options that only Enable can serve, and leaves the mapping as it is.
func TestRefreshOptions(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	mapping := enable8080(t, f)
	m.calls()
	for name, o := range map[string]forward.Option{
		"NoDefault": forward.NoDefault(), "Background": forward.Background(), "IPv6": forward.IPv6(), "Once": forward.Once(),
		"another protocol": forward.UDP(8080), "an IPv6 address": forward.To(netip.MustParseAddrPort("[2001:db8::1]:8080")),
	} {
		if err := mapping.Refresh(t.Context(), o); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: Refresh returned %v", name, err)
		}
	}
	if calls := m.calls(); len(calls) > 0 {
		t.Errorf("the gateway was asked: %v", calls)
	}
}
