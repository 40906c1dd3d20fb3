package forward_test

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestRenewal checks that renewals are sent between one half and five eighths of the
// granted lifetime, that they request the full lifetime and the granted port, and that
// the mapping is active all the time.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		gw.maxLifetime, gw.taken[8080] = time.Hour, true
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for range 48 * 60 {
			time.Sleep(time.Minute)
			if len(gw.live()) != 1 {
				t.Fatal("the gateway has no mapping")
			}
		}
		gw.mu.Lock()
		log, at := gw.requests, gw.sentAt
		gw.mu.Unlock()
		for i := 1; i < len(log); i++ {
			if pause := at[i].Sub(at[i-1]); pause < 30*time.Minute || pause > 37*time.Minute+30*time.Second || log[i] != "renew tcp 8081" {
				t.Fatalf("%s after %v", log[i], pause)
			}
		}
		if len(log) < 48*60/38 {
			t.Errorf("%d requests in two days", len(log))
		}
		if next := m.Status().NextAttempt; next.Before(time.Now()) || next.After(m.Expires()) {
			t.Errorf("next attempt at %v, expires at %v", next, m.Expires())
		}
		events.want(t, "mapped 8081")
	})
}

// TestForeverRenewed checks that a mapping without an end is requested again regularly,
// because a gateway may lose it.
func TestForeverRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(forward.Forever))
		if err != nil || !m.Expires().IsZero() {
			t.Fatal(m, err)
		}
		gw.takeCalls()
		time.Sleep(24 * time.Hour)
		if n := len(gw.takeCalls()); n < 24*60/23 || n > 24*60/20 {
			t.Errorf("%d requests in one day, want one every twenty minutes", n)
		}
		gw.set(func() { clear(gw.table) })
		time.Sleep(23 * time.Minute)
		if len(gw.live()) != 1 {
			t.Error("the gateway lost the mapping, and it was not requested again")
		}
		events.want(t, "mapped 8080")
	})
}

// TestRenewalFails checks that a failed renewal is retried at ever shorter intervals. The
// mapping is lost when it expires, and is then requested until it is granted again.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNoReply }
		})
		time.Sleep(59 * time.Minute)
		if !errors.Is(m.Err(), backends.ErrNoReply) || m.External().Port() != 8080 {
			t.Errorf("before it expires: %v, error %v", m, m.Err())
		}
		if n := len(gw.takeCalls()); n < 4 || n > 12 {
			t.Errorf("%d requests in the first hour", n)
		}
		events.want(t, "mapped 8080", "failed 8080")
		changed := m.Changed()
		time.Sleep(2 * time.Minute)
		select {
		case <-changed:
		default:
			t.Error("Changed was not closed")
		}
		if m.External().IsValid() || len(m.Grants()) != 0 {
			t.Errorf("after it expired: %v", m)
		}
		events.want(t, "lost 0", "failed 0")
		gw.takeCalls()
		time.Sleep(time.Hour)
		if n := len(gw.takeCalls()); n < 50 || n > 70 {
			t.Errorf("%d requests in one hour without a mapping, want about one per minute", n)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(2 * time.Minute)
		if m.External().Port() != 8080 || m.Err() != nil {
			t.Errorf("after the outage: %v, error %v", m, m.Err())
		}
		events.want(t, "restored 8080")
	})
}

// TestExpiryDuringRenewal checks that the loss is reported when the mapping expires, even
// if a renewal is in flight, and that the mapping is requested again without a pause.
func TestExpiryDuringRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{RequestTimeout: time.Hour, OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(12*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		expires := m.Expires()
		gw.set(func() { gw.block = true })
		time.Sleep(8 * time.Second)
		events.want(t, "mapped 8080")
		gw.set(func() { gw.block = false }) // the renewal in flight still gets no reply
		gw.takeCalls()
		time.Sleep(time.Until(expires) - time.Nanosecond)
		events.want(t)
		time.Sleep(time.Nanosecond)
		events.want(t, "lost 0", "restored 8080")
		if diff := cmp.Diff([]string{"map tcp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		if want := expires.Add(12 * time.Second); !m.Expires().Equal(want) || m.Err() != nil {
			t.Errorf("expires %v, want %v; error %v", m.Expires(), want, m.Err())
		}
	})
}

// TestBothRenewedOnAnotherPort checks that both protocols keep one external port if a
// renewal grants another port to one of them.
func TestBothRenewedOnAnotherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.udpPort = 7000 })
		time.Sleep(time.Hour)
		state := m.Grants()
		if len(state) != 2 || state[0].External.Port() != 7000 || state[1].External.Port() != 7000 {
			t.Errorf("granted %+v, want 7000 for both", state)
		}
		if n := len(gw.live()); n != 2 {
			t.Errorf("the gateway has %v", gw.live())
		}
	})
}

