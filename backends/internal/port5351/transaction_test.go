package port5351

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// logged compares transmissions with "datagram at".
func logged(t *testing.T, w *wire, want ...string) {
	t.Helper()
	var got []string
	for _, s := range w.log() {
		got = append(got, fmt.Sprint(s.datagram, " ", s.at))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

// The transmissions of RFC 6886, section 3.1, to a silent gateway.
func TestRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		var waits []time.Duration
		for d := 250 * time.Millisecond; d <= 64*time.Second; d *= 2 {
			waits = append(waits, d)
		}
		_, err := l.Do(t.Context(), echoes("q", waits...))
		if !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("error %v, want ErrNoReply", err)
		}
		logged(t, w, "q 0s", "q 250ms", "q 750ms", "q 1.75s", "q 3.75s", "q 7.75s", "q 15.75s", "q 31.75s", "q 1m3.75s")
		if took := time.Since(w.begun); took != 127750*time.Millisecond {
			t.Errorf("gave up after %v", took)
		}
	})
}

func TestAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		w.onWrite = func(s *sock, b []byte) error {
			if len(w.log()) == 2 { // the first is lost
				s.say([]byte("noise"))
				s.say(make([]byte, maxDatagram+1))
				s.say(slices.Clone(b))
			}
			return nil
		}
		r, err := l.Do(t.Context(), echoes("q", time.Second, time.Second))
		if err != nil || string(r.Datagram) != "q" {
			t.Fatalf("Do: %+v, %v", r, err)
		}
		if r.Local != netip.MustParseAddr("192.0.2.10") {
			t.Errorf("answer came to %v", r.Local)
		}
		if sent := r.Sent.Sub(w.begun); sent != time.Second {
			t.Errorf("answered request sent at %v, want that of the second transmission", sent)
		}
	})
}

// One request at a time: the second waits for the answer to the first.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		w.onWrite = func(s *sock, b []byte) error {
			time.AfterFunc(300*time.Millisecond, func() { s.say(slices.Clone(b)) })
			return nil
		}
		for _, q := range []string{"a", "b", "c"} {
			go func() { _, _ = l.Do(t.Context(), echoes(q, time.Minute)) }()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		logged(t, w, "a 0s", "b 300ms", "c 600ms")
	})
}

// A request that nobody answers keeps the others waiting a second a
// transmission at most, however long its own waits are, and still takes its
// answer after that.
func TestDeadRequestBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		w.onWrite = func(s *sock, b []byte) error {
			delay := time.Duration(0)
			if string(b) == "slow" {
				delay = 10 * time.Second
			}
			time.AfterFunc(delay, func() { s.say(slices.Clone(b)) })
			return nil
		}
		slow := make(chan error, 1)
		go func() {
			_, err := l.Do(t.Context(), echoes("slow", time.Minute))
			slow <- err
		}()
		synctest.Wait()
		if _, err := l.Do(t.Context(), echoes("quick", time.Second)); err != nil {
			t.Error(err)
		}
		logged(t, w, "slow 0s", "quick 1s")
		if err := <-slow; err != nil || time.Since(w.begun) != 10*time.Second {
			t.Errorf("slow one: %v after %v", err, time.Since(w.begun))
		}
	})
}

func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		w.onWrite = func(s *sock, b []byte) error {
			time.AfterFunc(100*time.Millisecond, func() { s.say(slices.Clone(b)) })
			return nil
		}
		for _, e := range []struct {
			request  string
			priority ctxsync.Priority
		}{
			{"first", ctxsync.Check},
			{"check", ctxsync.Check},
			{"renewal", ctxsync.Renewal},
			{"deletion", ctxsync.Delete},
			{"urgent", ctxsync.Foreground},
			{"urgent too", ctxsync.Foreground},
		} {
			ctx := ctxsync.WithPriority(t.Context(), e.priority)
			go func() { _, _ = l.Do(ctx, echoes(e.request, time.Second)) }()
			synctest.Wait()
		}
		probe := echoes("probe", time.Second)
		probe.Probe = true
		if _, err := l.Do(t.Context(), probe); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		logged(t, w, "first 0s", "probe 0s", "urgent 100ms", "urgent too 200ms", "deletion 300ms", "renewal 400ms", "check 500ms")
	})
}

