package forward_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestStatus checks that the state changes from pending to active, lost and closed, and
// that Done is closed at the end.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		refuse := true
		gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
			if refuse && op != "unmap" {
				return backends.ErrNoResources
			}
			return nil
		}
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		want := func(state forward.State, check func(s forward.Status) bool) {
			t.Helper()
			synctest.Wait()
			s := m.Status()
			if s.State != state || !check(s) || s.External != m.External() || s.Internal != m.Internal() || s.Backend != m.Backend() ||
				s.Gateway != m.Gateway() || !s.Expires.Equal(m.Expires()) || fmt.Sprint(s.Err) != fmt.Sprint(m.Err()) || len(s.Grants) != len(m.Grants()) {
				t.Errorf("%+v, want the state %v", s, state)
			}
		}
		done := m.Done()
		want(forward.StatePending, func(s forward.Status) bool {
			return errors.Is(s.Err, backends.ErrNoResources) && s.NextAttempt.After(time.Now()) && s.Since.IsZero() &&
				s.External.String() == "not mapped" && s.Internal.Port() == 8080 && len(s.Grants) == 0
		})
		gw.mu.Lock()
		refuse = false
		gw.mu.Unlock()
		time.Sleep(time.Minute)
		want(forward.StateActive, func(s forward.Status) bool {
			return s.Err == nil && s.External.String() == "45.45.45.1:8080" && s.Backend == "memory" && s.Reason == "enabled" && len(s.Grants) == 1 &&
				s.Expires.After(s.NextAttempt) && s.NextAttempt.After(time.Now())
		})
		gw.mu.Lock()
		refuse = true
		gw.mu.Unlock()
		time.Sleep(3 * time.Hour)
		want(forward.StateLost, func(s forward.Status) bool {
			return s.Err != nil && s.External.IsZero() && len(s.Grants) == 0 && !s.Since.IsZero() && s.Backend == ""
		})
		select {
		case <-done:
			t.Error("Done before Close")
		default:
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		want(forward.StateClosed, func(s forward.Status) bool { return s.NextAttempt.IsZero() })
		<-done
		<-m.Done()
	})
}

// TestDone checks that every method that closes a mapping also closes Done.
func TestDone(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, f *forward.Forwarder, m *forward.Mapping) error{
		"Close":    func(_ *testing.T, _ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		"Disable":  func(t *testing.T, f *forward.Forwarder, _ *forward.Mapping) error { return f.Disable(t.Context()) },
		"Shutdown": func(_ *testing.T, f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
		"Leave":    func(_ *testing.T, _ *forward.Forwarder, m *forward.Mapping) error { m.Leave(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newForwarder(t, forward.Config{}, newFakeGateway())
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				before := m.Done()
				if err := end(t, f, m); err != nil {
					t.Error(err)
				}
				<-before // otherwise synctest reports a deadlock
				<-m.Done()
			})
		})
	}
}

// TestLeave checks that Leave keeps the mapping on the gateway, even after Close, and
// stops its renewal.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{Lifetime: time.Hour}, gw)
		for _, opts := range [][]forward.Option{{forward.TCP(8080)}, {forward.TCP(9090), forward.Lifetime(forward.Forever)}} {
			m, err := f.Enable(t.Context(), opts...)
			if err != nil {
				t.Fatal(err)
			}
			m.Leave()
			m.Leave()
			if err := m.Close(); err != nil {
				t.Errorf("Close after Leave: %v", err)
			}
			if err := m.Refresh(t.Context()); !errors.Is(err, forward.ErrClosed) {
				t.Errorf("Refresh after Leave: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got := gw.rows(); !slices.Equal(got, []string{"tcp 8080→8080", "tcp 9090→9090"}) {
			t.Errorf("the gateway has %v", got)
		}
		time.Sleep(2 * time.Hour)
		if got := gw.rows(); !slices.Equal(got, []string{"tcp 9090→9090"}) {
			t.Errorf("after two hours the gateway has %v", got)
		}
	})
}

