package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// errandCase is an errand whose attempts come to what the test says.
type errandCase struct {
	errand
	start time.Time
	mu    sync.Mutex
	log   []string
	end   context.CancelFunc
	ended chan struct{}
}

// startErrand starts it. It is for a bubble.
func startErrand(do func(ctx context.Context, port uint16) error) *errandCase {
	c := &errandCase{start: time.Now(), ended: make(chan struct{})}
	c.errand = errand{
		do: func(ctx context.Context, n notice) error {
			port := n.granted[0].External.Port()
			c.note("%d after %d", port, n.previous.Port())
			return do(ctx, port)
		},
		differ:  func(a, b backends.Mapping) bool { return a.External != b.External },
		outcome: func(o outcome) { c.note("%v, next %v", o.err, o.next.Sub(c.start)) },
		inbox:   make(chan []backends.Mapping, 1),
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	go func() {
		defer close(c.ended)
		c.run(ctx)
	}()
	return c
}

func (c *errandCase) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, fmt.Sprintf("%v: ", time.Since(c.start))+fmt.Sprintf(format, args...))
}

func (c *errandCase) tell(port uint16) {
	c.post([]backends.Mapping{{External: netip.AddrPortFrom(netip.Addr{}, port)}})
}

// want compares what happened since the last call.
func (c *errandCase) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !reflect.DeepEqual(c.log, want) {
		t.Errorf("got\n%q, want\n%q", c.log, want)
	}
	c.log = nil
}

func (c *errandCase) finish() {
	c.end()
	<-c.ended
}

var errErrand = errors.New("no")

// never is how an outcome without a next attempt shows.
func (c *errandCase) never() time.Duration { return time.Time{}.Sub(c.start) }

func TestErrand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startErrand(func(context.Context, uint16) error { return nil })
		c.tell(1)
		c.want(t, "0s: 1 after 0")
		c.tell(1)
		c.want(t)
		c.tell(2)
		c.want(t, "0s: 2 after 1")
		c.finish()
		c.want(t)
	})
}

func TestErrandFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		c := startErrand(func(_ context.Context, port uint16) error {
			if !works.Load() && port != 3 {
				return errErrand
			}
			return nil
		})
		c.tell(1)
		c.want(t, "0s: 1 after 0", "0s: no, next 1s")
		for _, tt := range []struct{ at, next string }{
			{"1s", "3s"}, {"3s", "7s"}, {"7s", "15s"}, {"15s", "31s"}, {"31s", "1m3s"}, {"1m3s", "2m3s"}, {"2m3s", "3m3s"}, {"3m3s", "4m3s"},
		} {
			at, err := time.ParseDuration(tt.at)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Until(c.start.Add(at)))
			c.want(t, tt.at+": 1 after 0", tt.at+": no, next "+tt.next)
		}
		c.tell(1) // it is on its way
		c.want(t)
		c.tell(2) // another begins anew
		c.want(t, "3m3s: 2 after 0", "3m3s: no, next 3m4s")
		c.tell(3)
		c.want(t, "3m3s: 3 after 0", "3m3s: <nil>, next "+c.never().String())
		time.Sleep(time.Hour)
		c.want(t) // nothing is left of the others
		c.tell(4)
		c.want(t, "1h3m3s: 4 after 3", "1h3m3s: no, next 1h3m4s")
		c.tell(3) // what had been done may be undone in part
		c.want(t, "1h3m3s: 3 after 3", "1h3m3s: <nil>, next "+c.never().String())
		c.tell(4)
		c.want(t, "1h3m3s: 4 after 3", "1h3m3s: no, next 1h3m4s")
		works.Store(true)
		time.Sleep(time.Second)
		c.want(t, "1h3m4s: 4 after 3", "1h3m4s: <nil>, next "+c.never().String())
		c.finish()
	})
}

// What comes while it is under way waits, the newest only.
func TestErrandNewest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan error)
		c := startErrand(func(context.Context, uint16) error { return <-goOn })
		c.tell(1)
		c.want(t, "0s: 1 after 0")
		c.tell(2)
		c.tell(3)
		c.want(t)
		goOn <- nil
		c.want(t, "0s: 3 after 1")
		c.tell(4)
		c.tell(3) // back where it was
		goOn <- nil
		c.want(t)
		c.tell(5)
		c.want(t, "0s: 5 after 3")
		c.tell(6)
		goOn <- errErrand // of 5, which is not tried again
		c.want(t, "0s: no, next 1s", "0s: 6 after 3")
		goOn <- nil
		time.Sleep(time.Minute)
		c.want(t, "0s: <nil>, next "+c.never().String())
		c.finish()
	})
}

// At the end, what is under way has a moment, and what waits is not begun.
func TestErrandEnds(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		takes time.Duration
		want  func(*errandCase) []string
	}{
		"in time": {time.Second, func(*errandCase) []string { return nil }},
		"too long": {time.Hour, func(c *errandCase) []string {
			return []string{"2s: " + errErrandEnds.Error() + ", next " + c.never().String()}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := startErrand(func(ctx context.Context, _ uint16) error {
					select {
					case <-time.After(tt.takes):
						return nil
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				})
				c.tell(1)
				c.want(t, "0s: 1 after 0")
				c.tell(2)
				c.finish()
				if took := time.Since(c.start); took != min(tt.takes, errandGrace) {
					t.Errorf("it took %v", took)
				}
				c.want(t, tt.want(c)...)
			})
		})
	}
}

// An endpoint that was superseded is not done: the next one is done even if it is the
// same.
func TestErrandSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done []uint16
		superseded := true
		e := &errand{
			do: func(_ context.Context, n notice) error {
				if superseded {
					superseded = false
					return errSuperseded
				}
				done = append(done, n.granted[0].External.Port())
				return nil
			},
			differ:  func(a, b backends.Mapping) bool { return a.External != b.External },
			outcome: func(o outcome) { t.Errorf("an outcome was reported: %v", o.err) },
			inbox:   make(chan []backends.Mapping, 1),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			e.run(ctx)
			close(ended)
		}()
		for range 3 {
			e.post([]backends.Mapping{{External: netip.MustParseAddrPort("45.45.45.1:80")}})
			synctest.Wait()
		}
		cancel()
		<-ended
		if !slices.Equal(done, []uint16{80}) {
			t.Errorf("done about %v, want once about port 80", done)
		}
	})
}
