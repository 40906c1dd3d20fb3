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
	"github.com/natforward/goforward/internal/errno"
)

// checkSent compares the transmissions, each formatted as "datagram time".
func checkSent(t *testing.T, gw *fakeGateway, want ...string) {
	t.Helper()
	var got []string
	for _, s := range gw.transmissions() {
		got = append(got, fmt.Sprint(s.datagram, " ", s.at))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
}

// TestRetransmission checks the schedule of RFC 6886, section 3.1, for a gateway
// that does not reply.
func TestRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		var waits []time.Duration
		for d := 250 * time.Millisecond; d <= 64*time.Second; d *= 2 {
			waits = append(waits, d)
		}
		_, err := conn.Do(t.Context(), echo("q", waits...))
		if !errors.Is(err, backends.ErrNoReply) {
			t.Errorf("error %v, want ErrNoReply", err)
		}
		checkSent(t, gw, "q 0s", "q 250ms", "q 750ms", "q 1.75s", "q 3.75s", "q 7.75s", "q 15.75s", "q 31.75s", "q 1m3.75s")
		if took := time.Since(gw.started); took != 127750*time.Millisecond {
			t.Errorf("failed after %v", took)
		}
	})
}

func TestReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			if len(gw.transmissions()) == 2 { // the first is lost
				s.receive([]byte("noise"))
				s.receive(make([]byte, maxDatagram+1))
				s.receive(slices.Clone(b))
			}
			return nil
		}
		r, err := conn.Do(t.Context(), echo("q", time.Second, time.Second))
		if err != nil || string(r.Datagram) != "q" {
			t.Fatalf("Do: %+v, %v", r, err)
		}
		if r.Local != netip.MustParseAddr("192.0.2.10") {
			t.Errorf("reply arrived at %v", r.Local)
		}
		if sent := r.Sent.Sub(gw.started); sent != time.Second {
			t.Errorf("sent at %v, want the time of the second transmission", sent)
		}
	})
}

// TestOneRequestAtATime checks that a request is not sent before the previous one
// is answered.
func TestOneRequestAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			time.AfterFunc(300*time.Millisecond, func() { s.receive(slices.Clone(b)) })
			return nil
		}
		for _, q := range []string{"a", "b", "c"} {
			go func() { _, _ = conn.Do(t.Context(), echo(q, time.Minute)) }()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		checkSent(t, gw, "a 0s", "b 300ms", "c 600ms")
	})
}

// TestUnansweredRequestDoesNotBlock checks that each transmission of an unanswered
// request delays other requests for at most one second, even if its own wait is
// longer. The late reply is still accepted.
func TestUnansweredRequestDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			delay := time.Duration(0)
			if string(b) == "slow" {
				delay = 10 * time.Second
			}
			time.AfterFunc(delay, func() { s.receive(slices.Clone(b)) })
			return nil
		}
		slow := make(chan error, 1)
		go func() {
			_, err := conn.Do(t.Context(), echo("slow", time.Minute))
			slow <- err
		}()
		synctest.Wait()
		if _, err := conn.Do(t.Context(), echo("quick", time.Second)); err != nil {
			t.Error(err)
		}
		checkSent(t, gw, "slow 0s", "quick 1s")
		if err := <-slow; err != nil || time.Since(gw.started) != 10*time.Second {
			t.Errorf("slow request: %v after %v", err, time.Since(gw.started))
		}
	})
}

func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			time.AfterFunc(100*time.Millisecond, func() { s.receive(slices.Clone(b)) })
			return nil
		}
		for _, test := range []struct {
			request  string
			priority ctxsync.Priority
		}{
			{"first", ctxsync.Check},
			{"check", ctxsync.Check},
			{"renewal", ctxsync.Renewal},
			{"deletion", ctxsync.Delete},
			{"urgent", ctxsync.Foreground},
			{"second urgent", ctxsync.Foreground},
		} {
			ctx := ctxsync.WithPriority(t.Context(), test.priority)
			go func() { _, _ = conn.Do(ctx, echo(test.request, time.Second)) }()
			synctest.Wait()
		}
		probe := echo("probe", time.Second)
		probe.Probe = true
		if _, err := conn.Do(t.Context(), probe); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		checkSent(t, gw, "first 0s", "probe 0s", "urgent 100ms", "second urgent 200ms", "deletion 300ms", "renewal 400ms", "check 500ms")
	})
}

