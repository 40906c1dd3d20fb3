package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/lab"
)

const timeout = 30 * time.Second // for every wait of a test

func TestMain(m *testing.M) { lab.Main(m) }

// timeoutContext returns a context that limits a wait of a test.
func timeoutContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}

// lines is a writer that calls a function with each line that the example prints.
type lines func(line string)

func (f lines) Write(b []byte) (int, error) {
	f(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// exampleProgram runs the example as a process of the lab, and sends the line that the
// example prints.
var exampleProgram = lab.Func("example", func(p *lab.Proc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, lines(func(line string) { p.Send(line) })); !errors.Is(err, context.Canceled) {
		p.Fatal(err)
	}
})

// server is the information for clients in the line that the example prints.
type server struct {
	addr        netip.AddrPort
	fingerprint string
}

func parseLine(t *testing.T, line string) server {
	t.Helper()
	addr, fingerprint, _ := strings.Cut(line, " ")
	external, err := netip.ParseAddrPort(addr)
	if err != nil || len(fingerprint) != 2*sha256.Size {
		t.Fatalf("the example printed %q", line)
	}
	return server{external, fingerprint}
}

// dial connects to the server, and checks its certificate. The connection is closed when the
// test ends.
func dial(t *testing.T, pc net.PacketConn, to server, config *quic.Config) *quic.Conn {
	t.Helper()
	transport := &quic.Transport{Conn: pc}
	t.Cleanup(func() { _ = transport.Close(); _ = pc.Close() })
	conn, err := transport.Dial(timeoutContext(t), net.UDPAddrFromAddrPort(to.addr), &tls.Config{
		NextProtos: []string{"echo"}, InsecureSkipVerify: true, // no authority signs the certificate
		VerifyConnection: func(state tls.ConnectionState) error {
			if sum := sha256.Sum256(state.PeerCertificates[0].Raw); hex.EncodeToString(sum[:]) != to.fingerprint {
				return fmt.Errorf("certificate %x, want %s", sum, to.fingerprint)
			}
			return nil
		},
	}, config)
	if err != nil {
		t.Fatalf("dial %v: %v", to.addr, err)
	}
	return conn
}

// exchange sends more than a megabyte on a new stream, and checks that the same bytes are
// sent back.
func exchange(t *testing.T, conn *quic.Conn, seed byte) {
	t.Helper()
	content := make([]byte, 1<<20+12345)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	stream, err := conn.OpenStreamSync(timeoutContext(t))
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(timeout))
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := stream.Write(content); err != nil {
			t.Errorf("write: %v", err)
		}
		_ = stream.Close()
	})
	got, err := io.ReadAll(stream)
	writing.Wait()
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("received %d of %d bytes, equal: %v; %v", len(got), len(content), bytes.HasPrefix(content, got), err)
	}
}

// checkClosed checks that the server notifies the client when it closes the connection.
func checkClosed(t *testing.T, conn *quic.Conn) {
	t.Helper()
	select {
	case <-conn.Context().Done():
	case <-timeoutContext(t).Done():
		t.Fatal("the client was not notified that the server closed the connection")
	}
	closed, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context()))
	if !ok || !closed.Remote || closed.ErrorCode != 0 {
		t.Errorf("the connection was closed with %v", context.Cause(conn.Context()))
	}
}

// marks records whether the peer received the ECN marks of this side's packets and reported
// them (RFC 9000, section 13.4.2).
type marks struct{ arrived atomic.Bool }

func (m *marks) config() *quic.Config {
	return &quic.Config{Tracer: func(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return m }}
}

func (m *marks) AddProducer() qlogwriter.Recorder { return m }

func (m *marks) RecordEvent(e qlogwriter.Event) {
	if e, ok := e.(qlog.ECNStateUpdated); ok {
		m.arrived.Store(e.State == qlog.ECNStateCapable)
	}
}

func (m *marks) Close() error { return nil }

func TestServe(t *testing.T) {
	lab.Scenario(t, "quic: clients outside get back a megabyte each, and their ECN marks arrive")
	home := lab.Home(t, lab.Router{})
	example := home.Lan.Start(t, exampleProgram, nil)
	var line string
	example.Expect(&line)
	to := parseLine(t, line)
	if want := netip.AddrPortFrom(home.External, 4433); to.addr != want {
		t.Errorf("the external address is %v, want %v", to.addr, want)
	}
	var conns []*quic.Conn
	for i := range byte(2) {
		pc, err := home.Wan.ListenPacket("udp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		var sent marks
		conn := dial(t, pc, to, sent.config())
		exchange(t, conn, i)
		if !sent.arrived.Load() {
			t.Error("the server did not see the ECN marks of the client")
		}
		conns = append(conns, conn)
	}
	exchange(t, conns[0], 2) // the first connection still works beside the second
	example.Signal(os.Interrupt)
	example.Wait()
	for _, conn := range conns {
		checkClosed(t, conn)
	}
	if rules := home.Rules(t); len(rules) != 0 {
		t.Errorf("the router still has\n%s", strings.Join(rules, "\n"))
	}
}

// TestRun is TestServe without the lab, on a test gateway.
func TestRun(t *testing.T) {
	free, err := net.ListenPacket("udp4", ":4433")
	if err != nil {
		t.Skipf("EXAMPLE NOT TESTED: %v", err)
	}
	_ = free.Close()
	// The client has a virtual socket, about which quic-go logs a warning.
	t.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	if err := forward.Configure(config(gw)); err != nil {
		t.Fatal(err)
	}
	defer forward.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	printed, returned := make(chan string, 1), make(chan error, 1)
	go func() { returned <- run(ctx, lines(func(line string) { printed <- line })) }()
	var line string
	select {
	case line = <-printed:
	case err := <-returned:
		t.Fatal(err)
	case <-timeoutContext(t).Done():
		t.Fatal("no external address")
	}
	pc, err := gw.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, pc, parseLine(t, line), nil)
	exchange(t, conn, 0)
	cancel()
	checkClosed(t, conn)
	if err := <-returned; !errors.Is(err, context.Canceled) || len(gw.Table()) != 0 {
		t.Errorf("run: %v; the gateway has %v", err, gw.Table())
	}
}

// config returns the configuration of a Forwarder for a test gateway.
func config(gw *gatewaytest.Gateway) *forward.Config {
	return gw.Config()
}
