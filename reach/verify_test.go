package reach

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/catch"
	"github.com/natforward/goforward/internal/ctxsync"
)

var testTarget = Target{
	Protocol: backends.TCP,
	External: netip.MustParseAddrPort("45.45.45.1:8080"),
	Internal: netip.MustParseAddrPort("192.168.77.2:8080"),
	Gateway:  netip.MustParseAddr("192.168.77.1"),
}

// stubCatcher is a Catcher whose properties a test sets.
type stubCatcher struct {
	catch.Queue
	owner   Owner
	blind   error
	visitAt time.Time
	visitor netip.AddrPort
}

func (c *stubCatcher) Owner() Owner                      { return c.owner }
func (c *stubCatcher) Observing() error                  { return c.blind }
func (c *stubCatcher) Send([]byte, netip.AddrPort) error { return errors.ErrUnsupported }
func (c *stubCatcher) Visited() (time.Time, netip.AddrPort) {
	return c.visitAt, c.visitor
}

// stubProber returns one of its results at each call, the last one repeatedly.
type stubProber struct {
	name    string
	results []Evidence
	errs    []error
	takes   time.Duration
	calls   int
	ended   error // the cause of the end of the context of the last call
}

func (p *stubProber) Name() string { return p.name }

func (p *stubProber) Probe(ctx context.Context, _ Target, _ Catcher) (Evidence, error) {
	i := min(p.calls, len(p.results)-1)
	p.calls++
	if err := ctxsync.Sleep(ctx, p.takes); err != nil {
		p.ended = err
		return Evidence{}, err
	}
	var err error
	if i < len(p.errs) {
		err = p.errs[i]
	}
	return p.results[i], err
}

var (
	internet = Evidence{Verdict: Reachable, Level: LevelInternet, Detail: "arrived"}
	lan      = Evidence{Verdict: Reachable, Level: LevelLAN, Detail: "arrived"}
	missed   = Evidence{Verdict: Unreachable, Level: LevelLAN, Detail: "missed"}
)

// TestVerifySamples checks which samples lead to which verdict, and how long that takes.
func TestVerifySamples(t *testing.T) {
	for name, tt := range map[string]struct {
		probers []*stubProber
		want    Verdict
		proven  Level
		calls   []int
		takes   time.Duration
	}{
		"one success":              {[]*stubProber{{results: []Evidence{internet}}}, Reachable, LevelInternet, []int{1}, 0},
		"a failure twice":          {[]*stubProber{{results: []Evidence{missed}}}, Unreachable, LevelListening, []int{2}, sampleInterval},
		"a failure once":           {[]*stubProber{{results: []Evidence{missed, lan}}}, Unknown, LevelLAN, []int{2}, sampleInterval},
		"a failure, then an error": {[]*stubProber{{results: []Evidence{missed, missed}, errs: []error{nil, errors.New("helper")}}}, Unknown, LevelListening, []int{2}, sampleInterval},
		"an error":                 {[]*stubProber{{results: []Evidence{missed}, errs: []error{errors.New("helper")}}}, Unknown, LevelListening, []int{1}, 0},
		"a proof beside a failure": {[]*stubProber{{results: []Evidence{missed}}, {results: []Evidence{internet}, takes: time.Second}}, Reachable, LevelInternet, []int{1, 1}, time.Second},
		"a proof ends the others":  {[]*stubProber{{results: []Evidence{missed}, takes: time.Hour}, {results: []Evidence{internet}}}, Reachable, LevelInternet, []int{1, 1}, 0},
		"an unknown level":         {[]*stubProber{{results: []Evidence{{Verdict: Reachable, Level: LevelInternet + 1}}}}, Unknown, LevelListening, []int{1}, 0},
		"an unknown verdict":       {[]*stubProber{{results: []Evidence{{Verdict: Unreachable + 1, Level: LevelInternet}}}}, Unknown, LevelListening, []int{1}, 0},
		"only the LAN":             {[]*stubProber{{results: []Evidence{lan}}}, Unknown, LevelLAN, []int{1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var probers []Prober
				for _, p := range tt.probers {
					probers = append(probers, p)
				}
				begun := time.Now()
				r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram}, probers...)
				if r.Verdict != tt.want || r.Proven != tt.proven || r.Reason == "" {
					t.Errorf("%v, proven %v, %q; want %v, %v", r.Verdict, r.Proven, r.Reason, tt.want, tt.proven)
				}
				for i, p := range tt.probers {
					if e := r.Evidence[i+1]; p.calls == 1 && e.Verdict == Unreachable {
						t.Errorf("prober %d was called once, and shows %v", i, e.Verdict)
					}
					if p.calls != tt.calls[i] {
						t.Errorf("prober %d was called %d times, want %d", i, p.calls, tt.calls[i])
					}
				}
				if took := time.Since(begun); took != tt.takes {
					t.Errorf("it took %v, want %v", took, tt.takes)
				}
			})
		})
	}
}

