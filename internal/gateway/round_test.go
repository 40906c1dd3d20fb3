package gateway

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
)

const ms = time.Millisecond

var testKey = Key{Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Local: netip.MustParseAddr("192.0.2.2")}

// fakeLink is a link to a gateway that supports some of the protocols.
type fakeLink struct {
	supports []string      // "natpmp", "pcp" and "upnp"
	refuses  bool          // port 5351 is closed, unless the gateway supports NAT-PMP or PCP
	rtt      time.Duration // round-trip time
	loses    bool          // a fifth of the datagrams in each direction
	seed     uint64        // of the losses
	log      *probeLog     // the transmissions; probes sets it
}

const ssdpDelay = 50 * ms // the delay of the response to a search

// probes returns the probes of the three protocols.
func (l *fakeLink) probes() []fakeProbe {
	if l.log == nil {
		l.log = &probeLog{}
	}
	return []fakeProbe{
		{"natpmp", func(ctx context.Context) error { return l.transact(ctx, "natpmp") }, false},
		{"pcp", func(ctx context.Context) error { return l.transact(ctx, "pcp") }, false},
		{"upnp", l.search, true},
	}
}

// transact repeats a request after 250 ms, and the first time early if that is demanded.
func (l *fakeLink) transact(ctx context.Context, name string) error {
	replies := time.NewTimer(time.Hour)
	replies.Stop()
	answered, loss := false, rand.New(rand.NewPCG(l.seed*0x9E3779B97F4A7C15, uint64(name[0]))) //nolint:gosec // not a secret
	send := func() {
		l.log.add(name)
		isSupported := slices.Contains(l.supports, name) || l.refuses
		requestLost, replyLost := loss.IntN(5) == 0, loss.IntN(5) == 0
		isLost := l.loses && (requestLost || replyLost)
		if isSupported && !isLost && !answered {
			answered = true
			replies.Reset(l.rtt)
		}
	}
	send()
	repeat, timer := ctxsync.Repeat(ctx), time.NewTimer(250*ms)
	defer timer.Stop()
	for {
		select {
		case <-replies.C:
			if !slices.Contains(l.supports, name) {
				return fmt.Errorf("%w: %w", backends.ErrNoReply, errno.ECONNREFUSED)
			}
			return nil
		case <-repeat:
			repeat = nil
			timer.Reset(500 * ms)
			send()
		case <-timer.C:
			repeat = nil
			timer.Reset(500 * ms)
			send()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// search connects to the device that responds, and sends three requests.
func (l *fakeLink) search(ctx context.Context) error {
	l.log.add("upnp")
	if !slices.Contains(l.supports, "upnp") {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if err := ctxsync.Sleep(ctx, ssdpDelay+l.rtt); err != nil {
		return err
	}
	ctxsync.Replied(ctx, l.rtt)
	return ctxsync.Sleep(ctx, 3*l.rtt)
}

// TestProbeAdapts checks which protocol is chosen, and after what time, if the gateway is fast
// or slow, and if packets get lost.
func TestProbeAdapts(t *testing.T) {
	const runs = 200
	type times [3]time.Duration // with round trips of 1, 20 and 200 ms, without loss
	for name, test := range map[string]struct {
		link  fakeLink
		want  string
		after times
	}{
		"PCP only":                 {fakeLink{supports: []string{"pcp"}}, "pcp", times{10 * ms, 120 * ms, 250 * ms}},
		"NAT-PMP only":             {fakeLink{supports: []string{"natpmp"}}, "natpmp", times{1 * ms, 20 * ms, 200 * ms}},
		"both":                     {fakeLink{supports: []string{"natpmp", "pcp"}}, "natpmp", times{1 * ms, 20 * ms, 200 * ms}},
		"all":                      {fakeLink{supports: []string{"natpmp", "pcp", "upnp"}}, "natpmp", times{1 * ms, 20 * ms, 200 * ms}},
		"UPnP only, 5351 refused":  {fakeLink{supports: []string{"upnp"}, refuses: true}, "upnp", times{55 * ms, 150 * ms, 875 * ms}},
		"UPnP only, 5351 silent":   {fakeLink{supports: []string{"upnp"}}, "upnp", times{79 * ms, 155 * ms, 875 * ms}},
		"UPnP and PCP":             {fakeLink{supports: []string{"pcp", "upnp"}}, "pcp", times{10 * ms, 120 * ms, 250 * ms}},
		"nothing, 5351 is refused": {fakeLink{refuses: true}, "", times{wait, wait, wait}},
	} {
		for i, rtt := range []time.Duration{ms, 20 * ms, 200 * ms} {
			for _, loses := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %v, loss %v", name, rtt, loses), func(t *testing.T) {
					if test.want == "" && (loses || i > 0) {
						t.Skip("one run is enough")
					}
					chosen := map[string]int{}
					for run := range runs {
						synctest.Test(t, func(t *testing.T) {
							link := test.link
							link.rtt, link.loses, link.seed = rtt, loses, uint64(1000*i+run)
							c := joinAt(t, NewRegistry(Jitter), testKey, link.probes()...)
							start := time.Now()
							if err := c.Probe(t.Context(), wait); err != nil {
								chosen[""]++
							} else {
								chosen[c.Available()[0].name]++
							}
							if took := time.Since(start); !loses && took != test.after[i] {
								t.Errorf("took %v, want %v", took, test.after[i])
							}
						})
						if test.want == "" || t.Failed() {
							break
						}
					}
					atLeast := runs
					switch {
					case test.want == "":
						atLeast = 1
					case loses && len(test.link.supports) > 1:
						atLeast = 155
					case loses:
						atLeast = 195 // all packets of three seconds can get lost
					}
					t.Logf("chosen: %v", chosen)
					if chosen[test.want] < atLeast {
						t.Errorf("%s was chosen in %v, want at least %d", test.want, chosen, atLeast)
					}
				})
			}
		}
	}
}

// TestProbeTransmissions checks how many requests a probe sends to port 5351.
func TestProbeTransmissions(t *testing.T) {
	for name, test := range map[string]struct {
		supports []string
		want     string
	}{
		"both":     {[]string{"natpmp", "pcp"}, "natpmp pcp"},
		"NAT-PMP":  {[]string{"natpmp"}, "natpmp pcp"},
		"PCP only": {[]string{"pcp"}, "natpmp natpmp pcp"}, // the first one is repeated
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				link := &fakeLink{supports: test.supports, rtt: ms}
				c := joinAt(t, NewRegistry(Jitter), testKey, link.probes()...)
				if err := c.Probe(t.Context(), wait); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour) // a late probe sends nothing more
				synctest.Wait()
				slices.Sort(link.log.names)
				if got := strings.Join(link.log.names, " "); got != test.want {
					t.Errorf("sent %s, want %s", got, test.want)
				}
			})
		})
	}
}

