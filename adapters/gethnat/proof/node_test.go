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
const testTimeout = 30 * time.Second

// nodeConfig says what kind of server a program runs.
type nodeConfig struct {
	Greeting     string // what it says to its peers
	Inside       bool   // behind the router: it maps its ports, and dials nobody
	OwnForwarder bool   // the NAT's Forwarder is its own
	Discovery    bool
}

// call is what the test asks of a program, said is what that says: an answer, or
// that a peer came and greeted.
type (
	request struct{ Op, Node string }
	message struct {
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
		var r request
		p.Receive(&r)
		if r.Op == "exit" {
			return
		}
		p.Send(handle(srv, r))
	}
})

func newServer(p *lab.Proc, config nodeConfig) *p2p.Server {
	key, err := crypto.GenerateKey()
	if err != nil {
		p.Fatal(err)
	}
	srv := &p2p.Server{Config: p2p.Config{
		PrivateKey: key, Name: p.Host(), MaxPeers: 10, ListenAddr: ":30303", Protocols: []p2p.Protocol{greetProtocol(p, config.Greeting)},
		NoDial: config.Inside, NoDiscovery: !config.Discovery, DiscoveryV4: config.Discovery,
	}}
	if config.Inside {
		srv.NAT = newNAT(p, config.OwnForwarder)
	}
	return srv
}

// newNAT is the NAT under test. One that has a Forwarder of its own gets to know
// the router before the server asks, which asks again only after minutes: a
// busy machine may take longer than the defaults wait.
func newNAT(p *lab.Proc, ownForwarder bool) *gethnat.NAT {
	if !ownForwarder {
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
func greetProtocol(p *lab.Proc, greeting string) p2p.Protocol {
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
		p.Send(message{Op: "greeted", Greeting: theirs, Inbound: peer.Inbound()})
		_, err = rw.ReadMsg() // until the peer has gone
		return err
	}}
}

func handle(srv *p2p.Server, r request) message {
	var err error
	switch r.Op {
	case "self":
		self := srv.Self()
		endpoint := netip.AddrPortFrom(self.IPAddr(), uint16(self.TCP()))
		return message{Op: r.Op, Node: self.URLv4(), Endpoint: endpoint, UDP: uint16(self.UDP())}
	case "peers":
		return message{Op: r.Op, Peers: srv.PeerCount()}
	case "dial":
		err = withNode(r.Node, func(n *enode.Node) error { srv.AddPeer(n); return nil })
	case "ping":
		err = withNode(r.Node, ping(srv))
	case "stop":
		srv.Stop()
	default:
		err = fmt.Errorf("no such call: %q", r.Op)
	}
	if err != nil {
		return message{Op: r.Op, Failure: err.Error()}
	}
	return message{Op: r.Op}
}

func withNode(url string, f func(*enode.Node) error) error {
	n, err := enode.ParseV4(url)
	if err != nil {
		return err
	}
	return f(n)
}

// ping asks for a sign of life by the discovery protocol. Datagrams get lost on a
// machine that is busy, and the answer is waited for half a second only.
func ping(srv *p2p.Server) func(*enode.Node) error {
	return func(n *enode.Node) (err error) {
		for begin := time.Now(); time.Since(begin) < testTimeout; {
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
	greeted  []message // not asked for yet
}

func start(t *testing.T, host *lab.Host, config nodeConfig) *node {
	t.Helper()
	config.Greeting = host.Name() + " " + rand.Text()
	return &node{t: t, proc: host.Start(t, nodeProgram, config), greeting: config.Greeting}
}

// next is the next thing that the program says of this kind.
func (n *node) receive(op string) message {
	n.t.Helper()
	for {
		var m message
		n.proc.Expect(&m)
		switch {
		case m.Failure != "":
			n.t.Fatalf("%s: %s", m.Op, m.Failure)
		case m.Op == op:
			return m
		case m.Op == "greeted":
			n.greeted = append(n.greeted, m)
		default:
			n.t.Fatalf("unexpected %+v", m)
		}
	}
}

func (n *node) request(op, node string) message {
	n.t.Helper()
	n.proc.Send(request{Op: op, Node: node})
	return n.receive(op)
}

// nextGreeting waits for a peer's.
func (n *node) nextGreeting() message {
	n.t.Helper()
	if len(n.greeted) == 0 {
		return n.receive("greeted")
	}
	m := n.greeted[0]
	n.greeted = n.greeted[1:]
	return m
}

// exit ends the program.
func (n *node) exit() {
	n.t.Helper()
	n.proc.Send(request{Op: "exit"})
	n.proc.Wait()
}

// until waits for something to become so.
func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !done(); <-tick.C {
		if time.Since(begin) > testTimeout {
			t.Fatalf("after %v: %s", testTimeout, what)
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
func (n *node) waitRecord(home *lab.HomeNet, entries int, complete func(message) bool) message {
	n.t.Helper()
	waitUntil(n.t, "the router has too few entries", func() bool { return len(home.Rules(n.t)) >= entries })
	var self message
	waitUntil(n.t, "the server does not know how it is reached", func() bool {
		self = n.request("self", "")
		return self.Endpoint.Addr() == home.External && complete(self)
	})
	return self
}

// connect makes a server outside a peer of one inside, by the URL of that, and
// wants both to hear the other.
func connect(t *testing.T, outside, inside *node, url string) {
	t.Helper()
	outside.request("dial", url)
	if m := outside.nextGreeting(); m.Greeting != inside.greeting || m.Inbound {
		t.Errorf("heard outside: %+v, want %q", m, inside.greeting)
	}
	if m := inside.nextGreeting(); m.Greeting != outside.greeting || !m.Inbound {
		t.Errorf("heard inside: %+v, want %q", m, outside.greeting)
	}
	for _, n := range []*node{inside, outside} {
		if peers := n.request("peers", "").Peers; peers != 1 {
			t.Errorf("%d peers, want 1", peers)
		}
	}
}
