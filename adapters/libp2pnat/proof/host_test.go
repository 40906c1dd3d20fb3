// Package proof tests package libp2pnat with real libp2p hosts behind a real router in the
// lab. Peers outside connect to the addresses that a host announces.
package proof

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/natforward/goforward/adapters/libp2pnat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const (
	testTimeout  = 60 * time.Second // bounds the wait for an expected event
	pollInterval = 100 * time.Millisecond
	echoProtocol = "/goforward/echo/1"
)

// hostArgs are the arguments of a hostProgram.
type hostArgs struct {
	Listen       []string
	OwnForwarder bool // the NATManager creates its own Forwarder
}

// hostInfo is the first message of a hostProgram, after libp2p.New has returned.
type hostInfo struct {
	ID    peer.ID
	Addrs []string
	Took  time.Duration // by libp2p.New
}

// hostProgram runs a libp2p host behind the router. The test sends it commands: to report its
// addresses, to close the host, and to exit.
var hostProgram = lab.Func("host", func(p *lab.Proc) {
	var args hostArgs
	p.Args(&args)
	var f *forward.Forwarder
	if !args.OwnForwarder {
		f = newForwarder(p)
	}
	begin := time.Now()
	h, err := libp2p.New(
		libp2p.NATManager(libp2pnat.New(f)),
		libp2p.ListenAddrStrings(args.Listen...),
		libp2p.DisableRelay(), libp2p.DisableMetrics(),
	)
	if err != nil {
		p.Fatal(err)
	}
	h.SetStreamHandler(echoProtocol, echo)
	p.Send(hostInfo{h.ID(), addrStrings(h.Addrs()), time.Since(begin)})
	for {
		var command string
		p.Receive(&command)
		switch command {
		case "addrs":
			p.Send(addrStrings(h.Addrs()))
		case "close":
			if err := h.Close(); err != nil {
				p.Fatal(err)
			}
			p.Send("closed")
		case "exit":
			if f != nil {
				_ = f.Close()
			}
			return
		}
	}
})

// newForwarder returns a Forwarder that logs to stderr.
func newForwarder(p *lab.Proc) *forward.Forwarder {
	f, err := forward.New(&forward.Config{
		RequestTimeout: testTimeout,
		Logger:         slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		p.Fatal(err)
	}
	return f
}

// addrStrings returns the texts of addresses, sorted.
func addrStrings(addrs []ma.Multiaddr) []string {
	out := []string{}
	for _, a := range addrs {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

// echo reads once from a stream and sends the same bytes back.
func echo(s network.Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(testTimeout))
	buf := make([]byte, 64)
	n, err := s.Read(buf)
	if err != nil {
		_ = s.Reset()
		return
	}
	_, _ = s.Write(buf[:n])
}

// peerArgs are the arguments of a peerProgram: the host to connect to, its only address, and
// the bytes to send.
type peerArgs struct {
	ID    peer.ID
	Addr  string
	Bytes string
}

// peerResult is the result of a peerProgram: the bytes that it received, the remote address of
// the stream, and the error.
type peerResult struct {
	Bytes, RemoteAddr, Failure string
}

// peerProgram runs a peer outside that connects to the host for the first time. Each peer is a
// new process, so that it dials from ports for which the router has no connection tracking.
var peerProgram = lab.Func("peer", func(p *lab.Proc) {
	var args peerArgs
	p.Args(&args)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout/4)
	defer cancel()
	got, err := dialAndEcho(ctx, args)
	if err != nil {
		got.Failure = err.Error()
	}
	p.Send(got)
})

// dialAndEcho connects to a host, and sends bytes over a stream that the host echoes.
func dialAndEcho(ctx context.Context, args peerArgs) (peerResult, error) {
	addr, err := ma.NewMultiaddr(args.Addr)
	if err != nil {
		return peerResult{}, err
	}
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		return peerResult{}, err
	}
	defer h.Close()
	if err := h.Connect(ctx, peer.AddrInfo{ID: args.ID, Addrs: []ma.Multiaddr{addr}}); err != nil {
		return peerResult{}, err
	}
	s, err := h.NewStream(ctx, args.ID, echoProtocol)
	if err != nil {
		return peerResult{}, err
	}
	defer s.Close()
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline)
	if _, err := s.Write([]byte(args.Bytes)); err != nil {
		return peerResult{}, err
	}
	buf := make([]byte, len(args.Bytes))
	n, err := io.ReadFull(s, buf)
	return peerResult{Bytes: string(buf[:n]), RemoteAddr: s.Conn().RemoteMultiaddr().String()}, err
}

