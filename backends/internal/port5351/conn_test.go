package port5351

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
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
		t.Error("Open with the zero Config succeeded")
	}
}

// TestOpenDefaults checks that port 0 means 5351, and that a mapped IPv4 address
// means the IPv4 address: all three Configs share one Conn.
func TestOpenDefaults(t *testing.T) {
	var all []*Conn
	for _, gateway := range []string{"192.0.2.1:5351", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"} {
		conn, err := Open(Config{Gateway: netip.MustParseAddrPort(gateway)})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if all = append(all, conn); conn != all[0] {
			t.Errorf("%s has a separate Conn", gateway)
		}
	}
}

// TestSharedConn checks that equal Configs share a Conn, and that only the last
// Close closes it.
func TestSharedConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, a := newConn(t, "192.0.2.1:5351")
		b := gw.open(t, a.config)
		if a != b {
			t.Fatal("two Conns for one Config")
		}
		result := make(chan error, 1)
		go func() {
			_, err := a.Do(t.Context(), echo("q", time.Minute))
			result <- err
		}()
		synctest.Wait()
		b.Close()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("the first Close ended a transaction: %v", err)
		default:
		}
		a.Close()
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", err)
		}
		if _, err := a.Do(t.Context(), echo("q", time.Minute)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v, want net.ErrClosed", err)
		}
		if len(conns.byConfig) != 0 {
			t.Errorf("still open: %v", conns.byConfig)
		}
	})
}

// TestDialOnce checks that concurrent requests share one socket. If it cannot be
// opened for the first request, the others do not fail with it.
func TestDialOnce(t *testing.T) {
	for name, test := range map[string]struct {
		first         error // result of the first dial
		dials, failed int
	}{"succeeds": {nil, 1, 0}, "fails": {syscall.ENETUNREACH, 2, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, conn := newConn(t, "192.0.2.1:5351")
				defer conn.Close()
				gw.onWrite = func(s *fakeSocket, b []byte) error { s.receive(slices.Clone(b)); return nil }
				dials, proceed := 0, make(chan struct{})
				conn.dial = func(ctx context.Context, config Config) (net.Conn, error) {
					if dials++; dials == 1 {
						<-proceed
						if test.first != nil {
							return nil, test.first
						}
					}
					return gw.dial(ctx, config)
				}
				results := make(chan error, 3)
				do := func(ctx context.Context) {
					e := echo("q", time.Second)
					e.Probe = true
					_, err := conn.Do(ctx, e)
					results <- err
				}
				ctx, cancel := context.WithCancel(t.Context())
				go do(t.Context())
				synctest.Wait()
				go do(ctx)
				synctest.Wait()
				cancel()
				if err := <-results; !errors.Is(err, context.Canceled) {
					t.Errorf("a request whose context was cancelled: %v", err)
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
				if dials != test.dials || len(gw.sockets) != 1 || failed != test.failed {
					t.Errorf("%d dials, %d sockets and %d failed requests; want %d, 1 and %d",
						dials, len(gw.sockets), failed, test.dials, test.failed)
				}
			})
		})
	}
}

// TestQueuePerGateway checks that two Conns to one gateway share a queue, and that
// another gateway has its own.
func TestQueuePerGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr := netip.MustParseAddrPort("192.0.2.1:5351")
		gw := &fakeGateway{started: time.Now()}
		a := gw.open(t, Config{Gateway: addr})
		b := gw.open(t, Config{Gateway: addr, Source: netip.MustParseAddr("192.0.2.11")})
		c := gw.open(t, Config{Gateway: netip.MustParseAddrPort("192.0.2.2:5351")})
		defer a.Close()
		defer b.Close()
		defer c.Close()
		for _, test := range []struct {
			conn    *Conn
			request string
		}{{a, "a"}, {b, "b"}, {c, "c"}} {
			go func() { _, _ = test.conn.Do(t.Context(), echo(test.request, time.Second)) }()
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		checkSent(t, gw, "a 0s", "c 0s", "b 1s")
	})
}

// TestMissingInterface checks that the error names an interface that does not exist.
func TestMissingInterface(t *testing.T) {
	sock, err := dialUDP(t.Context(), Config{Gateway: netip.MustParseAddrPort("127.0.0.1:5351"), Interface: "missing0"})
	if err == nil {
		sock.Close()
		t.Skip("this system does not bind sockets of this user to interfaces")
	}
	if !strings.Contains(err.Error(), `"missing0"`) {
		t.Errorf("the error does not name the interface: %v", err)
	}
}
