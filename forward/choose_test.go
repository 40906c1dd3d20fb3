package forward

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// named is a backend that is only chosen.
type named struct {
	backends.Backend
	name string
}

func (n *named) String() string { return n.name }

// answers is a probe that comes to err after a while; a negative while never.
type answers struct {
	after time.Duration
	err   error
}

// log is who was asked.
type log struct {
	mu    sync.Mutex
	names []string
}

func (l *log) add(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = append(l.names, name)
}

func (a answers) probe(asked *log, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		asked.add(name)
		if a.after < 0 {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		t := time.NewTimer(a.after)
		defer t.Stop()
		select {
		case <-t.C:
			return a.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Who is chosen of three, when, and who was asked for it.
func TestChoose(t *testing.T) {
	const ms = time.Millisecond
	yes := func(d time.Duration) answers { return answers{d, nil} }
	silent, refuses := answers{-1, nil}, answers{0, backends.ErrNoReply}
	for name, test := range map[string]struct {
		candidates []answers
		chosen     string // "": none
		after      time.Duration
		asked      string
		searched   bool // the last
	}{
		"the first at once":              {[]answers{yes(ms), yes(ms), yes(ms)}, "a", ms, "a", false},
		"the first, a little late":       {[]answers{yes(100 * ms), yes(ms), yes(ms)}, "a", 100 * ms, "a b c", false},
		"the first, too late":            {[]answers{yes(150 * ms), yes(ms), yes(ms)}, "b", 101 * ms, "a b c", false},
		"the first refuses":              {[]answers{refuses, yes(ms), yes(ms)}, "b", ms, "a b", false},
		"the first but refusing to map":  {[]answers{{ms, backends.ErrNotAuthorized}, yes(ms), yes(ms)}, "a", ms, "a", false},
		"the third alone":                {[]answers{refuses, refuses, yes(ms)}, "c", ms, "a b c", false},
		"the third, of silent ones":      {[]answers{silent, silent, yes(ms)}, "c", 151 * ms, "a b c", false},
		"the third, late":                {[]answers{silent, silent, yes(time.Second)}, "c", 1100 * ms, "a b c", false},
		"the second, later than a third": {[]answers{silent, yes(50 * ms), yes(ms)}, "b", 151 * ms, "a b c", false},
		"nobody":                         {[]answers{silent, silent, silent}, "", DefaultWait, "a b c", false},
		"all refuse":                     {[]answers{refuses, refuses, refuses}, "", 0, "a b c", false},
		"before a search begins":         {[]answers{yes(24 * ms), yes(ms), yes(ms)}, "a", 24 * ms, "a", true},
		"when a search has begun":        {[]answers{yes(26 * ms), yes(ms), yes(ms)}, "a", 26 * ms, "a c", true},
		"found by a search":              {[]answers{silent, silent, yes(ms)}, "c", 250 * ms, "a b c", true},
		"found by a search at once":      {[]answers{refuses, refuses, yes(ms)}, "c", ms, "a b c", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, err := New(nil)
				if err != nil {
					t.Fatal(err)
				}
				var asked log
				f.readyMade = &way{}
				for i, a := range test.candidates {
					name := string(rune('a' + i))
					f.readyMade.candidates = append(f.readyMade.candidates, &candidate{
						backend: &named{name: name}, probe: a.probe(&asked, name),
						opener: opener{searches: test.searched && i == len(test.candidates)-1},
					})
				}
				begin := time.Now()
				w, err := f.choose(t.Context(), ipv4)
				if took := time.Since(begin); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
				if (err == nil) != (test.chosen != "") || err != nil && !errors.Is(err, backends.ErrNoReply) {
					t.Fatalf("choose: %v", err)
				}
				if err == nil && f.speaking(w)[0].backend.String() != test.chosen {
					t.Errorf("chose %v, want %s", f.speaking(w)[0].backend, test.chosen)
				}
				synctest.Wait()
				slices.Sort(asked.names)
				if got := strings.Join(asked.names, " "); got != test.asked {
					t.Errorf("asked %s, want %s", got, test.asked)
				}
				_ = f.Close()
			})
		})
	}
}

// What a probe did not wait for is asked when it is needed, and once.
func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := New(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var asked log
		c := &candidate{backend: &named{name: "a"}, probe: answers{time.Second, backends.ErrMalformed}.probe(&asked, "a")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := f.ready(ctx, &way{}, c); !errors.Is(err, context.DeadlineExceeded) || c.verdict != unknown {
			t.Errorf("with a short deadline: %v, verdict %d", err, c.verdict)
		}
		for range 2 {
			if err := f.ready(t.Context(), &way{}, c); !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("ready: %v", err)
			}
		}
		if len(asked.names) != 2 {
			t.Errorf("asked %v", asked.names)
		}
	})
}

// A caller that gives up has learned nothing about those that had not answered.
func TestProbeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := New(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var asked log
		late := &candidate{backend: &named{name: "a"}, probe: answers{time.Second, nil}.probe(&asked, "a")}
		quick := &candidate{backend: &named{name: "b"}, probe: answers{time.Millisecond, nil}.probe(&asked, "b")}
		f.readyMade = &way{candidates: []*candidate{late, quick}}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		if _, err := f.choose(ctx, ipv4); err != nil {
			t.Errorf("choose: %v, although one had answered", err)
		}
		if late.verdict != unknown || quick.verdict != speaks {
			t.Errorf("verdicts %d and %d", late.verdict, quick.verdict)
		}
		if err := f.ready(t.Context(), f.readyMade, late); err != nil {
			t.Errorf("ready: %v", err)
		}
	})
}