// allListenAddrs are the usual listen addresses of a host: one port for TCP, and the
// transports that share one port for UDP.
var allListenAddrs = []string{
	"/ip4/0.0.0.0/tcp/4001",
	"/ip4/0.0.0.0/udp/4001/quic-v1",
	"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport",
	"/ip4/0.0.0.0/udp/4001/webrtc-direct",
}

// tcpAndQUIC are the listen addresses for TCP and QUIC on one port.
var tcpAndQUIC = allListenAddrs[:2]

// host is the test's handle of a hostProgram.
type host struct {
	t    *testing.T
	home *lab.HomeNet
	proc *lab.Running
	info hostInfo
}

// start starts a hostProgram behind the router, and waits for its hostInfo.
func start(t *testing.T, home *lab.HomeNet, args hostArgs) *host {
	t.Helper()
	h := &host{t: t, home: home, proc: home.Lan.Start(t, hostProgram, args)}
	h.proc.Expect(&h.info)
	return h
}

// addrs returns the addresses that the host announces now.
func (h *host) addrs() []string {
	h.t.Helper()
	h.proc.Send("addrs")
	var out []string
	h.proc.Expect(&out)
	return out
}

// waitAnnounced waits until the host announces exactly one address with the prefix
// and the suffix, and returns it.
func (h *host) waitAnnounced(prefix, suffix string) string {
	h.t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	begin := time.Now()
	for {
		addrs := h.addrs()
		if found := matching(addrs, prefix, suffix); len(found) == 1 {
			return found[0]
		}
		if time.Since(begin) > testTimeout {
			h.t.Fatalf("the host announces %[3]q, want exactly one address %[1]s…%[2]s", prefix, suffix, addrs)
		}
		<-tick.C
	}
}

// matching returns the addresses with the prefix and the suffix. It ignores certificate
// hashes.
func matching(addrs []string, prefix, suffix string) []string {
	return slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		if !strings.HasPrefix(a, prefix) {
			return true
		}
		a, _, _ = strings.Cut(a, "/certhash/")
		return !strings.HasSuffix(a, suffix)
	})
}

// connectNewPeer starts a new peer outside that connects to an address and sends bytes.
func (h *host) connectNewPeer(addr, bytes string) peerResult {
	h.t.Helper()
	proc := h.home.Wan.Start(h.t, peerProgram, peerArgs{h.info.ID, addr, bytes})
	var got peerResult
	proc.Expect(&got)
	proc.Wait()
	return got
}

// wantReachable checks that a new peer outside receives its bytes back over an address.
func (h *host) wantReachable(addr string) {
	h.t.Helper()
	bytes := rand.Text()
	if got := h.connectNewPeer(addr, bytes); got.Bytes != bytes || !strings.HasPrefix(addr, got.RemoteAddr) || got.Failure != "" {
		h.t.Errorf("peer over %s: %+v, want %q", addr, got, bytes)
	}
}

// waitReachable starts new peers outside until one receives its bytes back over an address.
func (h *host) waitReachable(addr string) {
	h.t.Helper()
	begin := time.Now()
	for {
		bytes := rand.Text()
		got := h.connectNewPeer(addr, bytes)
		if got.Bytes == bytes {
			h.t.Logf("%s works again after %v", addr, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > testTimeout {
			h.t.Fatalf("peer over %s: %+v, want %q", addr, got, bytes)
		}
	}
}

// close closes the host, and checks the number of port mappings that remain on the router.
func (h *host) close(rules int) {
	h.t.Helper()
	h.proc.Send("close")
	h.proc.Expect(nil)
	wantRules(h.t, h.home, rules)
	h.proc.Send("exit")
	h.proc.Wait()
}

// wantRules checks the number of port mappings of the router.
func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := home.Rules(t); len(rules) != want {
		t.Errorf("the router has %d port mappings, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}