// TestChanged checks that Changed is closed after the gateway announced another external
// address.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		changed, newAddr := m.Changed(), netip.MustParseAddr("45.45.45.99")
		gw.set(func() { gw.external, gw.taken[8080] = newAddr, true })
		gw.changes <- backends.Change{Kind: backends.AddressChanged}
		<-changed
		if want := netip.AddrPortFrom(newAddr, 8081); m.External().AddrPort != want {
			t.Errorf("External %v, want %v", m.External(), want)
		}
		events.want(t, "mapped 8080", "changed 8081")
	})
}

// TestChangedClosed checks that Changed is closed whenever a result of the other methods
// changes.
func TestChangedClosed(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, g *fakeGateway, m *forward.Mapping){
		"renewal": func(*testing.T, *fakeGateway, *forward.Mapping) { time.Sleep(45 * time.Minute) },
		"Refresh": func(t *testing.T, _ *fakeGateway, m *forward.Mapping) {
			time.Sleep(time.Minute)
			if err := m.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"Refresh to another lifetime": func(t *testing.T, _ *fakeGateway, m *forward.Mapping) {
			if err := m.Refresh(t.Context(), forward.Lifetime(4*time.Hour)); err != nil {
				t.Error(err)
			}
		},
		"announcement of the gateway": func(_ *testing.T, g *fakeGateway, _ *forward.Mapping) {
			time.Sleep(time.Minute)
			g.changes <- backends.Change{Kind: backends.Announced, Reason: "test"}
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newFakeGateway()
				f := newForwarder(t, forward.Config{}, g)
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				changed, before, expires := m.Changed(), mappingText(m), m.Expires()
				change(t, g, m)
				synctest.Wait()
				if m.Expires().Equal(expires) {
					t.Fatalf("Expires is still %v: the mapping was not requested again", expires)
				}
				select {
				case <-changed:
				default:
					t.Errorf("Changed is still open, want it closed. Before:\n%s\nAfter:\n%s", before, mappingText(m))
				}
			})
		})
	}
}

// mappingText returns the results of a mapping's methods as text.
func mappingText(m *forward.Mapping) string {
	return fmt.Sprintf("\texternal %v, expires %v, next try %v, error %v",
		m.External(), m.Expires().Format(time.TimeOnly), m.Status().NextAttempt.Format(time.TimeOnly), m.Err())
}

// TestRefresh checks Refresh with and without options.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		if remaining := time.Until(m.Expires()); remaining != time.Hour {
			t.Errorf("%v remaining after Refresh", remaining)
		}
		gw.takeCalls()
		if err := m.Refresh(t.Context(), forward.External(9090)); err != nil || m.External().Port() != 9090 {
			t.Errorf("Refresh to another port: %v, %v", m, err)
		}
		if n := len(gw.live()); n != 1 {
			t.Errorf("the gateway has %v", gw.live())
		}
		gw.set(func() { gw.taken[7070] = true })
		if err := m.Refresh(t.Context(), forward.External(7070), forward.Exact()); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Refresh to a taken port: %v", err)
		}
		if m.External().Port() != 9090 || len(gw.live()) != 1 {
			t.Errorf("after a failed change: %v; the gateway has %v", m, gw.live())
		}
		for name, opt := range map[string]forward.Option{"protocol": forward.UDP(8080), "once": forward.Once(), "port": forward.External(0)} {
			if err := m.Refresh(t.Context(), opt); !errors.Is(err, backends.ErrInvalid) {
				t.Errorf("changing the %s: %v", name, err)
			}
		}
		if err := f.Refresh(t.Context(), forward.UDP(0)); !errors.Is(err, forward.ErrNoMapping) {
			t.Errorf("Refresh of no mapping: %v", err)
		}
		time.Sleep(24 * time.Hour)
		if m.External().Port() != 9090 || len(gw.live()) != 1 {
			t.Errorf("after one day: %v; the gateway has %v", m, gw.live())
		}
	})
}