// TestCancelledInQueue checks that a request that is cancelled in the queue does
// not block the next one.
func TestCancelledInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { _, _ = conn.Do(t.Context(), echo("dead", time.Second)) }()
		synctest.Wait()
		waiting := make(chan error, 1)
		go func() {
			_, err := conn.Do(ctx, echo("impatient", time.Second))
			waiting <- err
		}()
		synctest.Wait()
		cancel(cause)
		if err := <-waiting; !errors.Is(err, cause) {
			t.Errorf("error %v, want the context's cause", err)
		}
		_, _ = conn.Do(t.Context(), echo("next", time.Second))
		checkSent(t, gw, "dead 0s", "next 1s")
		if _, err := conn.Do(ctx, echo("never", time.Second)); !errors.Is(err, cause) {
			t.Errorf("with a cancelled context: %v", err)
		}
		if n := len(gw.transmissions()); n != 2 {
			t.Errorf("%d transmissions, want none with a cancelled context", n)
		}
	})
}

// TestRefused checks that an ICMP error ends the transaction that transmitted last,
// and no other.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		other := make(chan error, 1)
		go func() {
			_, err := conn.Do(t.Context(), echo("other", 5*time.Second))
			other <- err
		}()
		time.Sleep(2 * time.Second) // the other request now only waits for its reply
		gw.mu.Lock()
		gw.onWrite = func(s *fakeSocket, _ []byte) error {
			s.receive(&net.OpError{Op: "read", Err: syscall.ECONNREFUSED})
			return nil
		}
		gw.mu.Unlock()
		_, err := conn.Do(t.Context(), echo("q", time.Hour))
		if !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("error %v, want ErrNoReply and ECONNREFUSED", err)
		}
		if err := <-other; errors.Is(err, syscall.ECONNREFUSED) || time.Since(gw.started) != 5*time.Second {
			t.Errorf("the other request ended with %v after %v", err, time.Since(gw.started))
		}
	})
}

// TestBestMatch checks that a version error, which fits many requests, is delivered
// to the request that it matches best.
func TestBestMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		withMatch := func(request string, m Match) Transaction {
			e := echo(request, time.Second)
			e.Probe = true
			e.Match = func(b []byte) Match {
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
				_, err := conn.Do(t.Context(), withMatch(name, m))
				results[name] <- err
			}()
		}
		synctest.Wait()
		gw.sockets[0].receive([]byte("version"))
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
	dropped := &net.OpError{Op: "write", Err: syscall.EPERM}
	unreachable := &net.OpError{Op: "write", Err: syscall.ENETUNREACH}
	refused := &net.OpError{Op: "write", Err: syscall.ECONNREFUSED}
	for name, test := range map[string]struct {
		errs    []error // results of the writes, in order
		want    error
		sockets int
	}{
		"filtered locally":                {[]error{dropped, nil}, nil, 1},
		"an earlier datagram was refused": {[]error{refused, nil}, nil, 1},
		"address deleted":                 {[]error{unreachable, nil}, nil, 2},
		"network unreachable":             {[]error{unreachable, unreachable}, backends.ErrNoReply, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, conn := newConn(t, "192.0.2.1:5351")
				defer conn.Close()
				n := 0
				gw.onWrite = func(s *fakeSocket, b []byte) error {
					var err error
					if n < len(test.errs) {
						err = test.errs[n]
					}
					if n++; err == nil {
						s.receive(slices.Clone(b))
					}
					return err
				}
				_, err := conn.Do(t.Context(), echo("q", time.Second, time.Second))
				if !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if test.want != nil && !errors.Is(err, syscall.ENETUNREACH) {
					t.Errorf("error %v does not wrap ENETUNREACH", err)
				}
				if len(gw.sockets) != test.sockets {
					t.Errorf("%d sockets, want %d", len(gw.sockets), test.sockets)
				}
			})
		})
	}
}

// TestReaderFails checks that the next transmission opens a new socket after a read
// failed.
func TestReaderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			if len(gw.sockets) == 1 {
				s.receive(&net.OpError{Op: "read", Err: syscall.ENETDOWN})
			} else {
				s.receive(slices.Clone(b))
			}
			return nil
		}
		if _, err := conn.Do(t.Context(), echo("q", time.Second, time.Second)); err != nil {
			t.Error(err)
		}
		checkSent(t, gw, "q 0s", "q 1s")
	})
}

func TestDialFails(t *testing.T) {
	gw, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	gw.dialErr = syscall.ENETUNREACH
	if _, err := conn.Do(t.Context(), echo("q", time.Second)); !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("error %v", err)
	}
}

// TestCancelledDial checks that a request returns the cause of its context if the
// context is cancelled during the dial.
func TestCancelledDial(t *testing.T) {
	gw, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	gw.dialErr = context.Canceled
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	dial := conn.dial
	conn.dial = func(ctx context.Context, config Config) (net.Conn, error) {
		cancel(cause)
		return dial(ctx, config)
	}
	if _, err := conn.Do(ctx, echo("q", time.Second)); !errors.Is(err, cause) || errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Do: %v, want the context's cause", err)
	}
	if _, err := conn.Local(ctx); !errors.Is(err, cause) || errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Local: %v, want the context's cause", err)
	}
}

