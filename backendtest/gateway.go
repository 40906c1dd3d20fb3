package backendtest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// OnGateway returns the fixture of a backend that uses a gateway in this process.
// refusal is the protocol's result code for a refusal by policy.
func OnGateway(gw *gatewaytest.Gateway, b backends.Backend, refusal int) Fixture {
	return Fixture{
		Backend:  b,
		External: gw.External(),
		Table: func(*testing.T) []Row {
			var out []Row
			for _, e := range gw.Table() {
				out = append(out, Row{Protocol: e.Protocol, ExternalPort: e.External.Port(), InternalPort: e.Internal.Port()})
			}
			return out
		},
		Requests: func(*testing.T) int { return len(gw.Requests()) },
		Reaches:  func(t *testing.T, m backends.Mapping) bool { return echoesThrough(t, gw, m) },
		Occupy: func(t *testing.T, p backends.Protocol, port uint16) {
			if err := gw.AddMapping(gatewaytest.Entry{
				Protocol: p,
				Internal: netip.MustParseAddrPort("192.168.77.9:9"),
				External: netip.AddrPortFrom(gw.External(), port),
			}); err != nil {
				t.Fatal(err)
			}
		},
		Pass: func(_ *testing.T, d time.Duration) { gw.Advance(d) },
		Refuse: func(*testing.T) {
			gw.Inject(gatewaytest.Fault{
				Match:  func(r gatewaytest.Request) bool { return r.Op == "map" },
				Result: refusal,
			})
		},
		Restart: func(*testing.T) { gw.Restart(gatewaytest.RestartOptions{Silent: true}) },
		Silence: func(*testing.T) { gw.Inject(gatewaytest.Fault{Drop: true}) },
	}
}

// echoesThrough sends bytes from outside through a mapping to an echo server, and
// reports whether they return.
func echoesThrough(t *testing.T, gw *gatewaytest.Gateway, m backends.Mapping) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	defer echo(ctx, t, m.Protocol.String(), m.Internal.String())()
	conn, err := gw.Dial(ctx, m.Protocol.String(), m.External.String())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	sent := []byte("through")
	if _, err := conn.Write(sent); err != nil {
		return false
	}
	got := make([]byte, len(sent))
	_, err = io.ReadFull(conn, got)
	return err == nil && slices.Equal(got, sent)
}

// echo starts a server that echoes one TCP connection, or all datagrams.
func echo(ctx context.Context, t *testing.T, network, addr string) (stop func()) {
	t.Helper()
	var lc net.ListenConfig
	if network == backends.UDP.String() {
		pc := listenWhenFree(ctx, t, func() (net.PacketConn, error) { return lc.ListenPacket(ctx, network, addr) })
		return serveUntilClosed(pc, func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(buf[:n], from)
			}
		})
	}
	ln := listenWhenFree(ctx, t, func() (net.Listener, error) { return lc.Listen(ctx, network, addr) })
	return serveUntilClosed(ln, func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.Copy(conn, conn)
	})
}

// listenWhenFree listens on an address as soon as it is free. The suite may run for
// another package in parallel, in another process, and use the same address for
// short times.
func listenWhenFree[S io.Closer](ctx context.Context, t *testing.T, listen func() (S, error)) S {
	t.Helper()
	for {
		socket, err := listen()
		if err == nil {
			return socket
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// serveUntilClosed runs serve in a goroutine. The function that it returns closes
// the socket and waits for serve to return.
func serveUntilClosed(socket io.Closer, serve func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve()
	}()
	return func() {
		_ = socket.Close()
		<-done
	}
}