// TestRefreshRequests checks that Refresh sends one request for each protocol.
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
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				m, err := f.Enable(t.Context(), c.enable)
				if err != nil {
					t.Fatal(err)
				}
				gw.takeCalls()
				if err := m.Refresh(t.Context()); err != nil {
					t.Errorf("Refresh: %v", err)
				}
				if calls := gw.takeCalls(); len(calls) != c.want || slices.ContainsFunc(calls, isAddressCall) {
					t.Errorf("Refresh made the calls %q, want %d requests for the mapping", calls, c.want)
				}
			})
		})
		t.Run(name+" by PCP", func(t *testing.T) {
			gw, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
			m, err := f.Enable(t.Context(), c.enable)
			if err != nil {
				t.Fatal(err)
			}
			gw.ResetStats()
			if err := m.Refresh(t.Context()); err != nil {
				t.Errorf("Refresh: %v", err)
			}
			if requests := gw.Stats().Requests; sum(requests) != c.want {
				t.Errorf("Refresh sent the requests %v, want %d", requests, c.want)
			}
		})
	}
}

// TestRefreshWithoutAddress checks that a gateway that ignores requests for its external
// address does not delay Refresh.
func TestRefreshWithoutAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newSlowGateway(t, nil)
		m := enable8080(t, f)
		d.set(func() { d.dropAddress = true })
		before := m.Expires()
		time.Sleep(time.Minute)
		start := time.Now()
		err := m.Refresh(t.Context())
		if took := time.Since(start); err != nil || took > 0 {
			t.Errorf("Refresh: %v after %v, want nil without a delay, because the gateway grants every request at once", err, took)
		}
		if after := m.Expires(); !after.After(before) {
			t.Errorf("Refresh left the expiry at %v, want it later", after)
		}
	})
}

func isAddressCall(call string) bool { return strings.HasPrefix(call, "address") }

func sum(counts map[string]int) (n int) {
	for _, count := range counts {
		n += count
	}
	return n
}

// TestRefreshOptions checks that Refresh refuses options that only Enable supports, and
// leaves the mapping unchanged.
func TestRefreshOptions(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	mapping := enable8080(t, f)
	gw.takeCalls()
	for name, o := range map[string]forward.Option{
		"NoDefault": forward.NoDefault(), "Background": forward.Background(), "IPv6": forward.IPv6(), "Once": forward.Once(),
		"another protocol": forward.UDP(8080), "an IPv6 address": forward.To(netip.MustParseAddrPort("[2001:db8::1]:8080")),
	} {
		if err := mapping.Refresh(t.Context(), o); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: Refresh returned %v", name, err)
		}
	}
	if calls := gw.takeCalls(); len(calls) > 0 {
		t.Errorf("requests %q, want none", calls)
	}
}