// TestVerifyCancelled checks that an end of the context in any phase never makes a port
// unreachable.
func TestVerifyCancelled(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, 3 * time.Second, 6 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			p := &stubProber{results: []Evidence{missed}, takes: 2 * time.Second}
			r := Verify(ctx, testTarget, &stubCatcher{owner: OwnerProgram}, p)
			if r.Verdict != Unknown {
				t.Errorf("cancelled after %v: %v", after, r.Verdict)
			}
		})
	}
}

// TestVerifyUnobserved checks that a missing arrival counts only if arrivals are observed.
func TestVerifyUnobserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram, blind: errors.New("not accepting")}, &stubProber{results: []Evidence{missed}})
		if r.Verdict != Unknown {
			t.Errorf("verdict %v, want unknown", r.Verdict)
		}
	})
}

// TestVerifyNotListening checks the verdict if a socket of this package stands for the program.
func TestVerifyNotListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerTemporary}, &stubProber{results: []Evidence{internet}})
		if r.Verdict != Unreachable || r.Proven != LevelInternet {
			t.Errorf("%v, proven %v, want unreachable, and that the path works", r.Verdict, r.Proven)
		}
	})
}

// TestVerifyAnswered checks that a missing program makes no port unreachable at which something
// answers: the table of sockets does not show containers.
func TestVerifyAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerTemporary}, &stubProber{results: []Evidence{{}}, errs: []error{fmt.Errorf("through eth1: %w", errAnswered)}})
		if r.Verdict != Unknown {
			t.Errorf("%v, %s, want unknown", r.Verdict, r.Reason)
		}
	})
}

// TestVerifyInferred checks that a measurement of another port proves nothing about this one.
func TestVerifyInferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, e := range []Evidence{
			{Verdict: Reachable, Level: LevelInternet, Inferred: true},
			{Verdict: Unreachable, Level: LevelLAN, Inferred: true},
		} {
			r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram}, &stubProber{results: []Evidence{e}})
			if r.Verdict != Unknown || r.Proven != LevelListening {
				t.Errorf("%v, proven %v, want unknown, listening", r.Verdict, r.Proven)
			}
		}
	})
}

// TestVerifyVisit checks which visits prove that the port is reachable.
func TestVerifyVisit(t *testing.T) {
	for name, tt := range map[string]struct {
		age  time.Duration
		from string
		want Verdict
	}{
		"recent":               {time.Minute, "8.8.8.8:5000", Reachable},
		"old":                  {visitAge + time.Second, "8.8.8.8:5000", Unknown},
		"of the LAN":           {time.Minute, "192.168.77.3:5000", Unknown},
		"of the router":        {time.Minute, "45.45.45.1:5000", Unknown},
		"of the other family":  {time.Minute, "[2a0c:7777:2::2]:5000", Unknown},
		"of a carrier's NAT":   {time.Minute, "100.64.0.2:5000", Unknown},
		"of the documentation": {time.Minute, "203.0.113.2:5000", Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &stubCatcher{owner: OwnerProgram, visitAt: time.Now().Add(-tt.age), visitor: netip.MustParseAddrPort(tt.from)}
				r := Verify(t.Context(), testTarget, c, &stubProber{results: []Evidence{lan}})
				if r.Verdict != tt.want {
					t.Errorf("verdict %v, want %v", r.Verdict, tt.want)
				}
			})
		})
	}
}