// TestExactRenewed checks that an exact port is kept if the external address changes.
func TestExactRenewed(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Exact())
	if err != nil {
		t.Fatal(err)
	}
	moved := netip.MustParseAddr("45.45.45.77")
	gw.SetExternal(moved)
	if err := m.Refresh(t.Context()); err != nil || m.External().AddrPort != netip.AddrPortFrom(moved, 8080) {
		t.Errorf("Refresh: %v, %v", m, err)
	}
}

// TestPortGroupOrder checks the order of renewals on one internal port. Some gateways
// break the mapping of one protocol if another protocol's earlier mapping on the same
// internal port is renewed, or if any such mapping is deleted. Therefore the later
// mapping is renewed immediately afterwards.
func TestPortGroupOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		tcp, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for _, opt := range []forward.Option{forward.UDP(8080), forward.TCP(9090)} {
			time.Sleep(time.Second)
			if _, err := f.Enable(t.Context(), opt); err != nil {
				t.Fatal(err)
			}
		}
		gw.takeCalls()
		if err := tcp.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		gw.changes <- backends.Change{Kind: backends.Announced}
		synctest.Wait()
		calls := gw.takeCalls() // the order of the ports is not defined
		if i := slices.Index(calls, "renew udp 8080"); len(calls) != 3 || slices.Index(calls, "renew tcp 8080") > i {
			t.Error(calls)
		}
		if err := tcp.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"unmap tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
		if tcp, err = f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		gw.takeCalls()
		if err := tcp.Close(); err != nil { // now granted after UDP
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"unmap tcp 8080", "renew udp 8080"}, gw.takeCalls()); diff != "" {
			t.Error(diff)
		}
	})
}

// jitterBounds are the smallest and the largest jitter.
var jitterBounds = map[string]func(time.Duration) time.Duration{
	"smallest": func(time.Duration) time.Duration { return 0 },
	"largest":  func(d time.Duration) time.Duration { return d },
}

// callTimes returns the times of the calls within a period from now.
func callTimes(gw *fakeGateway, period time.Duration) []time.Duration {
	start := time.Now()
	gw.takeCalls()
	time.Sleep(period)
	synctest.Wait()
	gw.mu.Lock()
	defer gw.mu.Unlock()
	var times []time.Duration
	for _, t := range gw.sentAt {
		times = append(times, t.Sub(start))
	}
	return times
}

// enableWithJitter enables a mapping that the gateway grants for a lifetime, with a fixed
// jitter.
func enableWithJitter(t *testing.T, gw *fakeGateway, lifetime time.Duration, jitter func(time.Duration) time.Duration, opts ...forward.Option) *forward.Mapping {
	t.Helper()
	f := newForwarder(t, forward.Config{}, gw)
	f.SetJitter(jitter)
	t.Cleanup(func() { _ = f.Close() })
	gw.maxLifetime = lifetime
	m, err := f.Enable(t.Context(), append(opts, forward.TCP(8080), forward.Lifetime(lifetime))...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestFirstRenewal checks that the first renewal is sent between one half and five
// eighths of the granted lifetime (RFC 6887, section 11.2.1). For this purpose a lifetime
// counts as one day at most (section 15). A mapping without an end is checked at
// intervals.
func TestFirstRenewal(t *testing.T) {
	const s, h = time.Second, time.Hour
	for name, test := range map[string]struct{ granted, earliest, latest time.Duration }{
		"5 seconds":     {5 * s, 2500 * time.Millisecond, 3125 * time.Millisecond},
		"a VPN gateway": {60 * s, 30 * s, 37500 * time.Millisecond},
		"PCP minimum":   {120 * s, 60 * s, 75 * s},
		"two hours":     {2 * h, 1 * h, 75 * time.Minute},
		"a day":         {24 * h, 12 * h, 15 * h},
		"a week":        {7 * 24 * h, 12 * h, 15 * h},
		"PCP maximum":   {math.MaxUint32 * s, 12 * h, 15 * h},
		"forever":       {backends.Forever, 20 * time.Minute, 22*time.Minute + 30*s},
	} {
		for jitterName, want := range map[string]time.Duration{"smallest": test.earliest, "largest": test.latest} {
			t.Run(name+", "+jitterName, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					gw := newFakeGateway()
					enableWithJitter(t, gw, test.granted, jitterBounds[jitterName])
					if times := callTimes(gw, 3*want); len(times) < 2 || times[0] != want || times[1] != 2*want {
						t.Errorf("renewed at %v, want %v and twice that", times, want)
					}
				})
			})
		}
	}
}