// probeAgain returns what a new client of a registry chooses, after what time, and what was
// sent.
func probeAgain(t *testing.T, r *Registry, fakes []fakeProbe, log *probeLog) (chosen string, took time.Duration, sent string) {
	t.Helper()
	log.names = nil
	c := joinAt(t, r, testKey, fakes...)
	defer c.Discard()
	start := time.Now()
	if err := c.Probe(t.Context(), wait); err == nil {
		chosen = c.Available()[0].name
	}
	took = time.Since(start)
	time.Sleep(time.Second) // for late replies
	synctest.Wait()
	slices.Sort(log.names)
	return chosen, took, strings.Join(slices.Compact(log.names), " ")
}

// TestProbeRemembers checks that the protocol that a gateway supported is asked alone, also
// by a new owner, and that another gateway costs only a short wait.
func TestProbeRemembers(t *testing.T) {
	type result struct {
		chosen string
		took   time.Duration
		sent   string
	}
	for name, test := range map[string]struct {
		before, after *fakeLink
		want          result
	}{
		"PCP":  {&fakeLink{supports: []string{"pcp"}, rtt: ms}, &fakeLink{supports: []string{"pcp"}, rtt: ms}, result{"pcp", ms, "pcp"}},
		"UPnP": {&fakeLink{supports: []string{"upnp"}, rtt: ms}, &fakeLink{supports: []string{"upnp"}, rtt: ms}, result{"upnp", 54 * ms, "natpmp pcp upnp"}},
		"another gateway, with NAT-PMP": {
			&fakeLink{supports: []string{"pcp"}, rtt: ms}, &fakeLink{supports: []string{"natpmp"}, rtt: ms}, result{"natpmp", 11 * ms, "natpmp pcp upnp"},
		},
		"another gateway instead of a slow one": {
			&fakeLink{supports: []string{"pcp"}, rtt: 20 * ms}, &fakeLink{supports: []string{"natpmp"}, rtt: ms}, result{"natpmp", 121 * ms, "natpmp pcp upnp"},
		},
		"another gateway, with UPnP": {
			&fakeLink{supports: []string{"natpmp"}, rtt: ms}, &fakeLink{supports: []string{"upnp"}, rtt: ms}, result{"upnp", 64 * ms, "natpmp pcp upnp"},
		},
		"another gateway, which refuses": {
			&fakeLink{supports: []string{"pcp"}, rtt: ms}, &fakeLink{supports: []string{"upnp"}, refuses: true, rtt: ms}, result{"upnp", 55 * ms, "natpmp pcp upnp"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRegistry(Jitter)
				test.before.log, test.after.log = &probeLog{}, &probeLog{}
				if _, _, sent := probeAgain(t, r, test.before.probes(), test.before.log); !strings.HasPrefix(sent, "natpmp pcp") {
					t.Errorf("the first probe sent %s", sent)
				}
				chosen, took, sent := probeAgain(t, r, test.after.probes(), test.after.log)
				if got := (result{chosen, took, sent}); got != test.want {
					t.Errorf("%v, want %v", got, test.want)
				}
			})
		})
	}
}

