package forward_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// checkedGateway is a fakeGateway that can be checked. If hidesTable is set, it cannot look
// up a mapping.
type checkedGateway struct {
	*fakeGateway
	hidesTable bool
}

func (g *checkedGateway) Check(ctx context.Context, m backends.Mapping) error {
	if err := g.beginCall(ctx, "check", m.Protocol, m.External.Port()); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, found := g.table[g.keyOf(m)]
	switch {
	case g.hidesTable:
		return fmt.Errorf("%s: %w", g.name, backends.ErrUnsupported)
	case !found:
		return fmt.Errorf("%s: %w", g.name, backends.ErrNoMapping)
	}
	return nil
}

// tableGateway is a checkedGateway whose table can be looked up separately, as by UPnP.
type tableGateway struct{ *checkedGateway }

func (g tableGateway) LookUp(ctx context.Context, m backends.Mapping) error {
	return g.Check(ctx, m)
}

// lose makes the gateway forget some of its mappings without an announcement.
func (g *checkedGateway) lose(ports ...uint16) {
	g.set(func() {
		for k, m := range g.table {
			if slices.Contains(ports, m.Internal.Port()) {
				delete(g.table, k)
			}
		}
	})
}

// newChecked returns a gateway that can be checked, a Forwarder that uses it, and the events.
func newChecked(t *testing.T, config forward.Config) (*checkedGateway, *forward.Forwarder, *eventRecorder) {
	gw, events := &checkedGateway{fakeGateway: newFakeGateway()}, &eventRecorder{}
	config.Backends, config.OnEvent = []backends.Backend{gw}, events.record
	f := newForwarder(t, config)
	t.Cleanup(func() { _ = f.Close() })
	return gw, f, events
}

// enablePorts enables TCP mappings of consecutive ports from 8080, a second apart, and
// returns the ports.
func enablePorts(t *testing.T, f *forward.Forwarder, n int) (ports []uint16) {
	t.Helper()
	for i := range uint16(n) {
		if _, err := f.Enable(t.Context(), forward.TCP(8080+i)); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, 8080+i)
		time.Sleep(time.Second)
	}
	return ports
}

// wantInAnyOrder compares the recorded events of several mappings with the expected ones.
func wantInAnyOrder(t *testing.T, events *eventRecorder, want ...string) {
	t.Helper()
	synctest.Wait()
	got := events.peek()
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

const checkEvery = forward.DefaultCheckEvery

// TestCheckMissing checks that a mapping that another program deleted is found in turn, and
// that all mappings are looked up once one is missing.
func TestCheckMissing(t *testing.T) {
	for name, lost := range map[string][]uint16{
		"one": {8082}, "all": {8080, 8081, 8082, 8083, 8084},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, f, events := newChecked(t, forward.Config{})
				ports := enablePorts(t, f, 5)
				events.want(t, "mapped 8080", "mapped 8081", "mapped 8082", "mapped 8083", "mapped 8084")
				time.Sleep(10 * time.Minute)
				events.want(t)
				gw.lose(lost...)
				bound := time.Duration(len(ports)+1) * checkEvery
				if len(lost) == len(ports) {
					bound = checkEvery
				}
				time.Sleep(bound)
				synctest.Wait()
				if n := len(gw.live()); n != len(ports) {
					t.Errorf("after %v the gateway has %v", bound, gw.rows())
				}
				var want []string
				for _, port := range lost {
					want = append(want, "lost 0", fmt.Sprintf("restored %d", port))
				}
				wantInAnyOrder(t, events, want...)
			})
		})
	}
}

// TestCheckInTurn checks that every mapping is checked in turn, and no more than one in a
// round.
func TestCheckInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, _ := newChecked(t, forward.Config{Lifetime: day})
		const count = 4
		enablePorts(t, f, count)
		gw.takeCalls()
		time.Sleep(count * checkEvery)
		first := gw.takeCalls()
		if diff := cmp.Diff([]string{"check tcp 8080", "check tcp 8081", "check tcp 8082", "check tcp 8083"}, first); diff != "" {
			t.Error(diff)
		}
		time.Sleep(100 * checkEvery)
		if n := len(gw.takeCalls()); n < 100 || n > 100*8/7+1 {
			t.Errorf("%d requests in 100 intervals", n)
		}
	})
}

