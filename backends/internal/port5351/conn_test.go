package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestOpenInvalid(t *testing.T) {
	for _, gateway := range []string{"0.0.0.0:5351", "[::]:5351"} {
		if _, err := Open(Config{Gateway: netip.MustParseAddrPort(gateway)}); err == nil {
			t.Errorf("Open(%s) succeeded", gateway)
		}
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("Open of nothing succeeded")
	}
}

// Port 0 is 5351, and a mapped IPv4 address is the IPv4 address: one gateway has one link.
func TestOpenDefaults(t *testing.T) {
	var all []*Conn
	for _, gateway := range []string{"192.0.2.1:5351", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"} {
		l, err := Open(Config{Gateway: netip.MustParseAddrPort(gateway)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if all = append(all, l); l != all[0] {
			t.Errorf("%s has a link of its own", gateway)
		}
	}
}

// Who opens the same way shares the link, and only the last Close ends it.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newLink(t, "192.0.2.1:5351")
		b := w.link(t, a.config)
		if a != b {
			t.Fatal("two links for one way")
		}
		result := make(chan error, 1)
		go func() {
			_, err := a.Do(t.Context(), echoes("q", time.Minute))
			result <- err
		}()
		synctest.Wait()
		b.Close()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("the first Close ended an exchange: %v", err)
		default:
		}
		a.Close()
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", err)
		}
		if _, err := a.Do(t.Context(), echoes("q", time.Minute)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v, want net.ErrClosed", err)
		}
		if len(links.byWay) != 0 {
			t.Errorf("left open: %v", links.byWay)
		}
	})
}

// Requests that come at once share one socket. If it cannot be made for the first of
// them, the others do not fail with it.
func TestDialOnce(t *testing.T) {
	for name, test := range map[string]struct {
		first         error // of the first attempt
		dials, failed int
	}{"made": {nil, 1, 0}, "fails": {syscall.ENETUNREACH, 2, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, l := newLink(t, "192.0.2.1:5351")
				defer l.Close()
				w.onWrite = func(s *sock, b []byte) error { s.say(slices.Clone(b)); return nil }
				dials, proceed := 0, make(chan struct{})
				l.dial = func(ctx context.Context, c Config) (net.Conn, error) {
					if dials++; dials == 1 {
						<-proceed
						if test.first != nil {
							return nil, test.first
						}
					}
					return w.dial(ctx, c)
				}
				results := make(chan error, 3)
				do := func(ctx context.Context) {
					e := echoes("q", time.Second)
					e.Probe = true
					_, err := l.Do(ctx, e)
					results <- err
				}
				ctx, cancel := context.WithCancel(t.Context())
				go do(t.Context())
				synctest.Wait()
				go do(ctx)
				synctest.Wait()
				cancel()
				if err := <-results; !errors.Is(err, context.Canceled) {
					t.Errorf("a request whose context ended: %v", err)
				}
				go do(t.Context())
				synctest.Wait()
				close(proceed)
				failed := 0
				for range 2 {
					if err := <-results; err != nil {
						failed++
					}
				}
				if dials != test.dials || len(w.socks) != 1 || failed != test.failed {
					t.Errorf("%d attempts, %d sockets and %d failed requests; want %d, 1 and %d",
						dials, len(w.socks), failed, test.dials, test.failed)
				}
			})
		})
	}
}

// Two ways to one gateway have one queue; two gateways have two.
func TestQueuePerGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := netip.MustParseAddrPort("192.0.2.1:5351")
		w := &wire{begun: time.Now()}
		a := w.link(t, Config{Gateway: gw})
		b := w.link(t, Config{Gateway: gw, Source: netip.MustParseAddr("192.0.2.11")})
		c := w.link(t, Config{Gateway: netip.MustParseAddrPort("192.0.2.2:5351")})
		defer a.Close()
		defer b.Close()
		defer c.Close()
		for _, try := range []struct {
			l *Conn
			q string
		}{{a, "a"}, {b, "b"}, {c, "c"}} {
			go func() { _, _ = try.l.Do(t.Context(), echoes(try.q, time.Second)) }()
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		logged(t, w, "a 0s", "c 0s", "b 1s")
	})
}