// TestVerifyAfterVisit checks that a visit does not hide that the port is no longer reachable, and
// that one during the measurement does.
func TestVerifyAfterVisit(t *testing.T) {
	for name, tt := range map[string]struct {
		at   time.Duration
		want Verdict
	}{"before": {-time.Minute, Unreachable}, "after": {sampleInterval + time.Second, Reachable}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &stubCatcher{owner: OwnerProgram, visitAt: time.Now().Add(tt.at), visitor: netip.MustParseAddrPort("8.8.8.8:5000")}
				p := &stubProber{results: []Evidence{missed}}
				slow := &stubProber{results: []Evidence{{Verdict: Unreachable, At: time.Now()}}}
				r := Verify(t.Context(), testTarget, c, p, slow)
				if r.Verdict != tt.want || p.calls != 2 {
					t.Errorf("%v after %d samples, want %v", r.Verdict, p.calls, tt.want)
				}
			})
		})
	}
}

// TestIsFromInternet checks the rule for IPv6: the hosts of a home have public addresses.
func TestIsFromInternet(t *testing.T) {
	target := Target{External: netip.MustParseAddrPort("[2a0c:7777:1::2]:80"), Internal: netip.MustParseAddrPort("[2a0c:7777:1::2]:80"), Gateway: netip.MustParseAddr("fe80::1%eth0")}
	for addr, want := range map[string]bool{
		"2a0c:7777:2::2":   true,
		"2a0c:7777:1::3":   false, // the same network
		"2a0c:7777:1:5::3": false, // the same site
		"2a0c:7777:1::2":   false,
		"fe80::2":          false,
		"fd00::2":          false,
		"2001:db8::1":      false,
		"8.8.8.8":          false,
	} {
		if got := target.IsFromInternet(netip.MustParseAddr(addr)); got != want {
			t.Errorf("IsFromInternet(%s) = %v", addr, got)
		}
	}
}

// TestMoreEvidence checks, with random evidence, that more evidence never makes a proven port
// unreachable, unless no program listens.
func TestMoreEvidence(t *testing.T) {
	for range 2000 {
		var all []Evidence
		for range rand.IntN(6) {
			all = append(all, Evidence{
				Method: "random", Detail: "a detail", Verdict: Verdict(rand.IntN(3)), Level: Level(rand.IntN(5)), Inferred: rand.IntN(4) == 0, Err: errors.New("no"),
			})
		}
		more := append(append([]Evidence{}, all...), Evidence{Method: "more", Detail: "a detail", Verdict: Verdict(rand.IntN(3)), Level: Level(rand.IntN(5))})
		before, after := conclude(testTarget, OwnerProgram, all), conclude(testTarget, OwnerProgram, more)
		if before.Verdict == Reachable && after.Verdict != Reachable {
			t.Fatalf("%v becomes %v by %+v", before.Verdict, after.Verdict, more[len(more)-1])
		}
		if after.Reason == "" {
			t.Fatal("no reason")
		}
	}
}

// TestCombine checks that the result of several ports is the worst of them.
func TestCombine(t *testing.T) {
	good, bad, unknown := Result{Verdict: Reachable, Proven: LevelInternet}, Result{Verdict: Unreachable, Proven: LevelNone}, Result{Verdict: Unknown, Proven: LevelLAN}
	for _, tt := range []struct {
		all    []Result
		want   Verdict
		proven Level
	}{
		{nil, Unknown, LevelNone},
		{[]Result{good}, Reachable, LevelInternet},
		{[]Result{good, good}, Reachable, LevelInternet},
		{[]Result{good, unknown}, Unknown, LevelLAN},
		{[]Result{unknown, bad, good}, Unreachable, LevelNone},
	} {
		if r := Combine(tt.all...); r.Verdict != tt.want || r.Proven != tt.proven {
			t.Errorf("Combine(%v) = %v, %v", tt.all, r.Verdict, r.Proven)
		}
	}
}