// Who gives up while waiting leaves the queue to the others.
func TestCancelledInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { _, _ = l.Do(t.Context(), echoes("dead", time.Second)) }()
		synctest.Wait()
		waiting := make(chan error, 1)
		go func() {
			_, err := l.Do(ctx, echoes("impatient", time.Second))
			waiting <- err
		}()
		synctest.Wait()
		cancel(cause)
		if err := <-waiting; !errors.Is(err, cause) {
			t.Errorf("error %v, want the context's cause", err)
		}
		_, _ = l.Do(t.Context(), echoes("next", time.Second))
		logged(t, w, "dead 0s", "next 1s")
		if _, err := l.Do(ctx, echoes("never", time.Second)); !errors.Is(err, cause) {
			t.Errorf("with an ended context: %v", err)
		}
		if n := len(w.log()); n != 2 {
			t.Errorf("%d transmissions, want none with an ended context", n)
		}
	})
}

// An ICMP error ends the exchange that transmitted last, and no other.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		other := make(chan error, 1)
		go func() {
			_, err := l.Do(t.Context(), echoes("other", 5*time.Second))
			other <- err
		}()
		time.Sleep(2 * time.Second) // the other only listens by now
		w.mu.Lock()
		w.onWrite = func(s *sock, _ []byte) error {
			s.say(&net.OpError{Op: "read", Err: syscall.ECONNREFUSED})
			return nil
		}
		w.mu.Unlock()
		_, err := l.Do(t.Context(), echoes("q", time.Hour))
		if !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("error %v, want ErrNoReply and ECONNREFUSED", err)
		}
		if err := <-other; errors.Is(err, syscall.ECONNREFUSED) || time.Since(w.begun) != 5*time.Second {
			t.Errorf("the other ended with %v after %v", err, time.Since(w.begun))
		}
	})
}

// A version error fits many requests: it goes to the one that it fits best.
func TestBestMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		judge := func(request string, m Match) Transaction {
			e := echoes(request, time.Second)
			e.Probe = true
			e.Answers = func(b []byte) Match {
				if string(b) == "version" {
					return m
				}
				return None
			}
			return e
		}
		results := map[string]chan error{}
		for name, m := range map[string]Match{"possible": Possible, "exact": Exact, "none": None} {
			results[name] = make(chan error, 1)
			go func() {
				_, err := l.Do(t.Context(), judge(name, m))
				results[name] <- err
			}()
		}
		synctest.Wait()
		w.socks[0].say([]byte("version"))
		if err := <-results["exact"]; err != nil {
			t.Errorf("exact: %v", err)
		}
		for _, name := range []string{"possible", "none"} {
			if err := <-results[name]; !errors.Is(err, backends.ErrNoReply) {
				t.Errorf("%s: %v, want ErrNoReply", name, err)
			}
		}
	})
}

func TestSocketFailures(t *testing.T) {
	lost := &net.OpError{Op: "write", Err: syscall.EPERM}
	gone := &net.OpError{Op: "write", Err: syscall.ENETUNREACH}
	refused := &net.OpError{Op: "write", Err: syscall.ECONNREFUSED}
	for name, test := range map[string]struct {
		errs  []error // of writes, in turn
		want  error
		socks int
	}{
		"filtered locally":           {[]error{lost, nil}, nil, 1},
		"an earlier one was refused": {[]error{refused, nil}, nil, 1},
		"address gone":               {[]error{gone, nil}, nil, 2},
		"network gone":               {[]error{gone, gone}, backends.ErrNoReply, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, l := newLink(t, "192.0.2.1:5351")
				defer l.Close()
				n := 0
				w.onWrite = func(s *sock, b []byte) error {
					var err error
					if n < len(test.errs) {
						err = test.errs[n]
					}
					if n++; err == nil {
						s.say(slices.Clone(b))
					}
					return err
				}
				_, err := l.Do(t.Context(), echoes("q", time.Second, time.Second))
				if !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if test.want != nil && !errors.Is(err, syscall.ENETUNREACH) {
					t.Errorf("error %v does not say why", err)
				}
				if len(w.socks) != test.socks {
					t.Errorf("%d sockets, want %d", len(w.socks), test.socks)
				}
			})
		})
	}
}

