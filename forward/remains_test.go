package forward_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/gateway"
)

// Close reports a deletion that the gateway refuses each time, also if a Close before it
// got no reply.
func TestCloseReportsRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		mapping := enable8080(t, f)
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		if err := mapping.Close(); !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close of the mapping: %v", err)
		}
		m.set(func() { m.fail = answers(backends.ErrNotAuthorized) })
		time.Sleep(time.Minute)
		if err := f.Close(); !errors.Is(err, backends.ErrNotAuthorized) {
			t.Errorf("Close returned %v, and the gateway has %v", err, m.live())
		}
	})
}

// A deletion that is refused is attempted once more. If that succeeds, nothing remains.
func TestRefusedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		enable8080(t, f)
		refusals := 0
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error {
				if refusals++; refusals == 1 {
					return backends.ErrNotAuthorized
				}
				return nil
			}
		})
		if err := f.Close(); err != nil || len(m.live()) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", err, m.live())
		}
	})
}

// answers makes every call fail.
func answers(err error) func(string, backends.Protocol, uint16) error {
	return func(string, backends.Protocol, uint16) error { return err }
}

// silentAbout makes calls about an external port get no reply.
func silentAbout(port uint16) func(string, backends.Protocol, uint16) error {
	return func(_ string, _ backends.Protocol, wish uint16) error {
		if wish == port {
			return backends.ErrNoReply
		}
		return nil
	}
}

// A request for a short time does not shorten how long a mapping may remain that got no
// reply before.
func TestNoReplyTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := &unheard{memory: m}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		enable := func(opts ...forward.Option) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := f.Enable(ctx, append(opts, forward.TCP(8080))...); err == nil {
				t.Fatal("Enable succeeded")
			}
		}
		enable(forward.Lifetime(time.Hour)) // is granted, and the reply is lost
		if len(m.live()) == 0 {
			t.Fatal("the gateway did not grant it")
		}
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		enable(forward.Lifetime(2 * time.Minute))
		m.set(func() { m.fail = answers(backends.ErrConflict) })
		enable(forward.Lifetime(3 * time.Minute))
		time.Sleep(20 * time.Minute)
		b.hears.Store(true)
		m.set(func() { m.fail = nil })
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}

// unheard is a gateway whose grants are lost on the way.
type unheard struct {
	*memory
	hears atomic.Bool
}

func (u *unheard) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return u.reply(u.memory.Map(ctx, r))
}

func (u *unheard) Renew(ctx context.Context, old backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return u.reply(u.memory.Renew(ctx, old, r))
}

func (u *unheard) reply(granted backends.Mapping, err error) (backends.Mapping, error) {
	if err == nil && !u.hears.Load() {
		return backends.Mapping{}, fmt.Errorf("%s: %w", u.name, backends.ErrNoReply)
	}
	return granted, err
}

// A deletion that gets no reply does not keep others from their turn.
func TestRetriesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		first := enable8080(t, f)
		second, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		for _, mapping := range []*forward.Mapping{first, second} {
			if err := mapping.Close(); err == nil {
				t.Error("Close returned nil")
			}
		}
		m.set(func() { m.fail = silentAbout(8080) })
		time.Sleep(5 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// A refused deletion of what may last longer than it was granted is not repeated without
// a pause.
func TestRefusalsPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		short, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		_ = short.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour)); err == nil {
			t.Fatal("Enable succeeded")
		}
		m.set(func() {
			m.fail = func(op string, _ backends.Protocol, _ uint16) error {
				time.Sleep(time.Millisecond)
				return backends.ErrNotAuthorized
			}
		})
		time.Sleep(3 * time.Minute)
		m.calls()
		time.Sleep(10 * time.Minute)
		if n := len(m.calls()); n > 40 {
			t.Errorf("%d requests in ten minutes", n)
		}
	})
}

// Close reports what ran out after renewals without a reply: the gateway may have it.
func TestCloseReportsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		enable8080(t, f)
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		time.Sleep(forward.DefaultLifetime + time.Minute)
		if err := f.Close(); !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("Close: %v", err)
		}
	})
}

// A renewal without a reply may have extended a mapping. Its deletion is retried as long.
func TestRenewalUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := &unheard{memory: m}
		b.hears.Store(true)
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		begun := time.Now()
		mapping, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		b.hears.Store(false)
		time.Sleep(115 * time.Second)
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		var remains *gateway.RemainsError
		if err := mapping.Close(); !errors.As(err, &remains) {
			t.Fatal("Close:", err)
		}
		live := m.live()
		if len(live) != 1 || remains.Until.Before(live[0].Expires()) {
			t.Fatalf("Close reported %v, and the gateway has %v", remains, live)
		}
		time.Sleep(time.Until(begun.Add(2*time.Minute + 10*time.Second)))
		m.set(func() { m.fail = nil })
		time.Sleep(30 * time.Second)
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}

// That a caller gives up a Refresh is no answer of the gateway: the mapping does not keep
// the error of the caller's context.
func TestRefreshGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		mapping := enable8080(t, f)
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error {
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
			t.Error("the mapping keeps", err)
		}
		m.set(func() { m.fail = nil })
		time.Sleep(time.Minute)
	})
}

// A deletion that was refused twice is retried soon if a request after it got no reply.
func TestRefusedThenUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := &unheard{memory: m}
		b.hears.Store(true)
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mapping := enable8080(t, f)
		m.set(func() { m.fail = answers(backends.ErrNotAuthorized) })
		if err := mapping.Close(); err == nil {
			t.Fatal("Close returned nil")
		}
		time.Sleep(time.Minute)
		m.set(func() { m.fail = nil })
		b.hears.Store(false)
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Fatal("Enable succeeded")
		}
		b.hears.Store(true)
		time.Sleep(time.Minute)
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway still has %v", live)
		}
	})
}
