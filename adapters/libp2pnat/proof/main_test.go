// Package proof has real libp2p hosts behind a real router: what the router
// forwards is proven by peers outside, who connect to what the host announces.
package proof

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
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
	patience = 60 * time.Second // bounds what must happen
	again    = 100 * time.Millisecond
	echoes   = "/goforward/echo/1"
)

// hostArgs say what the host at home is to do.
type hostArgs struct {
	Listen []string
	Own    bool // the NATManager has a Forwarder of its own
}

// hello is what the host tells when libp2p.New has returned.
type hello struct {
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
	if !args.Own {
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
	h.SetStreamHandler(echoes, echo)
	p.Send(hello{h.ID(), texts(h.Addrs()), time.Since(begin)})
	for {
		var order string
		p.Receive(&order)
		switch order {
		case "addrs":
			p.Send(texts(h.Addrs()))
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
		RequestTimeout: patience,
		Logger:         slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		p.Fatal(err)
	}
	return f
}

func texts(addrs []ma.Multiaddr) []string {
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
	_ = s.SetDeadline(time.Now().Add(patience))
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
type reply struct {
	Bytes, Over, Failure string
}

// peerProgram is a peer outside that has never met the host. It is a process of
// its own each time, so that it dials from ports that the router does not know.
var peerProgram = lab.Func("peer", func(p *lab.Proc) {
	var args peerArgs
	p.Args(&args)
	ctx, cancel := context.WithTimeout(context.Background(), patience/4)
	defer cancel()
	got, err := meet(ctx, args)
	if err != nil {
		got.Failure = err.Error()
	}
	p.Send(got)
})

func meet(ctx context.Context, args peerArgs) (reply, error) {
	addr, err := ma.NewMultiaddr(args.Addr)
	if err != nil {
		return reply{}, err
	}
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		return reply{}, err
	}
	defer h.Close()
	if err := h.Connect(ctx, peer.AddrInfo{ID: args.ID, Addrs: []ma.Multiaddr{addr}}); err != nil {
		return reply{}, err
	}
	s, err := h.NewStream(ctx, args.ID, echoes)
	if err != nil {
		return reply{}, err
	}
	defer s.Close()
	at, _ := ctx.Deadline()
	_ = s.SetDeadline(at)
	if _, err := s.Write([]byte(args.Bytes)); err != nil {
		return reply{}, err
	}
	buf := make([]byte, len(args.Bytes))
	n, err := io.ReadFull(s, buf)
	return reply{Bytes: string(buf[:n]), Over: s.Conn().RemoteMultiaddr().String()}, err
}
