package forward_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
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

// Refresh moves a mapping to another internal port: the old one is deleted, the new one is
// kept alive and closed, and if it is refused the old one comes back.
func TestRefreshInternalPort(t *testing.T) {
	for name, c := range map[string]struct {
		enable  []forward.Option
		to      forward.Option
		before  []string
		after   []string
		refused uint16
		changed string
	}{
		"a port": {
			[]forward.Option{forward.TCP(8080)},
			forward.TCP(9090),
			[]string{"tcp 8080→8080"},
			[]string{"tcp 9090→9090"},
			9090, "changed 9090",
		},
		"both": {
			[]forward.Option{forward.Both(8080)},
			forward.Both(9090),
			[]string{"tcp 8080→8080", "udp 8080→8080"},
			[]string{"tcp 9090→9090", "udp 9090→9090"},
			9090, "changed 9090",
		},
		"a range": {
			[]forward.Option{forward.Ports(8080, 8081)},
			forward.Ports(9090, 9091),
			[]string{"tcp 8080→8080", "tcp 8081→8081"},
			[]string{"tcp 9090→9090", "tcp 9091→9091"},
			9090, "changed 9090",
		},
		"a range that overlaps": {
			[]forward.Option{forward.Ports(8080, 8081)},
			forward.Ports(8081, 8082),
			[]string{"tcp 8080→8080", "tcp 8081→8081"},
			[]string{"tcp 8081→8081", "tcp 8082→8082"},
			8082, "changed 8081",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, events, file := newMemory(), &recorder{}, filepath.Join(t.TempDir(), "state")
				f := forwarder(t, forward.Config{OnEvent: events.record, StateFile: file}, m)
				got, err := f.Enable(t.Context(), c.enable...)
				if err != nil {
					t.Fatal(err)
				}
				refuse := true
				m.set(func() {
					m.fail = func(op string, _ backends.Protocol, wish uint16) error {
						if refuse && op == "map" && wish == c.refused {
							return backends.ErrNotAuthorized
						}
						return nil
					}
				})
				if err := got.Refresh(t.Context(), c.to); !errors.Is(err, backends.ErrNotAuthorized) || !slices.Equal(m.rows(), c.before) {
					t.Errorf("refused: %v, the gateway has %v", err, m.rows())
				}
				events.want(t, "mapped 8080")
				m.set(func() { refuse = false })
				if err := got.Refresh(t.Context(), c.to); err != nil || !slices.Equal(m.rows(), c.after) {
					t.Errorf("Refresh: %v, the gateway has %v, want %v", err, m.rows(), c.after)
				}
				events.want(t, c.changed)
				if s := got.Status(); s.State != forward.StateActive || s.Internal.Port() != s.External.Port() || len(s.Grants) != len(c.after) {
					t.Errorf("%+v", s)
				}
				time.Sleep(24 * time.Hour)
				events.want(t)
				f.Crash()
				f = forwarder(t, forward.Config{StateFile: file}, m)
				if got, err = f.Enable(t.Context(), c.to); err != nil || !slices.Equal(m.rows(), c.after) {
					t.Errorf("after a crash: %v, the gateway has %v", err, m.rows())
				}
				if err := got.Close(); err != nil || len(m.live()) != 0 {
					t.Errorf("Close: %v, the gateway has %v", err, m.rows())
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(file + ".damaged"); err == nil {
					t.Error("the state file was damaged")
				}
			})
		})
	}
}