// panickingProber panics.
type panickingProber struct{ stubProber }

func (*panickingProber) Probe(context.Context, Target, Catcher) (Evidence, error) { panic("a defect") }

// TestVerifyDefects checks that a defect of a prober is only an unknown verdict.
func TestVerifyDefects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, p := range []Prober{nil, &panickingProber{}, Phone(nil), &stubProber{results: []Evidence{{Verdict: 77, Level: 99}}}} {
			r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram}, p)
			if r.Verdict != Unknown || r.Proven != LevelListening {
				t.Errorf("%T: %v, %v", p, r.Verdict, r.Proven)
			}
		}
	})
}

// TestVerifyDiverted checks that a missing program makes no port unreachable if a socket in its
// place received nothing: this host may forward the port to another one.
func TestVerifyDiverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerTemporary}, &stubProber{results: []Evidence{{}}, errs: []error{fmt.Errorf("no, or %w", errDiverted)}})
		if r.Verdict != Unknown {
			t.Errorf("%v, %s, want unknown", r.Verdict, r.Reason)
		}
	})
}

// TestVerifyVisitUnknownExternal checks that a visit proves only LevelRouter if the external
// address is not a public one: the visitor may then be the router in front, which forwards a
// connection of its own network with its own public address as the source.
func TestVerifyVisitUnknownExternal(t *testing.T) {
	for _, external := range []netip.Addr{{}, netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("100.64.0.2")} {
		synctest.Test(t, func(t *testing.T) {
			target := testTarget
			target.External = netip.AddrPortFrom(external, 8080)
			c := &stubCatcher{owner: OwnerProgram, visitAt: time.Now().Add(-time.Minute), visitor: netip.MustParseAddrPort("8.8.8.8:5000")}
			r := Verify(t.Context(), target, c, &stubProber{results: []Evidence{lan}})
			if r.Verdict != Unknown || r.Proven != LevelRouter {
				t.Errorf("external address %v: %v, proven %v", external, r.Verdict, r.Proven)
			}
		})
	}
}

// TestDialerUnobserved checks that nothing is sent to a port that is not observed.
func TestDialerUnobserved(t *testing.T) {
	blind := errors.New("busy")
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		target := Target{Protocol: p, External: netip.MustParseAddrPort("127.0.0.1:9")}
		if a := (dialer{}).try(t.Context(), target, &stubCatcher{owner: OwnerProgram, blind: blind}); !errors.Is(a.err, blind) || a.missing {
			t.Errorf("%v: %+v", p, a)
		}
	}
}

// TestVerifyExternal checks that the result has the endpoint at which the port was reached, and the
// one of the target if it was not, and what a measurement from the internet says if it proves nothing.
func TestVerifyExternal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		elsewhere := netip.MustParseAddrPort("45.45.45.9:8080")
		reached, unknown := internet, Evidence{Level: LevelInternet, External: elsewhere}
		reached.External = elsewhere
		for _, tt := range []struct {
			name     string
			evidence Evidence
			err      error
			want     netip.AddrPort
			reason   string
		}{
			{"reached elsewhere", reached, nil, elsewhere, "at 45.45.45.9:8080: "},
			{"reached", internet, nil, testTarget.External, "at 45.45.45.1:8080: "},
			{"unknown", unknown, errors.New("the helper is away"), testTarget.External, "was not proven: the helper is away"},
		} {
			r := Verify(t.Context(), testTarget, &stubCatcher{owner: OwnerProgram}, &stubProber{name: "helper", results: []Evidence{tt.evidence}, errs: []error{tt.err}})
			if r.External != tt.want || r.Evidence[1].External != tt.want || !strings.Contains(r.Reason, tt.reason) {
				t.Errorf("%s: %v, %v, %s", tt.name, r.External, r.Evidence[1].External, r.Reason)
			}
			if worst := Combine(Result{Verdict: Reachable, External: testTarget.Internal}, r); r.Verdict == Unknown && worst.External != tt.want {
				t.Errorf("%s: combined %v", tt.name, worst.External)
			}
		}
	})
}