// A reader that fails is replaced at the next transmission.
func TestReaderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		w.onWrite = func(s *sock, b []byte) error {
			if len(w.socks) == 1 {
				s.say(&net.OpError{Op: "read", Err: syscall.ENETDOWN})
			} else {
				s.say(slices.Clone(b))
			}
			return nil
		}
		if _, err := l.Do(t.Context(), echoes("q", time.Second, time.Second)); err != nil {
			t.Error(err)
		}
		logged(t, w, "q 0s", "q 1s")
	})
}

func TestDialFails(t *testing.T) {
	w, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	w.dialErr = syscall.ENETUNREACH
	if _, err := l.Do(t.Context(), echoes("q", time.Second)); !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("error %v", err)
	}
}

// A context that ends while the socket is made ends the exchange with its cause.
func TestCancelledDial(t *testing.T) {
	w, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	w.dialErr = context.Canceled
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	dialled := l.dial
	l.dial = func(ctx context.Context, c Config) (net.Conn, error) {
		cancel(cause)
		return dialled(ctx, c)
	}
	if _, err := l.Do(ctx, echoes("q", time.Second)); !errors.Is(err, cause) || errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Do: %v, want the context's cause", err)
	}
	if _, err := l.Local(ctx); !errors.Is(err, cause) || errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Local: %v, want the context's cause", err)
	}
}

// Two requests in flight are equal, and their answers come one right after the
// other. Each request gets one of them.
func TestEqualRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, l := newLink(t, "192.0.2.1:5351")
		defer l.Close()
		request := echoes("q", time.Second)
		request.Probe = true // both are in flight at once
		first := make(chan error, 1)
		go func() {
			_, err := l.Do(t.Context(), request)
			first <- err
		}()
		synctest.Wait()
		w.mu.Lock()
		w.onWrite = func(s *sock, b []byte) error {
			s.say(slices.Clone(b))
			s.say(slices.Clone(b))
			synctest.Wait() // both are read before the second request's caller goes on
			return nil
		}
		w.mu.Unlock()
		if _, err := l.Do(t.Context(), request); err != nil {
			t.Errorf("second request: %v", err)
		}
		if err := <-first; err != nil {
			t.Errorf("first request, after two answers: %v", err)
		}
	})
}

// A request that has ended takes no more datagrams: what comes late is for the
// watchers.
func TestEndedRequest(t *testing.T) {
	w, l := newLink(t, "192.0.2.1:5351")
	defer l.Close()
	late := make(chan string, 1)
	watch, err := l.Watch(WatchConfig{
		Announce:    netip.MustParseAddrPort("127.0.0.1:0"),
		Unsolicited: func(b []byte) string { late <- string(b); return "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	ctx, cancel := context.WithCancel(t.Context())
	w.onWrite = func(s *sock, b []byte) error {
		if string(b) == "ended" {
			cancel()
			return nil
		}
		s.say([]byte("ended"))
		s.say(slices.Clone(b))
		return nil
	}
	if _, err := l.Do(ctx, echoes("ended", time.Minute)); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first request: %v, want context.Canceled", err)
	}
	if _, err := l.Do(t.Context(), echoes("next", time.Minute)); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	if len(late) != 1 || <-late != "ended" {
		t.Error("the late answer did not reach the watcher")
	}
}
