package labtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// verifyingProgram is a program with a Listener that is verified in the background by a prober. It
// sends its events.
var verifyingProgram = lab.Func("verifying", func(p *lab.Proc) {
	var name string
	p.Args(&name)
	f, err := forward.New(&forward.Config{
		CheckEvery: -1, Verify: []reach.Prober{reachProber(p, name)}, VerifyEvery: 10 * time.Second,
		OnEvent: func(e forward.Event) {
			p.Send(verifyingEvent{Kind: e.Kind.String(), Reason: e.Reason, Verdict: e.Result.Verdict.String()})
		},
	})
	if err != nil {
		p.Fatal(err)
	}
	ln, err := f.Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", reachPort))
	if err != nil {
		p.Fatal(err)
	}
	go p.Serve(ln)
	p.Receive(nil)
	if err := f.Close(); err != nil {
		p.Fatal(err)
	}
})

type verifyingEvent struct {
	Kind    string `json:"kind"`
	Reason  string `json:"reason"`
	Verdict string `json:"verdict"`
}

// TestReachRepair checks a mapping that is verified in the background. The router stops to
// forward it and still lists it: it is mapped again. In the long form, the provider then blocks
// the port, which no mapping can cure: that is reported.
func TestReachRepair(t *testing.T) {
	t.Parallel()
	for _, prober := range []string{"path", "reflector"} {
		t.Run(prober, func(t *testing.T) {
			t.Parallel()
			if prober == "path" {
				lab.Scenario(t, "reach: a mapping that the router lists and does not forward is mapped again")
			} else if !longChecks {
				t.Skip("GOFORWARD_CHECKS=all runs it")
			}
			testReachRepair(t, prober)
		})
	}
}

func testReachRepair(t *testing.T, prober string) {
	t.Helper()
	l := &reachLab{home: lab.Home(t, lab.Router{IPv6: true})}
	suppressAnnouncements(t, l.home)
	l.home.SecondUplink(t, lab.Uplink{})
	h := startHelpers(t, l.home, func(needed string) bool { return needed == prober })
	proc := l.home.Lan.Start(t, verifyingProgram, h.prober(reachCell{prober: prober}))
	want := func(kind forward.EventKind) {
		t.Helper()
		begin := time.Now()
		var e verifyingEvent
		proc.Expect(&e)
		t.Logf("after %.1f s: %s, %s: %s", time.Since(begin).Seconds(), e.Kind, e.Verdict, e.Reason)
		if e.Kind != kind.String() {
			t.Fatalf("event %s: %s, want %v", e.Kind, e.Reason, kind)
		}
	}
	want(forward.EventMapped)
	want(forward.EventVerified)
	l.home.Daemon.Forget(t)
	want(forward.EventVerified)
	wantRules(t, l.home, 1)
	if longChecks {
		providerBlocks(t, l)
		want(forward.EventUnreachable)
	}
	proc.Send("stop")
	proc.Wait()
	wantRules(t, l.home, 0)
}
