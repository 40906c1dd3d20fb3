package forward_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

// A Forwarder is created while another one ends at the same gateway. It deletes what the
// other could not.
func TestBeginWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		second := beginEnabled(t, config, forward.TCP(9090))
		defer second.Close()
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// lingering is a backend whose Watch returns late.
type lingering struct{ *memory }

func (l lingering) Watch(ctx context.Context, notify func(backends.Change)) error {
	err := l.memory.Watch(ctx, notify)
	time.Sleep(time.Second)
	return err
}

// As TestBeginWhileAnotherEnds, with a gateway that tells mappings apart by their external
// ports. The second Forwarder maps the same internal port to another one.
func TestAnotherPortWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.name = upnp.Name
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		second := beginEnabled(t, config, forward.TCP(8080), forward.External(9090))
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].External.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// As TestBeginWhileAnotherEnds. The second Forwarder has the mapping of the first, by
// SamePort.
func TestSamePortWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		m.set(func() { m.taken[8079] = true })
		second := beginEnabled(t, config, forward.TCP(8079), forward.SamePort())
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// As TestBeginWhileAnotherEnds, with two ready-made backends, each of which another
// Forwarder takes over.
func TestTwoBeginWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newMemory(), newMemory()
		one.fail = func(_ string, _ backends.Protocol, wish uint16) error {
			if wish == 9090 {
				return backends.ErrNotAuthorized
			}
			return nil
		}
		backendOne, backendTwo := lingering{one}, lingering{two}
		first := beginEnabled(t, &forward.Config{Backends: []backends.Backend{backendOne, backendTwo}}, forward.TCP(8080))
		if _, err := first.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		if len(one.live()) != 1 || len(two.live()) != 1 {
			t.Fatalf("the gateways have %v and %v", one.live(), two.live())
		}
		for _, m := range []*memory{one, two} {
			m.set(func() { m.fail = answers(backends.ErrNoReply) })
		}
		ended := make(chan error)
		go func() { ended <- first.Close() }()
		time.Sleep(2500 * time.Millisecond) // the watches linger
		for _, m := range []*memory{one, two} {
			m.set(func() { m.fail = nil })
		}
		for _, b := range []backends.Backend{backendOne, backendTwo} {
			f := beginEnabled(t, &forward.Config{Backends: []backends.Backend{b}}, forward.TCP(7070))
			defer f.Close()
		}
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		for _, m := range []*memory{one, two} {
			if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 7070 {
				t.Errorf("a gateway has %v", live)
			}
		}
	})
}

// beginEnabled returns a Forwarder that has a mapping.
func beginEnabled(t *testing.T, config *forward.Config, opts ...forward.Option) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), opts...); err != nil {
		t.Fatal(err)
	}
	return f
}

// endUnanswered begins to end a Forwarder whose deletions get no reply.
func endUnanswered(t *testing.T, m *memory, config *forward.Config) (ended chan error) {
	t.Helper()
	f := beginEnabled(t, config, forward.TCP(8080))
	m.set(func() { m.fail = answers(backends.ErrNoReply) })
	ended = make(chan error)
	go func() { ended <- f.Close() }()
	synctest.Wait() // for the watch to end
	m.set(func() { m.fail = nil })
	return ended
}

// As TestBeginWhileAnotherEnds. The second Forwarder requests the same mapping, which the
// gateway refuses after the first one has ended.
func TestRefusedWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		m.set(func() {
			m.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "map" {
					time.Sleep(3 * time.Second)
				}
				return backends.ErrNotAuthorized
			}
		})
		second, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if _, err := second.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Error("Enable succeeded")
		}
		<-ended
		time.Sleep(time.Minute)
		m.set(func() { m.fail = nil })
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// As TestRefusedWhileAnotherEnds, with a request that gets no reply. What the first
// Forwarder knew of the mapping is kept: that it lasts forever, and that it can be deleted
// if the gateway refuses to grant it again.
func TestUnansweredWhileAnotherEnds(t *testing.T) {
	refusesMap := func(op string, _ backends.Protocol, _ uint16) error {
		if op == "map" {
			return backends.ErrNotAuthorized
		}
		return nil
	}
	for name, fail := range map[string]func(string, backends.Protocol, uint16) error{"forever": nil, "refused": refusesMap} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				config := &forward.Config{Backends: []backends.Backend{forever{lingering{m}}}}
				ended := endUnanswered(t, m, config)
				m.set(func() { m.fail = answers(backends.ErrNoReply) })
				second, err := forward.New(config)
				if err != nil {
					t.Fatal(err)
				}
				defer second.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if _, err := second.Enable(ctx, forward.TCP(8080), forward.Lifetime(2*time.Minute)); err == nil {
					t.Fatal("Enable succeeded")
				}
				<-ended
				time.Sleep(5 * time.Minute)
				m.set(func() { m.fail = fail })
				time.Sleep(5 * time.Minute)
				if live := m.live(); len(live) > 0 {
					t.Errorf("the gateway has %v", live)
				}
			})
		})
	}
}

// forever is a backend whose grants have no end.
type forever struct{ lingering }

func (f forever) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	r.Lifetime = backends.Forever
	return f.lingering.Map(ctx, r)
}

// Close reports what an ended Forwarder requested without a reply, if it is not deleted.
func TestCloseReportsInherited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		b := &unheard{memory: m}
		config := &forward.Config{Backends: []backends.Backend{b}}
		first, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Fatal("Enable succeeded")
		}
		m.set(func() { m.fail = silentAbout(8080) })
		if err := first.Close(); err == nil {
			t.Error("Close of the first Forwarder returned nil")
		}
		b.hears.Store(true)
		second := beginEnabled(t, config, forward.TCP(9090))
		time.Sleep(time.Minute)
		if err := second.Close(); err == nil {
			t.Errorf("Close of the second Forwarder returned nil, and the gateway has %v", m.live())
		}
	})
}
