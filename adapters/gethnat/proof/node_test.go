package proof

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience bounds what must happen.
const patience = 30 * time.Second

// nodeConfig says what kind of server a program runs.
type nodeConfig struct {
	Greeting  string // what it says to its peers
	Inside    bool   // behind the router: it maps its ports, and dials nobody
	Own       bool   // the NAT's Forwarder is its own
	Discovery bool
}

// call is what the test asks of a program, said is what that says: an answer, or
// that a peer came and greeted.
type (
	call struct{ Op, Node string }
	said struct {
		Op       string
		Failure  string
		Node     string // the enode URL of the server
		Endpoint netip.AddrPort
		UDP      uint16
		Peers    int
		Greeting string
		Inbound  bool
	}
)

// nodeProgram runs a go-ethereum server.
var nodeProgram = lab.Func("node", func(p *lab.Proc) {
	var config nodeConfig
	p.Args(&config)
	// The level at which it tells of mappings, and not of every datagram.
	log.SetDefault(log.NewLogger(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
	srv := newServer(p, config)
	if err := srv.Start(); err != nil {
		p.Fatal(err)
	}
	for {
		var c call
		p.Receive(&c)
		if c.Op == "exit" {
			return
		}
		p.Send(answer(srv, c))
	}
})

func newServer(p *lab.Proc, config nodeConfig) *p2p.Server {
	key, err := crypto.GenerateKey()
	if err != nil {
		p.Fatal(err)
	}
	srv := &p2p.Server{Config: p2p.Config{
		PrivateKey: key, Name: p.Host(), MaxPeers: 10, ListenAddr: ":30303", Protocols: []p2p.Protocol{greet(p, config.Greeting)},
		NoDial: config.Inside, NoDiscovery: !config.Discovery, DiscoveryV4: config.Discovery,
	}}
	if config.Inside {
		srv.NAT = newNAT(p, config.Own)
	}
	return srv
}

// newNAT is the NAT under test. One that has a Forwarder of its own gets to know
// the router before the server asks, which asks again only after minutes: a
// busy machine may take longer than the defaults wait.
func newNAT(p *lab.Proc, own bool) *gethnat.NAT {
	if !own {
		f, err := forward.New(&forward.Config{
			Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			p.Fatal(err)
		}
		return gethnat.New(f)
	}
	n := gethnat.New(nil)
	for range 5 {
		if _, err := n.ExternalIP(); err == nil {
			return n
		}
	}
	p.Fatal("there is no router")
	return nil
}

// greet is a protocol in which each side says one thing.
func greet(p *lab.Proc, greeting string) p2p.Protocol {
	return p2p.Protocol{Name: "greet", Version: 1, Length: 1, Run: func(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
		go func() { _ = p2p.Send(rw, 0, greeting) }() // ends with the peer
		msg, err := rw.ReadMsg()
		if err != nil {
			return err
		}
		var theirs string
		if err := msg.Decode(&theirs); err != nil {
			return err
		}
		p.Send(said{Op: "greeted", Greeting: theirs, Inbound: peer.Inbound()})
		_, err = rw.ReadMsg() // until the peer has gone
		return err
	}}
}

func answer(srv *p2p.Server, c call) said {
	var err error
	switch c.Op {
	case "self":
		self := srv.Self()
		endpoint := netip.AddrPortFrom(self.IPAddr(), uint16(self.TCP()))
		return said{Op: c.Op, Node: self.URLv4(), Endpoint: endpoint, UDP: uint16(self.UDP())}
	case "peers":
		return said{Op: c.Op, Peers: srv.PeerCount()}
	case "dial":
		err = withNode(c.Node, func(n *enode.Node) error { srv.AddPeer(n); return nil })
	case "ping":
		err = withNode(c.Node, ping(srv))
	case "stop":
		srv.Stop()
	default:
		err = fmt.Errorf("no such call: %q", c.Op)
	}
	if err != nil {
		return said{Op: c.Op, Failure: err.Error()}
	}
	return said{Op: c.Op}
}

func withNode(url string, do func(*enode.Node) error) error {
	n, err := enode.ParseV4(url)
	if err != nil {
		return err
	}
	return do(n)
}

// ping asks for a sign of life by the discovery protocol. Datagrams get lost on a
// machine that is busy, and the answer is waited for half a second only.
func ping(srv *p2p.Server) func(*enode.Node) error {
	return func(n *enode.Node) (err error) {
		for begin := time.Now(); time.Since(begin) < patience; {
			if _, err = srv.DiscoveryV4().Ping(n); err == nil {
				return nil
			}
		}
		return err
	}
}

// node is a server in a host, as the test sees it.
type node struct {
	t        *testing.T
	proc     *lab.Running
	greeting string
	greeted  []said // not asked for yet
}

func start(t *testing.T, host *lab.Host, config nodeConfig) *node {
	t.Helper()
	config.Greeting = host.Name() + " " + rand.Text()
	return &node{t: t, proc: host.Start(t, nodeProgram, config), greeting: config.Greeting}
}

// next is the next thing that the program says of this kind.
func (n *node) next(op string) said {
	n.t.Helper()
	for {
		var s said
		n.proc.Expect(&s)
		switch {
		case s.Failure != "":
			n.t.Fatalf("%s: %s", s.Op, s.Failure)
		case s.Op == op:
			return s
		case s.Op == "greeted":
			n.greeted = append(n.greeted, s)
		default:
			n.t.Fatalf("unexpected %+v", s)
		}
	}
}

func (n *node) ask(op, node string) said {
	n.t.Helper()
	n.proc.Send(call{Op: op, Node: node})
	return n.next(op)
}

// nextGreeting waits for a peer's.
func (n *node) nextGreeting() said {
	n.t.Helper()
	if len(n.greeted) == 0 {
		return n.next("greeted")
	}
	s := n.greeted[0]
	n.greeted = n.greeted[1:]
	return s
}

// exit ends the program.
func (n *node) exit() {
	n.t.Helper()
	n.proc.Send(call{Op: "exit"})
	n.proc.Wait()
}

// until waits for something to become so.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !done(); <-tick.C {
		if time.Since(begin) > patience {
			t.Fatalf("after %v: %s", patience, what)
		}
	}
}

func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := home.Rules(t); len(rules) != want {
		t.Errorf("the router has %d entries, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}

// learns waits until the router has that many entries and the server's own record
// has what is to be seen of them.
func (n *node) learns(home *lab.HomeNet, rules int, seen func(said) bool) said {
	n.t.Helper()
	until(n.t, "the router has too few entries", func() bool { return len(home.Rules(n.t)) >= rules })
	var self said
	until(n.t, "the server does not know how it is reached", func() bool {
		self = n.ask("self", "")
		return self.Endpoint.Addr() == home.External && seen(self)
	})
	return self
}

// connect makes a server outside a peer of one inside, by the URL of that, and
// wants both to hear the other.
func connect(t *testing.T, outside, inside *node, url string) {
	t.Helper()
	outside.ask("dial", url)
	if s := outside.nextGreeting(); s.Greeting != inside.greeting || s.Inbound {
		t.Errorf("heard outside: %+v, want %q", s, inside.greeting)
	}
	if s := inside.nextGreeting(); s.Greeting != outside.greeting || !s.Inbound {
		t.Errorf("heard inside: %+v, want %q", s, outside.greeting)
	}
	for _, n := range []*node{inside, outside} {
		if peers := n.ask("peers", "").Peers; peers != 1 {
			t.Errorf("%d peers, want 1", peers)
		}
	}
}