// TestCheckRefused checks that a mapping whose checks and renewals fail does not delay the checks
// of the others.
func TestCheckRefused(t *testing.T) {
	for name, hidesTable := range map[string]bool{"lookup": false, "renewal": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, f, _ := newChecked(t, forward.Config{Lifetime: day})
				gw.hidesTable = hidesTable
				ports := enablePorts(t, f, 3)
				gw.set(func() {
					gw.fail = func(op string, _ backends.Protocol, port uint16) error {
						switch {
						case port == ports[0] && op == "renew":
							return backends.ErrNotAuthorized
						case port == ports[0] && op == "check" && !hidesTable:
							return backends.ErrMalformed
						}
						return nil
					}
				})
				time.Sleep(10 * time.Minute)
				gw.lose(ports[1:]...)
				time.Sleep(time.Duration(len(ports)+1) * checkEvery)
				synctest.Wait()
				if rows := gw.rows(); len(rows) != len(ports) {
					t.Errorf("the gateway has %v", rows)
				}
			})
		})
	}
}

// TestCheckMissingSilence checks that the lookups of all mappings end at the first one without a
// reply.
func TestCheckMissingSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, _ := newChecked(t, forward.Config{Lifetime: day})
		enablePorts(t, f, 20)
		var checks atomic.Int32
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error {
				if checks.Add(1) == 1 {
					return backends.ErrNoMapping
				}
				return backends.ErrNoReply
			}
		})
		gw.takeCalls()
		time.Sleep(checkEvery)
		calls := gw.takeCalls() // with the renewal of the mapping that is missing
		lookUps := slices.DeleteFunc(slices.Clone(calls), func(call string) bool { return !strings.HasPrefix(call, "check") })
		if len(lookUps) != 2 || len(calls) > 3 {
			t.Errorf("requests %v", calls)
		}
	})
}

// TestCheckMissingRenewed checks that a mapping that was renewed during the lookups of all mappings
// is not lost.
func TestCheckMissingRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, events := newChecked(t, forward.Config{Lifetime: day})
		m := enable8080(t, f)
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "check" {
					time.Sleep(5 * time.Second)
					return backends.ErrNoMapping
				}
				return nil
			}
		})
		time.Sleep(checkEvery + 6*time.Second) // the second lookup is in flight
		if err := m.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(time.Minute)
		events.want(t, "mapped 8080")
	})
}

// TestCheckByRenewal checks a gateway that cannot look up mappings: one port in turn is
// renewed, TCP and UDP in the order of their grants, and no event reports a loss.
func TestCheckByRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, events := newChecked(t, forward.Config{Lifetime: day})
		gw.hidesTable = true
		for _, o := range []forward.Option{forward.Both(8080), forward.UDP(8081), forward.TCP(8082)} {
			if _, err := f.Enable(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		events.want(t, "mapped 8080", "mapped 8081", "mapped 8082")
		gw.takeCalls()
		gw.lose(8080, 8081, 8082)
		time.Sleep(4 * checkEvery)
		synctest.Wait()
		if rows := gw.rows(); len(rows) != 4 {
			t.Errorf("the gateway has %v", rows)
		}
		calls := gw.takeCalls()
		want := []string{
			"check tcp 8080", "renew tcp 8080", "renew udp 8080", "check udp 8081", "renew udp 8081", "check tcp 8082", "renew tcp 8082",
		}
		if len(calls) < len(want) || !slices.Equal(calls[:len(want)], want) {
			t.Errorf("requests %v, want %v first", calls, want)
		}
		events.want(t)
	})
}

// TestCheckEvery checks the interval of Config: negative values switch the checks off, and
// Forwarders that share a gateway use the shortest interval.
func TestCheckEvery(t *testing.T) {
	for name, test := range map[string]struct {
		intervals []time.Duration
		min, max  int // requests in an hour
	}{
		"never":             {[]time.Duration{-1}, 0, 0},
		"default":           {[]time.Duration{0}, 120, 120*8/7 + 1},
		"ten minutes":       {[]time.Duration{10 * time.Minute}, 5, 7},
		"one of two":        {[]time.Duration{-1, 10 * time.Minute}, 5, 7},
		"shortest":          {[]time.Duration{20 * time.Minute, 10 * time.Minute}, 5, 7},
		"at least a second": {[]time.Duration{time.Millisecond}, 3600, 3600*8/7 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := &checkedGateway{fakeGateway: newFakeGateway()}
				registry := forward.NewRegistry(func(d time.Duration) time.Duration { return d / 2 })
				for i, interval := range test.intervals {
					f := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, CheckEvery: interval, Lifetime: day})
					defer f.Close()
					f.SetRegistry(registry, func(time.Duration) time.Duration { return 0 })
					if _, err := f.Enable(t.Context(), forward.TCP(uint16(8080+i))); err != nil {
						t.Fatal(err)
					}
				}
				gw.takeCalls()
				time.Sleep(time.Hour)
				if n := len(gw.takeCalls()); n < test.min || n > test.max {
					t.Errorf("%d requests in an hour, want %d to %d", n, test.min, test.max)
				}
			})
		})
	}
}