// TestLateReply checks that a preferred protocol that replies after another one was chosen
// does not replace it, and is asked first the next time.
func TestLateReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		probes := func(after time.Duration) []fakeProbe {
			return []fakeProbe{{"a", probeReply{after, nil}.probe(&log, "a"), false}, {"b", probeReply{ms, nil}.probe(&log, "b"), false}}
		}
		r := NewRegistry(Jitter)
		c := joinAt(t, r, testKey, probes(100*ms)...)
		if err := c.Probe(t.Context(), wait); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got := c.Available(); len(got) != 1 || got[0].name != "b" {
			t.Errorf("available: %v", got)
		}
		c.Discard()
		if chosen, took, sent := probeAgain(t, r, probes(ms), &log); chosen != "a" || took != ms || sent != "a" {
			t.Errorf("chosen: %s after %v, sent %s", chosen, took, sent)
		}
	})
}

// TestProbeSentLate checks that the time of a preferred protocol begins when its request is
// transmitted, because other programs may delay that.
func TestProbeSentLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := func(ctx context.Context) error {
			if err := ctxsync.Sleep(ctx, 8*ms); err != nil {
				return err
			}
			ctxsync.Sent(ctx)
			ctxsync.Sent(ctx) // a repetition
			return ctxsync.Sleep(ctx, 7*ms)
		}
		var log probeLog
		probes := []fakeProbe{{"a", late, false}, {"b", probeReply{ms, nil}.probe(&log, "b"), false}}
		if chosen, took, _ := probeAgain(t, NewRegistry(Jitter), probes, &log); chosen != "a" || took != 15*ms {
			t.Errorf("chosen: %s after %v", chosen, took)
		}
	})
}

// TestProbeDelayed checks that a preferred protocol gets half of its time once more if this process
// did not run when the time ended, and only once; and that half of its time follows the repetition
// of its request.
func TestProbeDelayed(t *testing.T) {
	probe := func(context.Context) error { return nil }
	type step struct {
		after   time.Duration
		decided bool
	}
	for repeated, steps := range map[time.Duration][]step{
		5 * ms: {{9 * ms, false}, {11 * ms, true}, {20 * ms, false}, {24 * ms, false}, {25 * ms, true}, {40 * ms, true}},
		8 * ms: {{12 * ms, false}, {13 * ms, true}},
	} {
		r := newProbeRound(t.Context(), []*Backend{{name: "a", probe: probe}, {name: "b", probe: probe}}, -1, 0, wait)
		r.roundTrip, r.found, r.errs[1] = ms, r.start.Add(ms), nil
		r.probes[0].at, r.probes[0].repeated, r.probes[1].at = r.start, r.start.Add(repeated), r.start
		for _, s := range steps {
			now := r.start.Add(s.after)
			if r.extendDelayed(now); r.isDecided(now) != s.decided {
				t.Errorf("repeated after %v, decided after %v: %v, want %v", repeated, s.after, !s.decided, s.decided)
			}
		}
	}
}

// TestUnaskedPreferred checks that a protocol is not asked alone if a more preferred one was
// never asked.
func TestUnaskedPreferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := &fakeLink{supports: []string{"natpmp", "pcp"}, rtt: ms, log: &probeLog{}}
		r := NewRegistry(Jitter)
		if chosen, _, _ := probeAgain(t, r, link.probes()[1:], link.log); chosen != "pcp" {
			t.Errorf("chosen: %s", chosen)
		}
		if chosen, _, sent := probeAgain(t, r, link.probes(), link.log); chosen != "natpmp" || sent != "natpmp pcp" {
			t.Errorf("chosen: %s, sent %s", chosen, sent)
		}
	})
}

// TestSuggest checks that a hint has the effect of an earlier probe, and that it does not
// replace what a probe has shown.
func TestSuggest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := &fakeLink{supports: []string{"natpmp", "pcp"}, rtt: ms, log: &probeLog{}}
		r := NewRegistry(Jitter)
		r.Suggest(testKey, []Hint{{Protocol: "pcp"}})
		if chosen, took, sent := probeAgain(t, r, link.probes(), link.log); chosen != "pcp" || took != ms || sent != "pcp" {
			t.Errorf("with a hint: %s after %v, sent %s", chosen, took, sent)
		}
		r.Suggest(testKey, []Hint{{Protocol: "natpmp"}})
		if chosen, _, sent := probeAgain(t, r, link.probes(), link.log); chosen != "pcp" || sent != "pcp" {
			t.Errorf("with an outdated hint: %s, sent %s", chosen, sent)
		}
		if chosen, _, sent := probeAgain(t, r, link.probes()[:1], link.log); chosen != "natpmp" || sent != "natpmp" {
			t.Errorf("without the protocol of the hint: %s, sent %s", chosen, sent)
		}
	})
}

// TestMemoriesLimited checks that the gateways that were probed longest ago are forgotten.
func TestMemoriesLimited(t *testing.T) {
	r := NewRegistry(Jitter)
	key := func(i int) Key { return Key{Local: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})} }
	for i := range 2 * maxMemories {
		r.Suggest(key(i), []Hint{{Protocol: "pcp"}})
	}
	if n := len(r.memories); n != maxMemories {
		t.Errorf("%d memories", n)
	}
	if r.memories[key(maxMemories-1)] != nil || r.memories[key(maxMemories)] == nil {
		t.Error("the wrong gateways were forgotten")
	}
}