// TestRefreshInternalPort checks that Refresh moves a mapping to another internal port.
// The old mapping is deleted. The new one is renewed and closed. If the new one is
// refused, the old one is restored.
func TestRefreshInternalPort(t *testing.T) {
	for name, c := range map[string]struct {
		enable  []forward.Option
		to      forward.Option
		before  []string
		after   []string
		refused uint16
		changed string
	}{
		"port": {
			[]forward.Option{forward.TCP(8080)},
			forward.TCP(9090),
			[]string{"tcp 8080→8080"},
			[]string{"tcp 9090→9090"},
			9090, "changed 9090",
		},
		"both protocols": {
			[]forward.Option{forward.Both(8080)},
			forward.Both(9090),
			[]string{"tcp 8080→8080", "udp 8080→8080"},
			[]string{"tcp 9090→9090", "udp 9090→9090"},
			9090, "changed 9090",
		},
		"range": {
			[]forward.Option{forward.Ports(8080, 8081)},
			forward.Ports(9090, 9091),
			[]string{"tcp 8080→8080", "tcp 8081→8081"},
			[]string{"tcp 9090→9090", "tcp 9091→9091"},
			9090, "changed 9090",
		},
		"overlapping range": {
			[]forward.Option{forward.Ports(8080, 8081)},
			forward.Ports(8081, 8082),
			[]string{"tcp 8080→8080", "tcp 8081→8081"},
			[]string{"tcp 8081→8081", "tcp 8082→8082"},
			8082, "changed 8081",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, events, file := newFakeGateway(), &eventRecorder{}, filepath.Join(t.TempDir(), "state")
				f := newForwarder(t, forward.Config{OnEvent: events.record, StateFile: file}, gw)
				m, err := f.Enable(t.Context(), c.enable...)
				if err != nil {
					t.Fatal(err)
				}
				refuse := true
				gw.set(func() {
					gw.fail = func(op string, _ backends.Protocol, suggested uint16) error {
						if refuse && op == "map" && suggested == c.refused {
							return backends.ErrNotAuthorized
						}
						return nil
					}
				})
				if err := m.Refresh(t.Context(), c.to); !errors.Is(err, backends.ErrNotAuthorized) || !slices.Equal(gw.rows(), c.before) {
					t.Errorf("refused: %v, the gateway has %v", err, gw.rows())
				}
				events.want(t, "mapped 8080")
				gw.set(func() { refuse = false })
				if err := m.Refresh(t.Context(), c.to); err != nil || !slices.Equal(gw.rows(), c.after) {
					t.Errorf("Refresh: %v, the gateway has %v, want %v", err, gw.rows(), c.after)
				}
				events.want(t, c.changed)
				if s := m.Status(); s.State != forward.StateActive || s.Internal.Port() != s.External.Port() || len(s.Grants) != len(c.after) {
					t.Errorf("%+v", s)
				}
				time.Sleep(24 * time.Hour)
				events.want(t)
				f.Crash()
				f = newForwarder(t, forward.Config{StateFile: file}, gw)
				if m, err = f.Enable(t.Context(), c.to); err != nil || !slices.Equal(gw.rows(), c.after) {
					t.Errorf("after a crash: %v, the gateway has %v", err, gw.rows())
				}
				if err := m.Close(); err != nil || len(gw.live()) != 0 {
					t.Errorf("Close: %v, the gateway has %v", err, gw.rows())
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

// TestRefreshLifetime checks that Refresh changes the lifetime in place, unless another
// handle shares the mapping.
func TestRefreshLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		enable := func(d time.Duration) (*forward.Mapping, error) {
			return f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(d))
		}
		m, err := enable(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		gw.takeCalls()
		if err := m.Refresh(t.Context(), forward.Lifetime(4*time.Hour)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		if d := m.Grants()[1].Lifetime; d != 4*time.Hour {
			t.Errorf("granted for %v", d)
		}
		if _, err := enable(time.Hour); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Enable with the old lifetime: %v", err)
		}
		if _, err := enable(4 * time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := m.Refresh(t.Context(), forward.Lifetime(time.Hour)); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Refresh of a shared mapping to another lifetime: %v", err)
		}
		if err := m.Refresh(t.Context()); err != nil || m.Grants()[0].Lifetime != 4*time.Hour {
			t.Errorf("Refresh of a shared mapping: %v, %v", err, m.Grants())
		}
	})
}

// TestRefreshRollbackRetried checks that the old mapping is retried in the background if
// a change and its rollback both fail.
func TestRefreshRollbackRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = failMap(backends.ErrNoReply) })
		if err := m.Refresh(t.Context(), forward.External(9090)); !errors.Is(err, backends.ErrNoReply) || m.External().IsValid() {
			t.Errorf("Refresh: %v, %v", m, err)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(time.Minute)
		if m.External().Port() != 8080 || len(gw.live()) != 1 {
			t.Errorf("after one minute: %v, the gateway has %v", m, gw.live())
		}
	})
}

// TestRefreshCallerTimeout checks that the mapping does not keep the error of the
// caller's context if the caller of Refresh stops waiting.
func TestRefreshCallerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		mapping := enable8080(t, f)
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error {
				time.Sleep(5 * time.Second)
				return backends.ErrNoReply
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := mapping.Refresh(ctx, forward.External(9090)); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("Refresh:", err)
		}
		time.Sleep(5 * time.Second)
		if err := mapping.Err(); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Error("the error of the mapping:", err)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(time.Minute)
	})
}

// enableByPCP enables a mapping by PCP, and returns the nonce that the gateway received.
func enableByPCP(t *testing.T, config forward.Config) (*gatewaytest.Gateway, *forward.Forwarder, *forward.Mapping, []byte) {
	t.Helper()
	gw, f := gatewayAndForwarder(t, config, gatewaytest.Config{Protocols: []string{"pcp"}})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.Backend() != "pcp" {
		t.Fatal(m, err)
	}
	const header, size = 24, 12 // RFC 6887, sections 7.1 and 11.1
	for _, r := range gw.Requests() {
		if r.Op == "map" && len(r.Raw) >= header+size {
			return gw, f, m, r.Raw[header : header+size]
		}
	}
	t.Fatal("the gateway received no MAP request")
	return nil, nil, nil, nil
}