// TestCheckEveryJoins checks that a Forwarder with a shorter interval shortens the time until the
// next check, which is set already.
func TestCheckEveryJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := &checkedGateway{fakeGateway: newFakeGateway()}
		rarely := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, CheckEvery: time.Hour, Lifetime: day})
		defer rarely.Close()
		enablePorts(t, rarely, 1)
		often := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, Lifetime: day})
		defer often.Close()
		enablePorts(t, often, 1)
		gw.lose(8080)
		time.Sleep(checkEvery)
		synctest.Wait()
		if len(gw.live()) != 1 {
			t.Errorf("after %v the gateway has %v", checkEvery, gw.rows())
		}
	})
}

// TestCheckEveryLeaves checks that a Forwarder with its own interval determines the checks of a
// shared mapping until it is closed.
func TestCheckEveryLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := &checkedGateway{fakeGateway: newFakeGateway()}
		never := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, CheckEvery: -1, Lifetime: day})
		defer never.Close()
		enablePorts(t, never, 1)
		checks := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, Lifetime: day})
		defer checks.Close()
		enablePorts(t, checks, 1)
		gw.takeCalls()
		time.Sleep(10 * checkEvery)
		if n := len(gw.takeCalls()); n < 9 {
			t.Errorf("%d requests in ten intervals", n)
		}
		if err := checks.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * checkEvery)
		if calls := gw.takeCalls(); len(calls) != 0 {
			t.Errorf("requests after Close: %v", calls)
		}
	})
}

// TestCheckSilence checks that a gateway without a reply is checked less often after 15
// minutes, and at the normal rate again after a reply.
func TestCheckSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, events := newChecked(t, forward.Config{Lifetime: 10 * day})
		enablePorts(t, f, 1)
		count := func(d time.Duration, low, high int) {
			t.Helper()
			gw.takeCalls()
			time.Sleep(d)
			if n := len(gw.takeCalls()); n < low || n > high {
				t.Errorf("%d requests in %v, want %d to %d", n, d, low, high)
			}
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		count(15*time.Minute, 30, 36)
		time.Sleep(time.Minute)
		count(20*time.Minute, 10, 13)
		gw.set(func() { gw.fail = nil })
		time.Sleep(4 * checkEvery)
		count(10*time.Minute, 20, 24)
		events.want(t, "mapped 8080")
	})
}

// TestCheckSilentProtocol checks that the silence of one backend does not delay the checks of
// another: while both have mappings, and after the mappings of the silent one have expired.
func TestCheckSilentProtocol(t *testing.T) {
	for name, lifetime := range map[string]time.Duration{"both": day, "the other": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				silent, other := &checkedGateway{fakeGateway: newFakeGateway()}, &checkedGateway{fakeGateway: newFakeGateway()}
				other.name = "other"
				f := newForwarder(t, forward.Config{Backends: []backends.Backend{silent, other}, Lifetime: lifetime})
				defer f.Close()
				enablePorts(t, f, 1)
				silent.set(func() { silent.fail = failAll(backends.ErrNoReply) })
				if _, err := f.Enable(t.Context(), forward.TCP(9000)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				other.takeCalls()
				time.Sleep(time.Hour)
				checks := slices.DeleteFunc(other.takeCalls(), func(call string) bool { return !strings.HasPrefix(call, "check") })
				if n := len(checks); n < 100 {
					t.Errorf("%d checks in an hour", n)
				}
			})
		})
	}
}