// TestRenewalWindows checks that a failed renewal is retried after half of the remaining
// lifetime, and after four seconds at least. The windows begin at 3/4, 7/8 and so on of
// the lifetime, and have a width of 1/16, 1/32 and so on (RFC 6887, section 11.2.1). The
// last attempt is at the end of the lifetime.
func TestRenewalWindows(t *testing.T) {
	for name, test := range map[string]struct {
		granted time.Duration
		windows int // as long as half of the remaining lifetime is more than four seconds
	}{
		"5 seconds": {5 * time.Second, 1},
		"a minute":  {time.Minute, 3},
		"two hours": {2 * time.Hour, 10},
		"a day":     {24 * time.Hour, 13},
	} {
		for jitterName, jitter := range jitterBounds {
			t.Run(name+", "+jitterName, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					gw := newFakeGateway()
					enableWithJitter(t, gw, test.granted, jitter)
					gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
					at := callTimes(gw, test.granted)
					if len(at) < test.windows+1 || at[len(at)-1] != test.granted {
						t.Fatalf("requests at %v, want %d and one at %v", at, test.windows, test.granted)
					}
					for i, at := range at[:test.windows] {
						opening := test.granted - test.granted>>(i+1)
						if width := test.granted >> (i + 3); at < opening || at > opening+width {
							t.Errorf("attempt %d at %v, want it between %v and %v", i+1, at, opening, opening+width)
						}
					}
					renewals := at[:len(at)-1]
					for i := 1; i < len(renewals); i++ {
						if gap := renewals[i] - renewals[i-1]; gap < 4*time.Second {
							t.Errorf("attempts at %v and %v, want a pause of four seconds", renewals[i-1], renewals[i])
						}
					}
				})
			})
		}
	}
}

// TestLongLeaseRetry checks that a failed renewal of a mapping that was granted for a
// hundred years is not retried after fifty years, because the gateway may have lost the
// mapping.
func TestLongLeaseRetry(t *testing.T) {
	for jitterName, jitter := range jitterBounds {
		t.Run(jitterName, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				m := enableWithJitter(t, gw, math.MaxUint32*time.Second, jitter)
				gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
				times := callTimes(gw, 25*time.Hour)
				if n := len(times); n < 15 || n > 15+70 || times[1] > 20*time.Hour {
					t.Errorf("%d attempts in 25 hours, the first at %v", n, times[:min(n, 5)])
				}
				gw.set(func() { gw.fail = nil })
				time.Sleep(maxRetryTime)
				if m.Err() != nil || !m.External().IsValid() {
					t.Errorf("%v, error %v", m, m.Err())
				}
			})
		})
	}
}

// TestRetries checks that an expired mapping is retried indefinitely. The pauses double
// up to one minute if there is no reply, and up to 15 minutes if the gateway refuses.
func TestRetries(t *testing.T) {
	for name, test := range map[string]struct {
		err      error
		maxPause time.Duration
	}{
		"no reply":        {backends.ErrNoReply, time.Minute},
		"no resources":    {backends.ErrNoResources, time.Minute},
		"network failure": {backends.ErrNetworkFailure, time.Minute},
		"taken":           {backends.ErrConflict, time.Minute},
		"refused":         {backends.ErrNotAuthorized, 15 * time.Minute},
		"private WAN":     {backends.ErrPrivateWAN, 15 * time.Minute},
		"unsupported":     {backends.ErrUnsupported, 15 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				gw.fail = failAll(test.err)
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				f.SetJitter(jitterBounds["smallest"])
				m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Exact(), forward.Background())
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the first attempt has failed
				times := append([]time.Duration{0}, callTimes(gw, 3*24*time.Hour)...)
				for i, pause := 1, time.Second; i < len(times); i, pause = i+1, min(2*pause, test.maxPause) {
					if gap := times[i] - times[i-1]; gap != pause {
						t.Fatalf("pause %d is %v, want %v", i, gap, pause)
					}
				}
				if want := int(3 * 24 * time.Hour / test.maxPause); len(times) < want-1 {
					t.Errorf("%d attempts in three days, want %d", len(times), want)
				}
				gw.set(func() { gw.fail = nil })
				time.Sleep(test.maxPause)
				if m.Err() != nil {
					t.Error(m.Err())
				}
			})
		})
	}
}