// overwriteToken overwrites the token of a mapping as far as its type allows: the token
// itself if it is a slice, and the result of a method Bytes.
func overwriteToken(m backends.Mapping) {
	token := reflect.ValueOf(m).FieldByName("Token")
	all := []reflect.Value{token}
	if method := token.MethodByName("Bytes"); method.IsValid() && method.Type().NumIn() == 0 {
		all = append(all, method.Call(nil)...)
	}
	for _, v := range all {
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			for i := range v.Len() {
				v.Index(i).SetUint(0xff)
			}
		}
	}
}

// TestTokenCopied checks that a caller who changes a token of Grants, Mappings or an
// event changes only a copy.
func TestTokenCopied(t *testing.T) {
	for name, call := range map[string]func(*testing.T, *forward.Mapping) error{
		"Refresh": func(t *testing.T, m *forward.Mapping) error { return m.Refresh(t.Context()) },
		"Close":   func(_ *testing.T, m *forward.Mapping) error { return m.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var grants []backends.Mapping
			mapped := make(chan struct{})
			gw, f, m, nonce := enableByPCP(t, forward.Config{OnEvent: func(e forward.Event) {
				if e.Kind == forward.EventMapped {
					grants = e.Grants
					close(mapped)
				}
			}})
			<-mapped
			entries, err := f.Mappings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				grants = append(grants, e.Mapping)
			}
			for _, state := range append(m.Grants(), grants...) {
				overwriteToken(state)
			}
			if err := call(t, m); err != nil {
				t.Errorf("%s after the caller overwrote its copy of the token: %v", name, err)
			}
			for _, r := range gw.Requests() {
				if (r.Op == "map" || r.Op == "unmap") && r.Protocol == backends.TCP && !bytes.Contains(r.Raw, nonce) {
					t.Errorf("the request %q does not contain the nonce of the mapping", r.Name())
				}
			}
		})
	}
}

// allFormats formats a value with the verbs of fmt, as JSON, and with both handlers of
// slog.
func allFormats(t *testing.T, v any) map[string]string {
	t.Helper()
	out := map[string]string{"fmt.Println": fmt.Sprintln(v)}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b"} {
		out[format] = fmt.Sprintf(format, v)
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out["JSON"] = string(encoded)
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("test", "value", v)
		out[name] = b.String()
	}
	return out
}

// encodings returns the texts by which bytes are usually printed.
func encodings(secret []byte) []string {
	out := []string{
		string(secret), strings.Trim(strconv.Quote(string(secret)), `"`),
		base64.StdEncoding.EncodeToString(secret), base64.RawURLEncoding.EncodeToString(secret),
		strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret), "[]byte{"), "}"),
	}
	for _, format := range []string{"%x", "%X", "% x", "% X", "%v", "%d", "%o", "%b"} {
		out = append(out, strings.Trim(fmt.Sprintf(format, secret), "[]"))
	}
	return out
}

// TestTokenNotPrinted checks that no format prints a nonce. A nonce is a secret: a
// program that has it can take the mapping over.
func TestTokenNotPrinted(t *testing.T) {
	var event forward.Event
	mapped := make(chan struct{})
	_, f, m, nonce := enableByPCP(t, forward.Config{OnEvent: func(e forward.Event) {
		if e.Kind == forward.EventMapped {
			event = e
			close(mapped)
		}
	}})
	<-mapped
	entries, err := f.Mappings(t.Context())
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	state := m.Grants()
	for name, v := range map[string]any{
		"Grants()": state, "Grants()[0]": state[0], "&Grants()[0]": &state[0],
		"Token":      reflect.ValueOf(state[0]).FieldByName("Token").Interface(),
		"Mappings()": entries, "Event.Grants": event.Grants, "Mapping": m,
	} {
		var leaks []string
		for how, text := range allFormats(t, v) {
			if slices.ContainsFunc(encodings(nonce), func(spelling string) bool { return strings.Contains(text, spelling) }) {
				leaks = append(leaks, how)
			}
		}
		if slices.Sort(leaks); len(leaks) > 0 {
			t.Errorf("%s prints the nonce with %q, want it hidden", name, leaks)
		}
	}
}