// TestEqualRequests checks that two equal requests in flight each receive a reply
// if both replies arrive together.
func TestEqualRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		request := echo("q", time.Second)
		request.Probe = true // without the queue, both are in flight at once
		first := make(chan error, 1)
		go func() {
			_, err := conn.Do(t.Context(), request)
			first <- err
		}()
		synctest.Wait()
		gw.mu.Lock()
		gw.onWrite = func(s *fakeSocket, b []byte) error {
			s.receive(slices.Clone(b))
			s.receive(slices.Clone(b))
			synctest.Wait() // both replies are read before Do of the second request continues
			return nil
		}
		gw.mu.Unlock()
		if _, err := conn.Do(t.Context(), request); err != nil {
			t.Errorf("second request: %v", err)
		}
		if err := <-first; err != nil {
			t.Errorf("first request, after two replies: %v", err)
		}
	})
}

// TestEndedRequest checks that a request that has ended receives no more datagrams:
// the watchers receive a late reply.
func TestEndedRequest(t *testing.T) {
	gw, conn := newConn(t, "192.0.2.1:5351")
	defer conn.Close()
	late := make(chan string, 1)
	watch, err := conn.Watch(WatchConfig{
		Announce:    netip.MustParseAddrPort("127.0.0.1:0"),
		Unsolicited: func(b []byte) string { late <- string(b); return "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	ctx, cancel := context.WithCancel(t.Context())
	gw.onWrite = func(s *fakeSocket, b []byte) error {
		if string(b) == "ended" {
			cancel()
			return nil
		}
		s.receive([]byte("ended"))
		s.receive(slices.Clone(b))
		return nil
	}
	if _, err := conn.Do(ctx, echo("ended", time.Minute)); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first request: %v, want context.Canceled", err)
	}
	if _, err := conn.Do(t.Context(), echo("next", time.Minute)); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	if len(late) != 1 || <-late != "ended" {
		t.Error("the watcher did not receive the late reply")
	}
}

// TestRepeat checks that a probe is repeated early once, when its context demands it, and that
// other requests are not.
func TestRepeat(t *testing.T) {
	for _, probe := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			gw, conn := newConn(t, "192.0.2.1:5351")
			defer conn.Close()
			repeat := make(chan struct{})
			reported := 0
			ctx := ctxsync.WithProbe(t.Context(), ctxsync.Probe{Repeat: repeat, Sent: func() { reported++ }})
			time.AfterFunc(5*time.Millisecond, func() { close(repeat) })
			tx := echo("request", time.Second, 2*time.Second)
			tx.Probe = probe
			if _, err := conn.Do(ctx, tx); !errors.Is(err, backends.ErrNoReply) {
				t.Errorf("Do: %v", err)
			}
			var at []time.Duration
			for _, sent := range gw.transmissions() {
				at = append(at, sent.at)
			}
			want := []time.Duration{0, time.Second}
			if probe {
				want = []time.Duration{0, 5 * time.Millisecond}
			}
			if !slices.Equal(at, want) {
				t.Errorf("probe %v: sent at %v, want %v", probe, at, want)
			}
			if reported != len(want) {
				t.Errorf("probe %v: %d transmissions were reported, want %d", probe, reported, len(want))
			}
		})
	}
}

// TestProbesRefused checks that one ICMP error ends all probes, and no other request.
func TestProbesRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, conn := newConn(t, "192.0.2.1:5351")
		defer conn.Close()
		do := func(tx Transaction) chan error {
			result := make(chan error, 1)
			go func() {
				_, err := conn.Do(t.Context(), tx)
				result <- err
			}()
			synctest.Wait()
			return result
		}
		request, probe := echo("request", time.Minute), echo("probe", time.Minute)
		probe.Probe = true
		other, first := do(request), do(probe)
		second := do(probe)
		gw.sockets[0].receive(errno.ECONNREFUSED)
		synctest.Wait()
		if len(first) != 1 || len(second) != 1 || len(other) != 0 {
			t.Fatalf("%d and %d probes and %d requests have ended", len(first), len(second), len(other))
		}
		if err := errors.Join(<-first, <-second); !errors.Is(err, errno.ECONNREFUSED) {
			t.Errorf("Do: %v", err)
		}
		gw.sockets[0].receive([]byte("request"))
		if err := <-other; err != nil {
			t.Errorf("Do: %v", err)
		}
	})
}
