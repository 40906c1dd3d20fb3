package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// ended is a context that has ended.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A Close that runs out of time while a request is under way gives the mapping
// up all the same: waiters wake, and the port can be had anew on other terms.
func TestCloseOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		gate := make(chan struct{})
		m.set(func() {
			m.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "renew" {
					<-gate
				}
				return nil
			}
		})
		go func() { _ = got.Refresh(context.Background()) }()
		synctest.Wait() // the request is under way
		waiting := got.Changed()
		if err := f.Disable(ended()); !errors.Is(err, context.Canceled) {
			t.Errorf("Disable: %v", err)
		}
		<-waiting
		<-got.Changed() // also when asked for after Close
		close(gate)
		synctest.Wait()
		if err := got.Close(); !errors.Is(err, context.Canceled) {
			t.Errorf("closing it again: %v, want what the first Close returned", err)
		}
		again, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute))
		if err != nil {
			t.Fatalf("on other terms: %v", err)
		}
		if err := again.Close(); err != nil || len(m.live()) != 0 {
			t.Errorf("Close: %v, the gateway has %v", err, m.live())
		}
	})
}

// What Once left for its lifetime is nobody's after it, nor after Close.
func TestOnceGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once()); err != nil {
			t.Errorf("an hour later: %v", err)
		}
		_ = f.Close()
		other := forwarder(t, forward.Config{}, m)
		defer other.Close()
		if _, err := other.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour)); err != nil {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A change that is refused, and whose undoing is refused too, is tried again.
func TestRefreshRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.fail = always(backends.ErrNoReply) })
		if err := got.Refresh(t.Context(), forward.External(9090)); !errors.Is(err, backends.ErrNoReply) || got.External().IsValid() {
			t.Errorf("Refresh: %v, %v", got, err)
		}
		m.set(func() { m.fail = nil })
		time.Sleep(time.Minute)
		if got.External().Port() != 8080 || len(m.live()) != 1 {
			t.Errorf("a minute later: %v, the gateway has %v", got, m.live())
		}
	})
}

// An exact port survives a change of the external address.
func TestExactRenewed(t *testing.T) {
	gw, f := start(t, forward.Config{Protocols: []string{"pcp"}}, gatewaytest.Config{})
	got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Exact())
	if err != nil {
		t.Fatal(err)
	}
	moved := netip.MustParseAddr("45.45.45.77")
	gw.SetExternal(moved)
	if err := got.Refresh(t.Context()); err != nil || got.External().AddrPort != netip.AddrPortFrom(moved, 8080) {
		t.Errorf("Refresh: %v, %v", got, err)
	}
}

// However this host is named, its port is one: closing one leaves the other.
func TestToThisHost(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	named, err := f.Enable(t.Context(), forward.To(netip.MustParseAddrPort("127.0.0.1:8080")))
	if err != nil {
		t.Fatal(err)
	}
	if err := named.Close(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Close: %v, the gateway has %v", err, gw.Table())
	}
}

// A watcher that tells of a change does not keep Close from ending.
func TestCloseWhileToldOfChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		for port := range uint16(100) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
				t.Fatal(err)
			}
		}
		go func() {
			for range 8 {
				m.changes <- backends.Change{Kind: backends.Restarted}
			}
		}()
		begun := time.Now()
		if err := f.Close(); err != nil || time.Since(begun) > 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(begun))
		}
	})
}

// Two Forwarders that know a gateway by other words share its mappings.
func TestSharedByOtherWords(t *testing.T) {
	gw, a := start(t, forward.Config{}, gatewaytest.Config{})
	b, err := forward.New(&forward.Config{
		Gateway: gw.Addr(), Source: netip.MustParseAddr("127.0.0.1"), Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := a.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	m, err := b.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Close of one: %v, the gateway has %v", err, gw.Table())
	}
}

// A library's mappings are not what a program's main takes away.
func TestAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		for _, opts := range [][]forward.Option{{forward.TCP(8080)}, {forward.TCP(9090), forward.NoDefault()}} {
			if _, err := f.Enable(t.Context(), opts...); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Disable(t.Context()); err != nil {
			t.Fatal(err)
		}
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
		for name, err := range map[string]error{"Disable": f.Disable(t.Context()), "Refresh": f.Refresh(t.Context())} {
			if !errors.Is(err, forward.ErrNoMapping) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := f.Disable(t.Context(), forward.TCP(0)); err != nil || len(m.live()) != 0 {
			t.Errorf("%v, the gateway has %v", err, m.live())
		}
	})
}

// What is closed before the answer that grants it is taken away after it, or is
// said to be left where none comes.
func TestCloseUnanswered(t *testing.T) {
	for name, test := range map[string]struct {
		answer time.Duration // 0: none
		took   time.Duration
		want   error
	}{
		"late": {time.Second, time.Second, nil},
		"none": {0, closeTimeout, backends.ErrNoReply},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				m.block = test.answer == 0
				m.fail = func(op string, _ backends.Protocol, _ uint16) error {
					if op == "map" {
						time.Sleep(test.answer)
					}
					return nil
				}
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // it is asked for
				begin := time.Now()
				if err := got.Close(); !errors.Is(err, test.want) {
					t.Errorf("Close: %v, want %v", err, test.want)
				}
				if took := time.Since(begin); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
				if live := m.live(); len(live) != 0 {
					t.Errorf("the gateway has %v", live)
				}
			})
		})
	}
}
