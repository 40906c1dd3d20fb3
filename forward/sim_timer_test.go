package forward_test

import (
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// never makes every call fail.
func never(err error) func(string, backends.Protocol, uint16) error {
	return func(string, backends.Protocol, uint16) error { return err }
}

// chances are the ends of what jitter makes.
var chances = map[string]func(time.Duration) time.Duration{
	"least": func(time.Duration) time.Duration { return 0 },
	"most":  func(d time.Duration) time.Duration { return d },
}

// asked returns when the gateway was asked within a time from now.
func asked(m *memory, within time.Duration) []time.Duration {
	begun := time.Now()
	m.calls()
	time.Sleep(within)
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []time.Duration
	for _, at := range m.at {
		out = append(out, at.Sub(begun))
	}
	return out
}

// keep enables a mapping that the gateway grants for a time, with jitter that is
// no chance.
func keep(t *testing.T, m *memory, lifetime time.Duration, jitter func(time.Duration) time.Duration, opts ...forward.Option) *forward.Mapping {
	t.Helper()
	f := forwarder(t, forward.Config{}, m)
	f.SetJitter(jitter)
	t.Cleanup(func() { _ = f.Close() })
	m.limit = lifetime
	got, err := f.Enable(t.Context(), append(opts, forward.TCP(8080), forward.Lifetime(lifetime))...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// The first renewal comes between one half and five eighths of what was granted
// (RFC 6887, section 11.2.1); nothing is granted for longer than a day as far as
// that goes (section 15), and what has no end is looked at.
func TestFirstRenewal(t *testing.T) {
	const s, h = time.Second, time.Hour
	for name, test := range map[string]struct{ granted, least, most time.Duration }{
		"5 seconds":            {5 * s, 2500 * time.Millisecond, 3125 * time.Millisecond},
		"a VPN's minute":       {60 * s, 30 * s, 37500 * time.Millisecond},
		"the least of PCP":     {120 * s, 60 * s, 75 * s},
		"two hours":            {2 * h, 1 * h, 75 * time.Minute},
		"a day":                {24 * h, 12 * h, 15 * h},
		"a week":               {7 * 24 * h, 12 * h, 15 * h},
		"the most on the wire": {math.MaxUint32 * s, 12 * h, 15 * h},
		"no end":               {backends.Forever, 20 * time.Minute, 22*time.Minute + 30*s},
	} {
		for chance, want := range map[string]time.Duration{"least": test.least, "most": test.most} {
			t.Run(name+", "+chance, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMemory()
					keep(t, m, test.granted, chances[chance])
					if at := asked(m, 3*want); len(at) < 2 || at[0] != want || at[1] != 2*want {
						t.Errorf("renewed at %v, want %v, and as long after", at, want)
					}
				})
			})
		}
	}
}

// A renewal that fails is tried again when half of what is left has passed, and
// no sooner than after four seconds: in the windows that begin at 3/4, 7/8 and
// so on of the lifetime, and are 1/16, 1/32 and so on wide (RFC 6887, section
// 11.2.1). The last try is the end of the lifetime.
func TestRenewalWindows(t *testing.T) {
	for name, test := range map[string]struct {
		granted time.Duration
		windows int // before the one where four seconds are more than a half
	}{
		"5 seconds": {5 * time.Second, 1},
		"a minute":  {time.Minute, 3},
		"two hours": {2 * time.Hour, 10},
		"a day":     {24 * time.Hour, 13},
	} {
		for chance, jitter := range chances {
			t.Run(name+", "+chance, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newMemory()
					keep(t, m, test.granted, jitter)
					m.set(func() { m.fail = never(backends.ErrNoReply) })
					at := asked(m, test.granted)
					if len(at) < test.windows+1 || at[len(at)-1] != test.granted {
						t.Fatalf("asked at %v, want %d times and at %v", at, test.windows, test.granted)
					}
					for i, at := range at[:test.windows] {
						opens := test.granted - test.granted>>(i+1)
						if width := test.granted >> (i + 3); at < opens || at > opens+width {
							t.Errorf("try %d at %v, want between %v and %v", i+1, at, opens, opens+width)
						}
					}
					renewals := at[:len(at)-1]
					for i := 1; i < len(renewals); i++ {
						if gap := renewals[i] - renewals[i-1]; gap < 4*time.Second {
							t.Errorf("tries at %v and %v", renewals[i-1], renewals[i])
						}
					}
				})
			})
		}
	}
}

// What a gateway granted for a hundred years, and may have forgotten, is not
// left alone for half of that after a try that failed.
func TestLongLeaseFails(t *testing.T) {
	for chance, jitter := range chances {
		t.Run(chance, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				got := keep(t, m, math.MaxUint32*time.Second, jitter)
				m.set(func() { m.fail = never(backends.ErrNoReply) })
				at := asked(m, 25*time.Hour)
				if n := len(at); n < 15 || n > 15+70 || at[1] > 20*time.Hour {
					t.Errorf("%d tries in a day and an hour, the first at %v", n, at[:min(n, 5)])
				}
				m.set(func() { m.fail = nil })
				time.Sleep(retryWait)
				if got.Err() != nil || !got.External().IsValid() {
					t.Errorf("%v, error %v", got, got.Err())
				}
			})
		})
	}
}

