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

const patience = 30 * time.Second // bounds what must happen

func TestMain(m *testing.M) { lab.Main(m) }

// waiting bounds what a test waits for.
func waiting(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// lines calls a function with each line that the example prints.
type lines func(line string)

func (f lines) Write(b []byte) (int, error) {
	f(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// exampleProgram is the example, which sends the line that it prints.
var exampleProgram = lab.Func("example", func(p *lab.Proc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, lines(func(line string) { p.Send(line) })); !errors.Is(err, context.Canceled) {
		p.Fatal(err)
	}
})

// server is what a line of the example tells to clients.
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

// dial connects a socket to the server, if that has the right certificate, until the
// test ends.
func dial(t *testing.T, pc net.PacketConn, to server, config *quic.Config) *quic.Conn {
	t.Helper()
	transport := &quic.Transport{Conn: pc}
	t.Cleanup(func() { _ = transport.Close(); _ = pc.Close() })
	conn, err := transport.Dial(waiting(t), net.UDPAddrFromAddrPort(to.addr), &tls.Config{
		NextProtos: []string{"echo"}, InsecureSkipVerify: true, // nobody signs the certificate
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

// exchange sends more than a megabyte by a new stream, and wants the same bytes back.
func exchange(t *testing.T, conn *quic.Conn, seed byte) {
	t.Helper()
	content := make([]byte, 1<<20+12345)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	stream, err := conn.OpenStreamSync(waiting(t))
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SetDeadline(time.Now().Add(patience))
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
		t.Errorf("%d of %d bytes came back, the same ones: %v; %v", len(got), len(content), bytes.HasPrefix(content, got), err)
	}
}

// ended wants the server to tell the client that it ended.
func ended(t *testing.T, conn *quic.Conn) {
	t.Helper()
	select {
	case <-conn.Context().Done():
	case <-waiting(t).Done():
		t.Fatal("the client was not told that the server ended")
	}
	closed, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context()))
	if !ok || !closed.Remote || closed.ErrorCode != 0 {
		t.Errorf("the connection ended by %v", context.Cause(conn.Context()))
	}
}

// marks tells whether the peer got the ECN marks of this side's packets, and reported
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
	exchange(t, conns[0], 2) // the first goes on beside the second
	example.Signal(os.Interrupt)
	example.Wait()
	for _, conn := range conns {
		ended(t, conn)
	}
	if rules := home.Rules(t); len(rules) != 0 {
		t.Errorf("the router still has\n%s", strings.Join(rules, "\n"))
	}
}

// The same without the lab, on a gateway of the test's own.
func TestRun(t *testing.T) {
	free, err := net.ListenPacket("udp4", ":4433")
	if err != nil {
		t.Skipf("EXAMPLE NOT TESTED: %v", err)
	}
	_ = free.Close()
	// The client has a virtual socket, and quic-go warns of that.
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
	case <-waiting(t).Done():
		t.Fatal("no external address")
	}
	pc, err := gw.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, pc, parseLine(t, line), nil)
	exchange(t, conn, 0)
	cancel()
	ended(t, conn)
	if err := <-returned; !errors.Is(err, context.Canceled) || len(gw.Table()) != 0 {
		t.Errorf("run: %v; the gateway has %v", err, gw.Table())
	}
}

// config is for a Forwarder on a gateway of the test's own.
func config(gw *gatewaytest.Gateway) *forward.Config {
	return gw.Config()
}
