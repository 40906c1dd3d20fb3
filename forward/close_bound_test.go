package forward_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

const (
	// closeTimeout bounds Close if the gateway does not answer.
	closeTimeout = 2 * time.Second
	// longestClose bounds Close if the gateway keeps answering.
	longestClose = 15 * time.Second
)

// Close on a gateway that does not answer takes two seconds at most. Its error names
// what the gateway keeps. This also holds if the backend ignores its context.
func TestCloseSilent(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *forward.Forwarder) (closes func() error, port uint16){
		"Mapping": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			return enable8080(t, f).Close, 8080
		},
		"Forwarder": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			enable8080(t, f)
			return f.Close, 8080
		},
		"Listener": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			ln := listen(t, f, "tcp4")
			return ln.Close, ln.External().Port()
		},
		"PacketConn": func(t *testing.T, f *forward.Forwarder) (func() error, uint16) {
			pc, err := f.ListenPacket(t.Context(), "udp4", ":0")
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // it is granted
			return pc.Close, pc.External().Port()
		},
	} {
		for suffix, ignore := range map[string]bool{"": false, ", the backend ignores contexts": true} {
			t.Run(name+suffix, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d, f := newDelayed(t, nil)
					closes, port := open(t, f)
					d.set(func() { d.answers, d.ignoreContext = 0, ignore })
					begin := time.Now()
					err := closes()
					if took := time.Since(begin); took > closeTimeout {
						t.Errorf("Close took %v, want at most %v", took, closeTimeout)
					}
					if err == nil || !strings.Contains(err.Error(), strconv.Itoa(int(port))) {
						t.Errorf("Close: %v, want an error that names port %d, which the gateway keeps", err, port)
					}
				})
			})
		}
	}
}

// Close takes no longer if the gateway has not answered the first request yet.
func TestCloseUngranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f := newDelayed(t, map[string]time.Duration{"map tcp": noAnswer})
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the request is in flight
		begin := time.Now()
		err = m.Close()
		if took := time.Since(begin); took > closeTimeout {
			t.Errorf("Close: %v after %v, want it to take at most %v", err, took, closeTimeout)
		}
	})
}

// The deletion that a silent gateway did not answer is retried after Close.
func TestCloseSilentRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newDelayed(t, nil)
		m := enable8080(t, f)
		d.set(func() { d.answers = 0 })
		begin := time.Now()
		if err := m.Close(); err == nil {
			t.Error("Close: nil, but the gateway keeps the mapping")
		}
		d.set(func() { d.answers = -1 })
		if took := time.Since(begin); took > closeTimeout {
			t.Errorf("Close took %v, want at most %v", took, closeTimeout)
		}
		time.Sleep(2 * time.Minute)
		if live := d.live(); len(live) > 0 {
			t.Errorf("two minutes after the gateway answers again it has %v, want nothing", live)
		}
	})
}

// Close of a Forwarder goes on as long as the gateway keeps answering, for fifteen
// seconds at most, and returns an error if something remains.
func TestCloseSlow(t *testing.T) {
	const each = 60 * time.Millisecond // per deletion
	for name, c := range map[string]struct {
		mappings, answers int
		longest           time.Duration
		left              int // at most
	}{
		"all are deleted":          {50, -1, 3 * 50 * each, 0},
		"the gateway falls silent": {50, 10, 10*each + closeTimeout, 40},
		"more than there is time":  {400, -1, longestClose, 400 - 200},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newDelayed(t, map[string]time.Duration{"unmap tcp": each})
				for i := range c.mappings {
					if _, err := f.Enable(t.Context(), forward.TCP(uint16(1024+i))); err != nil {
						t.Fatal(err)
					}
				}
				d.set(func() { d.answers = c.answers })
				begin := time.Now()
				err := f.Close()
				took, left := time.Since(begin), len(d.live())
				if left > c.left || took > c.longest {
					t.Errorf("after Close, which took %v, the gateway has %d of %d mappings, want at most %d after at most %v",
						took, left, c.mappings, c.left, c.longest)
				}
				if (err != nil) != (left > 0) {
					t.Errorf("Close: %v, but the gateway has %d mappings", err, left)
				}
			})
		})
	}
}

// Config.CloseTimeout bounds each Close if the gateway does not answer. A long one gives the
// attempts at the deletion more time than the default does.
func TestCloseTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{100 * time.Millisecond, 20 * time.Second} {
		for name, closes := range map[string]func(*forward.Forwarder, *forward.Mapping) error{
			"Forwarder": func(f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
			"Mapping":   func(_ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		} {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{CloseTimeout: timeout}, m)
				got, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				m.set(func() { m.block = true })
				begin := time.Now()
				err = closes(f, got)
				if took := time.Since(begin); !errors.Is(err, backends.ErrNoReply) || took > timeout || took < min(timeout, forward.DefaultCloseTimeout+time.Second) {
					t.Errorf("%s: %v after %v, with %v", name, err, took, timeout)
				}
				m.set(func() { m.block = false })
				_ = f.Close()
			})
		}
	}
}