// After the end it is tried for ever: at pauses that double up to a minute where
// nobody answers, and up to a quarter of an hour where the gateway refuses.
func TestRetries(t *testing.T) {
	for name, test := range map[string]struct {
		err     error
		longest time.Duration
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
				m := newMemory()
				m.fail = never(test.err)
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				f.SetJitter(chances["least"])
				got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Exact(), forward.Background())
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the first try is over
				at := append([]time.Duration{0}, asked(m, 3*24*time.Hour)...)
				for i, pause := 1, time.Second; i < len(at); i, pause = i+1, min(2*pause, test.longest) {
					if gap := at[i] - at[i-1]; gap != pause {
						t.Fatalf("pause %d is %v, want %v", i, gap, pause)
					}
				}
				if want := int(3 * 24 * time.Hour / test.longest); len(at) < want-1 {
					t.Errorf("%d tries in three days, want %d", len(at), want)
				}
				m.set(func() { m.fail = nil })
				time.Sleep(test.longest)
				if got.Err() != nil {
					t.Error(got.Err())
				}
			})
		})
	}
}

// A gateway that grants less than was asked for is asked for the whole again.
func TestShortenedLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		got := keep(t, m, 2*time.Hour, chances["least"])
		for _, granted := range []time.Duration{time.Hour, time.Minute, 2 * time.Hour} {
			m.set(func() { m.limit = granted })
			time.Sleep(time.Until(got.Status().NextAttempt))
			synctest.Wait()
			if left := time.Until(got.Expires()); left != granted {
				t.Errorf("granted for %v, want %v", left, granted)
			}
			if next := time.Until(got.Status().NextAttempt); next != granted/2 {
				t.Errorf("next in %v, want %v", next, granted/2)
			}
		}
	})
}

// A renewal that brings another port is told of once.
func TestPortMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.taken[8080] = true })
		time.Sleep(24 * time.Hour)
		events.want(t, "mapped 8080", "changed 8081")
	})
}

// The port that was granted last is asked for after an outage, too, however long
// it was.
func TestPortAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.taken[8080] = true
		got := keep(t, m, time.Hour, chances["least"])
		m.set(func() {
			m.fail = never(backends.ErrNoReply)
			delete(m.taken, 8080)
		})
		time.Sleep(24 * time.Hour)
		if len(got.Grants()) != 0 {
			t.Errorf("a day without an answer, and %v", got)
		}
		m.set(func() { m.fail = nil })
		time.Sleep(retryWait)
		if got.External().Port() != 8081 {
			t.Errorf("%v, it was port 8081", got)
		}
	})
}

// Both is one unit or none, also where only one of the renewals is answered, with
// another port.
func TestBothHalfRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newMemory(), newChronicle()
		f := forwarder(t, forward.Config{OnEvent: c.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.Both(8080))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() {
			m.taken[8080] = true
			m.fail = func(_ string, p backends.Protocol, _ uint16) error {
				if p == backends.UDP {
					return backends.ErrNoReply
				}
				return nil
			}
		})
		time.Sleep(24 * time.Hour)
		m.set(func() { m.fail = nil })
		time.Sleep(retryWait)
		synctest.Wait()
		c.compare([]*forward.Mapping{got})
		report(t, c.wrong)
		if state := got.Grants(); len(state) != 2 || len(m.live()) != 2 {
			t.Errorf("%v, the gateway has %v", state, m.live())
		}
	})
}

// What has run out is not told of, however long the tries of others take.
func TestExpiredBehindOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		var ms []*forward.Mapping
		for i := range uint16(200) {
			got, err := f.Enable(t.Context(), forward.TCP(1001+i), forward.Lifetime(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			ms = append(ms, got)
		}
		m.set(func() { m.block = true })
		time.Sleep(time.Minute + time.Millisecond)
		for _, got := range ms {
			if got.External().IsValid() || len(got.Grants()) != 0 || !got.Expires().IsZero() {
				t.Fatalf("it has run out, and is %v", got)
			}
		}
		m.set(func() { m.block = false })
		time.Sleep(5 * time.Minute)
		if n := len(m.live()); n != 200 {
			t.Errorf("the gateway has %d", n)
		}
	})
}

// Those that are due at once take turns in the order of enabling, after a
// restart as ever.
func TestOrderOfRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		const n = 100
		for i := range uint16(n) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+i)); err != nil {
				t.Fatal(err)
			}
		}
		m.calls()
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error { time.Sleep(time.Millisecond); return nil }
		})
		m.restart()
		begun := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if took := m.at[len(m.at)-1].Sub(begun); len(m.at) != n || took != (n/forward.MaxWorkers)*time.Millisecond {
			t.Errorf("%d renewals, the last after %v", len(m.at), took)
		}
		if last := m.log[n-4:]; !slices.Contains(last, "renew tcp 1100") {
			t.Errorf("the last are %v", last)
		}
	})
}
