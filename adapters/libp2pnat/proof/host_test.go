// Package proof has real libp2p hosts behind a real router: what the router
// forwards is proven by peers outside, who connect to what the host announces.
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
	testTimeout  = 60 * time.Second // bounds what must happen
	pollInterval = 100 * time.Millisecond
	echoProtocol = "/goforward/echo/1"
)

// hostArgs say what the host at home is to do.
type hostArgs struct {
	Listen       []string
	OwnForwarder bool // the NATManager has a Forwarder of its own
}

// hello is what the host tells when libp2p.New has returned.
type hostInfo struct {
	ID    peer.ID
	Addrs []string
	Took  time.Duration
}

// hostProgram is a libp2p host at home. It tells its addresses whenever it is
// asked to, and closes when told so.
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

func addrStrings(addrs []ma.Multiaddr) []string {
	out := []string{}
	for _, a := range addrs {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

// echo sends back what it is sent.
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

// peerArgs say whom a peer outside connects to, and by which address alone.
type peerArgs struct {
	ID    peer.ID
	Addr  string
	Bytes string
}

// reply is what came of it.
type peerResult struct {
	Bytes, RemoteAddr, Failure string
}

// peerProgram is a peer outside that has never met the host. It is a process of
// its own each time, so that it dials from ports that the router does not know.
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

// all is what a host at home usually listens on: one port for TCP and what shares
// UDP.
var allListenAddrs = []string{
	"/ip4/0.0.0.0/tcp/4001",
	"/ip4/0.0.0.0/udp/4001/quic-v1",
	"/ip4/0.0.0.0/udp/4001/quic-v1/webtransport",
	"/ip4/0.0.0.0/udp/4001/webrtc-direct",
}

// both are TCP and UDP on one port.
var tcpAndQUIC = allListenAddrs[:2]

// host is the host at home as the test sees it.
type host struct {
	t    *testing.T
	home *lab.HomeNet
	proc *lab.Running
	info hostInfo
}

func start(t *testing.T, home *lab.HomeNet, args hostArgs) *host {
	t.Helper()
	h := &host{t: t, home: home, proc: home.Lan.Start(t, hostProgram, args)}
	h.proc.Expect(&h.info)
	return h
}

func (h *host) addrs() []string {
	h.t.Helper()
	h.proc.Send("addrs")
	var out []string
	h.proc.Expect(&out)
	return out
}

// announces waits until the host announces exactly one address with the prefix
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
			h.t.Fatalf("the host announces no %s…%s, or several: %q", prefix, suffix, addrs)
		}
		<-tick.C
	}
}

func matching(addrs []string, prefix, suffix string) []string {
	return slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		if !strings.HasPrefix(a, prefix) {
			return true
		}
		a, _, _ = strings.Cut(a, "/certhash/")
		return !strings.HasSuffix(a, suffix)
	})
}

// meet has a new peer outside connect to an address.
func (h *host) connectNewPeer(addr, bytes string) peerResult {
	h.t.Helper()
	proc := h.home.Wan.Start(h.t, peerProgram, peerArgs{h.info.ID, addr, bytes})
	var got peerResult
	proc.Expect(&got)
	proc.Wait()
	return got
}

// reached wants a new peer outside to get its bytes back over an address.
func (h *host) wantReachable(addr string) {
	h.t.Helper()
	bytes := rand.Text()
	if got := h.connectNewPeer(addr, bytes); got.Bytes != bytes || !strings.HasPrefix(addr, got.RemoteAddr) || got.Failure != "" {
		h.t.Errorf("over %s: %+v, want %q", addr, got, bytes)
	}
}

// comesBack wants new peers outside to be served again, sooner or later.
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
			h.t.Fatalf("over %s: %+v, want %q", addr, got, bytes)
		}
	}
}

// close closes the host and wants the router to forward as much as it did before.
func (h *host) close(rules int) {
	h.t.Helper()
	h.proc.Send("close")
	h.proc.Expect(nil)
	wantRules(h.t, h.home, rules)
	h.proc.Send("exit")
	h.proc.Wait()
}

func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := home.Rules(t); len(rules) != want {
		t.Errorf("the router forwards %d ports, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}
