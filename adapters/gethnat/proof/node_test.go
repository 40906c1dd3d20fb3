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

// testTimeout bounds the wait for an expected event.
const testTimeout = 30 * time.Second

// nodeConfig configures the server of a nodeProgram.
type nodeConfig struct {
	Greeting     string // the greeting that it sends to its peers
	Inside       bool   // it is behind the router: it maps its ports and dials no peer
	OwnForwarder bool   // the NAT creates its own Forwarder
	Discovery    bool
}

// The test sends requests to a nodeProgram. A nodeProgram sends messages to the test: each is
// the response to a request, or the greeting of a new peer.
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
	// At this level, go-ethereum logs mappings, but not every datagram.
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

// newServer returns a server that is not started yet.
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

// newNAT returns the NAT under test. If it creates its own Forwarder, newNAT makes it discover
// the router before the server starts. On a busy machine, the discovery may take longer than
// the default timeouts, and the server would repeat its request only after minutes.
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
	p.Fatal("no reply from the router")
	return nil
}

// greetProtocol returns a protocol in which each side sends one greeting.
func greetProtocol(p *lab.Proc, greeting string) p2p.Protocol {
	return p2p.Protocol{Name: "greet", Version: 1, Length: 1, Run: func(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
		go func() { _ = p2p.Send(rw, 0, greeting) }() // ends with the peer
		msg, err := rw.ReadMsg()
		if err != nil {
			return err
		}
		var received string
		if err := msg.Decode(&received); err != nil {
			return err
		}
		p.Send(message{Op: "greeted", Greeting: received, Inbound: peer.Inbound()})
		_, err = rw.ReadMsg() // returns when the peer disconnects
		return err
	}}
}

// handle executes a request and returns the response.
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
		err = fmt.Errorf("unknown request %q", r.Op)
	}
	if err != nil {
		return message{Op: r.Op, Failure: err.Error()}
	}
	return message{Op: r.Op}
}

// withNode calls f with the node of an enode URL.
func withNode(url string, f func(*enode.Node) error) error {
	n, err := enode.ParseV4(url)
	if err != nil {
		return err
	}
	return f(n)
}

// ping returns a function that pings a node by the discovery protocol until it replies. It
// retries, because a busy machine may lose datagrams, and Ping waits only half a second.
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

// node is the test's handle of a nodeProgram.
type node struct {
	t        *testing.T
	proc     *lab.Running
	greeting string
	greeted  []message // greetings that nextGreeting has not returned yet
}

// start starts a nodeProgram on a host.
func start(t *testing.T, host *lab.Host, config nodeConfig) *node {
	t.Helper()
	config.Greeting = host.Name() + " " + rand.Text()
	return &node{t: t, proc: host.Start(t, nodeProgram, config), greeting: config.Greeting}
}

// receive returns the next message with this Op. It stores greetings for nextGreeting.
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

// request sends a request and returns the response.
func (n *node) request(op, node string) message {
	n.t.Helper()
	n.proc.Send(request{Op: op, Node: node})
	return n.receive(op)
}

// nextGreeting returns the next greeting of a peer.
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

// startWithDiscovery starts a server inside that listens on TCP and UDP, and waits until the
// router has a mapping for both, besides those that it has before. go-ethereum can lose one of
// them for ten minutes: if the external address and the first mapping are known before the
// second port is registered, its Server.portMappingLoop schedules the request for the second
// port, and then cancels that timer because it schedules the refresh of the first mapping too.
// In that case, another server is started.
func startWithDiscovery(t *testing.T, home *lab.HomeNet) *node {
	t.Helper()
	before := len(home.Rules(t))
	const attempts = 10
	for range attempts {
		n := start(t, home.Lan, nodeConfig{Inside: true, Discovery: true})
		if isSoon(mappingTimeout, func() bool { return len(home.Rules(t)) >= before+2 }) {
			return n
		}
		t.Log("go-ethereum did not request one of its mappings: another server is started")
		n.request("stop", "")
		n.exit()
	}
	t.Fatalf("%d servers did not map both ports", attempts)
	return nil
}

// mappingTimeout is how long a server has to map its ports. It takes milliseconds.
const mappingTimeout = 3 * time.Second

// waitUntil polls until done returns true. The failure message is what.
func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !isSoon(testTimeout, done) {
		t.Fatalf("after %v: %s", testTimeout, what)
	}
}

// isSoon polls until done returns true, or until the timeout.
func isSoon(timeout time.Duration, done func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !done(); <-tick.C {
		if time.Since(begin) > timeout {
			return false
		}
	}
	return true
}

// wantRules checks the number of port mappings of the router.
func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := home.Rules(t); len(rules) != want {
		t.Errorf("the router has %d port mappings, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}

// waitRecord waits until the router has that many port mappings, and until the server's node
// record has the external address and is complete.
func (n *node) waitRecord(home *lab.HomeNet, entries int, complete func(message) bool) message {
	n.t.Helper()
	waitUntil(n.t, "the router has too few port mappings", func() bool { return len(home.Rules(n.t)) >= entries })
	var self message
	waitUntil(n.t, "the node record of the server is not complete", func() bool {
		self = n.request("self", "")
		return self.Endpoint.Addr() == home.External && complete(self)
	})
	return self
}

// connect makes the server outside dial the URL of the server inside. It checks that each
// receives the greeting of the other.
func connect(t *testing.T, outside, inside *node, url string) {
	t.Helper()
	outside.request("dial", url)
	if m := outside.nextGreeting(); m.Greeting != inside.greeting || m.Inbound {
		t.Errorf("the server outside received %+v, want %q", m, inside.greeting)
	}
	if m := inside.nextGreeting(); m.Greeting != outside.greeting || !m.Inbound {
		t.Errorf("the server inside received %+v, want %q", m, outside.greeting)
	}
	for _, n := range []*node{inside, outside} {
		if peers := n.request("peers", "").Peers; peers != 1 {
			t.Errorf("%d peers, want 1", peers)
		}
	}
}