// TestCheckRepairsAfterSilence checks that mappings whose renewals got no reply after a restart are
// renewed in time once the gateway replies: before the pause between two attempts is over. One
// of the mappings has expired in the meantime. A round checks nothing if the others were renewed a moment
// ago, so the next one may be needed: 30 seconds later.
func TestCheckRepairsAfterSilence(t *testing.T) {
	for silence := 2 * time.Minute; silence < 10*time.Minute; silence += 23 * time.Second {
		synctest.Test(t, func(t *testing.T) {
			gw, f, _ := newChecked(t, forward.Config{Lifetime: day})
			gw.hidesTable = true
			if _, err := f.Enable(t.Context(), forward.TCP(9000), forward.Lifetime(time.Minute)); err != nil {
				t.Fatal(err)
			}
			enablePorts(t, f, 5)
			time.Sleep(time.Minute)
			gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
			gw.restart()
			time.Sleep(silence)
			gw.set(func() { gw.fail = nil })
			time.Sleep(65 * time.Second)
			synctest.Wait()
			if rows := gw.rows(); len(rows) != 6 {
				t.Errorf("65 seconds after a silence of %v, the gateway has %v", silence, rows)
			}
		})
	}
}

// TestCheckAfterSleep checks that a host that slept during a check makes one check when it
// wakes up, and not all that it missed.
func TestCheckAfterSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, _ := newChecked(t, forward.Config{Lifetime: 10 * day})
		for i := range uint16(50) {
			if _, err := f.Enable(t.Context(), forward.TCP(8080+i)); err != nil {
				t.Fatal(err)
			}
		}
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				time.Sleep(8 * time.Hour) // the timers stand still with the host
				return nil
			}
		})
		time.Sleep(checkEvery)
		gw.set(func() { gw.fail = nil })
		gw.takeCalls()
		time.Sleep(8*time.Hour + 5*time.Second)
		if n := len(gw.takeCalls()); n > 2 {
			t.Errorf("%d requests when the host woke up", n)
		}
	})
}

// TestCheckNotNeeded checks which mappings are not checked: one that is not kept alive, and
// one that was renewed a moment ago.
func TestCheckNotNeeded(t *testing.T) {
	for name, o := range map[string]forward.Option{
		"once": forward.Once(), "renewed often": forward.RenewEvery(time.Second), "closed": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, f, _ := newChecked(t, forward.Config{Lifetime: day})
				opts := []forward.Option{forward.TCP(8080)}
				if o != nil {
					opts = append(opts, o)
				}
				m, err := f.Enable(t.Context(), opts...)
				if err != nil {
					t.Fatal(err)
				}
				if o == nil {
					if err := m.Close(); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Hour)
				calls := gw.takeCalls()
				if i := slices.IndexFunc(calls, func(call string) bool { return strings.HasPrefix(call, "check") }); i >= 0 {
					t.Errorf("%s among %d requests", calls[i], len(calls))
				}
			})
		})
	}
}

// TestCheckFirstLookUp checks that new mappings of a gateway with a table are looked up a few
// seconds after the grant, one in a second.
func TestCheckFirstLookUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := tableGateway{&checkedGateway{fakeGateway: newFakeGateway()}}, &eventRecorder{}
		f := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, OnEvent: events.record})
		defer f.Close()
		for i := range uint16(10) {
			if _, err := f.Enable(t.Context(), forward.TCP(8080+i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		gw.lose(8083)
		gw.takeCalls()
		time.Sleep(time.Second)
		synctest.Wait()
		if calls := gw.takeCalls(); len(calls) != 1 || calls[0] != "check tcp 8080" {
			t.Errorf("requests %v", calls)
		}
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if n := len(gw.takeCalls()); n != 2 {
			t.Errorf("%d requests in the seconds after", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if rows := gw.rows(); len(rows) != 10 {
			t.Errorf("the gateway has %v", rows)
		}
		if got := strings.Join(events.peek(), ", "); !strings.HasSuffix(got, "lost 0, restored 8083") {
			t.Errorf("events %v", got)
		}
	})
}

// TestCheckFirstLookUpPause checks that there is at most one first lookup in a second, also
// while more mappings are granted.
func TestCheckFirstLookUpPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := tableGateway{&checkedGateway{fakeGateway: newFakeGateway()}}
		f := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}})
		defer f.Close()
		for i := range uint16(100) {
			if _, err := f.Enable(t.Context(), forward.TCP(8080+i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		calls := slices.DeleteFunc(gw.takeCalls(), func(call string) bool { return !strings.HasPrefix(call, "check") })
		if n := len(calls); n < 5 || n > 7 {
			t.Errorf("%d lookups in the ten seconds after the first grant", n)
		}
	})
}

// onlyTable is a fakeGateway with a table that can be looked up, but no Check.
type onlyTable struct{ *checkedGateway }

func (g onlyTable) LookUp(ctx context.Context, m backends.Mapping) error {
	return g.checkedGateway.Check(ctx, m)
}

// Check has another signature than the method of backends.Checker.
func (onlyTable) Check() {}