// TestShortenedLifetime checks that the full lifetime is requested again from a gateway
// that granted less.
func TestShortenedLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		m := enableWithJitter(t, gw, 2*time.Hour, jitterBounds["smallest"])
		for _, granted := range []time.Duration{time.Hour, time.Minute, 2 * time.Hour} {
			gw.set(func() { gw.maxLifetime = granted })
			time.Sleep(time.Until(m.Status().NextAttempt))
			synctest.Wait()
			if remaining := time.Until(m.Expires()); remaining != granted {
				t.Errorf("granted for %v, want %v", remaining, granted)
			}
			if next := time.Until(m.Status().NextAttempt); next != granted/2 {
				t.Errorf("next renewal in %v, want %v", next, granted/2)
			}
		}
	})
}

// TestRenewalChangesPort checks that a renewal that is granted another port causes one
// event.
func TestRenewalChangesPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.taken[8080] = true })
		time.Sleep(24 * time.Hour)
		events.want(t, "mapped 8080", "changed 8081")
	})
}

// TestPortAfterOutage checks that the port that was granted last is also requested after
// an outage, independent of its duration.
func TestPortAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		gw.taken[8080] = true
		m := enableWithJitter(t, gw, time.Hour, jitterBounds["smallest"])
		gw.set(func() {
			gw.fail = failAll(backends.ErrNoReply)
			delete(gw.taken, 8080)
		})
		time.Sleep(24 * time.Hour)
		if len(m.Grants()) != 0 {
			t.Errorf("after one day without a reply: %v", m)
		}
		gw.set(func() { gw.fail = nil })
		time.Sleep(maxRetryTime)
		if m.External().Port() != 8081 {
			t.Errorf("%v, want port 8081 as before", m)
		}
	})
}

// TestBothPartlyRenewed checks that both protocols stay one unit, even if only one of the
// renewals gets a reply, with another port.
func TestBothPartlyRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, c := newFakeGateway(), newEventChecker()
		f := newForwarder(t, forward.Config{OnEvent: c.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.Both(8080))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() {
			gw.taken[8080] = true
			gw.fail = func(_ string, p backends.Protocol, _ uint16) error {
				if p == backends.UDP {
					return backends.ErrNoReply
				}
				return nil
			}
		})
		time.Sleep(24 * time.Hour)
		gw.set(func() { gw.fail = nil })
		time.Sleep(maxRetryTime)
		synctest.Wait()
		c.compareWithMappings([]*forward.Mapping{m})
		reportProblems(t, c.problems)
		if state := m.Grants(); len(state) != 2 || len(gw.live()) != 2 {
			t.Errorf("%v, the gateway has %v", state, gw.live())
		}
	})
}

// TestExpiryWhileOthersWait checks that an expired mapping is not reported, even if
// requests for other mappings take long.
func TestExpiryWhileOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		var ms []*forward.Mapping
		for i := range uint16(200) {
			m, err := f.Enable(t.Context(), forward.TCP(1001+i), forward.Lifetime(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			ms = append(ms, m)
		}
		gw.set(func() { gw.block = true })
		time.Sleep(time.Minute + time.Millisecond)
		for _, m := range ms {
			if m.External().IsValid() || len(m.Grants()) != 0 || !m.Expires().IsZero() {
				t.Fatalf("the mapping has expired, but reports %v", m)
			}
		}
		gw.set(func() { gw.block = false })
		time.Sleep(5 * time.Minute)
		if n := len(gw.live()); n != 200 {
			t.Errorf("the gateway has %d mappings, want 200", n)
		}
	})
}

// TestRenewalOrderAfterRestart checks that mappings that are due at the same time are
// renewed in the order in which they were enabled, also after a restart.
func TestRenewalOrderAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		const n = 100
		for i := range uint16(n) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+i)); err != nil {
				t.Fatal(err)
			}
		}
		gw.takeCalls()
		gw.set(func() {
			gw.fail = func(string, backends.Protocol, uint16) error { time.Sleep(time.Millisecond); return nil }
		})
		gw.restart()
		start := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		gw.mu.Lock()
		defer gw.mu.Unlock()
		if took := gw.sentAt[len(gw.sentAt)-1].Sub(start); len(gw.sentAt) != n || took != (n/forward.MaxCalls)*time.Millisecond {
			t.Errorf("%d renewals, the last after %v", len(gw.sentAt), took)
		}
		if last := gw.requests[n-4:]; !slices.Contains(last, "renew tcp 1100") {
			t.Errorf("the last renewals are %v", last)
		}
	})
}