// TestCheckOnlyTable checks a gateway that has a table and is no Checker: only new mappings
// are looked up.
func TestCheckOnlyTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := onlyTable{&checkedGateway{fakeGateway: newFakeGateway()}}
		f := newForwarder(t, forward.Config{Backends: []backends.Backend{gw}, Lifetime: day})
		defer f.Close()
		enablePorts(t, f, 1)
		gw.lose(8080)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if rows := gw.rows(); len(rows) != 1 {
			t.Errorf("the gateway has %v", rows)
		}
		gw.takeCalls()
		time.Sleep(10 * checkEvery)
		if calls := gw.takeCalls(); len(calls) != 0 {
			t.Errorf("requests %v", calls)
		}
	})
}

// TestCheckAddress checks that one renewal with another external address makes all mappings
// renew theirs.
func TestCheckAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, events := newChecked(t, forward.Config{Lifetime: day})
		gw.hidesTable = true
		var mappings []*forward.Mapping
		for i := range uint16(3) {
			m, err := f.Enable(t.Context(), forward.TCP(8080+i))
			if err != nil {
				t.Fatal(err)
			}
			mappings = append(mappings, m)
		}
		events.want(t, "mapped 8080", "mapped 8081", "mapped 8082")
		gw.set(func() { gw.external = localAddr })
		time.Sleep(checkEvery)
		synctest.Wait()
		wantInAnyOrder(t, events, "changed 8080", "changed 8081", "changed 8082")
		for _, m := range mappings {
			if s := m.Status(); !strings.Contains(s.Reason, "the external address was 45.45.45.1 and is 192.0.2.10") {
				t.Errorf("%v: reason %q", m, s.Reason)
			}
		}
		gw.takeCalls()
		time.Sleep(checkEvery)
		if n := len(gw.takeCalls()); n > 4 {
			t.Errorf("%d requests in the interval after", n)
		}
	})
}

// TestCheckDuringClose checks that Close ends a check in flight.
func TestCheckDuringClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, f, _ := newChecked(t, forward.Config{})
		enablePorts(t, f, 1)
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "check" {
					time.Sleep(5 * time.Second)
				}
				return nil
			}
		})
		time.Sleep(checkEvery)
		if err := f.Close(); err != nil || len(gw.live()) != 0 {
			t.Errorf("%v; the gateway has %v", err, gw.rows())
		}
		gw.takeCalls()
		time.Sleep(time.Hour)
		if calls := gw.takeCalls(); len(calls) != 0 {
			t.Errorf("requests after Close: %v", calls)
		}
	})
}

// TestCheckOnGateway checks that a mapping that vanished from the gateway is mapped again, by
// each protocol, alone and beside UPnP.
func TestCheckOnGateway(t *testing.T) {
	for name, protocols := range map[string][]string{
		"natpmp": {"natpmp"}, "pcp": {"pcp"}, "upnp": {"upnp"}, "natpmp beside upnp": {"natpmp", "upnp"}, "pcp beside upnp": {"pcp", "upnp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := startGateway(t, gatewaytest.Config{Protocols: protocols})
			config := *gw.Config()
			config.CheckEvery = time.Second
			events := &eventRecorder{}
			config.OnEvent = events.record
			f := newLoopbackForwarder(t, config)
			m, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil {
				t.Fatal(err)
			}
			hasTable := protocols[len(protocols)-1] == "upnp"
			if hasTable && len(protocols) == 2 { // a table counts only once it has listed the mapping
				listed := func(r gatewaytest.Request) bool { return r.Action == "GetSpecificPortMappingEntry" }
				if _, err := gw.AwaitRequests(testContext(t), 2, listed); err != nil { // the first has a reply
					t.Fatal(err)
				}
			}
			if !gw.RemoveMapping(backends.TCP, m.External().Port()) {
				t.Fatal("the gateway has no mapping")
			}
			if !eventually(t, 20*time.Second, func() bool { return len(gw.Table()) == 1 }) {
				t.Fatalf("the gateway has %v", gw.Table())
			}
			if err := m.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
			want := "mapped 8080"
			if hasTable && len(protocols) == 2 {
				return // a renewal can come before the lookup, and shows no loss
			}
			if hasTable {
				want = "mapped 8080, lost 0, restored 8080"
			}
			if !eventually(t, 5*time.Second, func() bool { return strings.Join(events.peek(), ", ") == want }) {
				t.Errorf("events %v, want %v", events.peek(), want)
			}
		})
	}
}
