package labtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/catch"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// reachProgram has sockets that report to a Catcher, and measures reachability.
var reachProgram = lab.Func("reach", func(p *lab.Proc) {
	sockets, probers := map[string]*reachSocket{}, map[string]reach.Prober{}
	var listener *reachListener
	for {
		var c reachCall
		p.Receive(&c)
		switch c.Op {
		case "exit":
			return
		case "open":
			s, err := openReachSocket(c.Network, c.Address)
			if err != nil {
				p.Fatal(err)
			}
			sockets[c.Network] = s
			p.Send(reachReply{})
		case "trust": // this certificate
			if err := os.Setenv("SSL_CERT_FILE", c.Address); err != nil {
				p.Fatal(err)
			}
			p.Send(reachReply{})
		case "path":
			_ = os.Setenv("PATH", c.Address+":"+os.Getenv("PATH"))
			p.Send(reachReply{})
		case "received":
			p.Send(reachReply{Received: sockets[c.socket()].counts()})
		case "verify":
			var used []reach.Prober
			for _, name := range c.Probers {
				if probers[name] == nil { // probers remember the endpoints that they have reached
					probers[name] = reachProber(p, name)
				}
				used = append(used, probers[name])
			}
			p.Send(verifyOnce(c, sockets[c.socket()], used))
		case "listen":
			var err error
			if listener, err = listenForward(c.Network); err != nil {
				p.Fatal(err)
			}
			p.Send(reachReply{})
		case "verify mappings":
			p.Send(listener.verify(p, c))
		case "close":
			p.Send(reachReply{Reason: fmt.Sprint(listener.close())})
		default:
			p.Fatalf("no such call: %q", c.Op)
		}
	}
})

// programText is what the program sends to each peer whose connection or datagram the Catcher
// has not caught.
const programText = "program\n"

// reachCall is a call of reachProgram.
type reachCall struct {
	Op      string        `json:"op"`
	Network string        `json:"network"` // "tcp" or "udp"; for "open" as in package net; for "listen" a version of IP
	Address string        `json:"address,omitempty"`
	Target  reachTarget   `json:"target"`
	Probers []string      `json:"probers,omitempty"` // "router", "path:eth1", "reflector:URL", "stun:SERVER", "ssh:HOST", …, or "nothing"
	Visits  time.Time     `json:"visits"`            // the program reports its visits after this time
	Within  time.Duration `json:"within,omitempty"`
}

// socket returns the network of the socket for a call: "tcp", "udp4" or "udp6".
func (c reachCall) socket() string {
	switch {
	case c.Network == "tcp":
		return "tcp"
	case c.Target.Internal.Addr().Is4():
		return "udp4"
	}
	return "udp6"
}

// reachTarget is a reach.Target.
type reachTarget struct {
	External  netip.AddrPort `json:"external"`
	Port      uint16         `json:"port,omitempty"` // of External if its address is hidden
	Internal  netip.AddrPort `json:"internal"`
	Gateway   netip.Addr     `json:"gateway"`
	Interface string         `json:"interface"`
}

// reachReply is a reply of reachProgram.
type reachReply struct {
	URL      string             `json:"url,omitempty"` // open this; another reply follows
	Verdict  string             `json:"verdict,omitempty"`
	Proven   string             `json:"proven,omitempty"`
	External netip.AddrPort     `json:"external"`
	Reason   string             `json:"reason,omitempty"`
	Evidence []reachEvidence    `json:"evidence,omitempty"`
	Took     time.Duration      `json:"took,omitempty"`
	Received map[netip.Addr]int `json:"received,omitempty"` // what the program received, by source
	Mappings []reachReply       `json:"mappings,omitempty"` // the results of several mappings
}

// reachEvidence is a reach.Evidence.
type reachEvidence struct {
	Method   string         `json:"method"`
	Verdict  string         `json:"verdict"`
	Level    string         `json:"level"`
	Inferred bool           `json:"inferred"`
	From     netip.AddrPort `json:"from"`
	Detail   string         `json:"detail"`
}

// String returns the verdict, and the level that it proves.
func (e reachEvidence) String() string {
	s := e.Verdict
	if s == reach.Reachable.String() {
		s += " " + e.Level
	}
	if e.Inferred && s != reach.Unknown.String() {
		s += " (inferred)"
	}
	return s
}

// verifyOnce measures with these probers.
func verifyOnce(c reachCall, s *reachSocket, probers []reach.Prober) reachReply {
	ctx, cancel := context.WithTimeout(context.Background(), c.Within)
	defer cancel()
	protocol := backends.TCP
	if c.Network == "udp" {
		protocol = backends.UDP
	}
	t := reach.Target{
		Protocol: protocol, External: c.Target.External, Internal: c.Target.Internal,
		Gateway: c.Target.Gateway, Interface: c.Target.Interface,
	}
	if c.Target.Port != 0 {
		t.External = netip.AddrPortFrom(netip.Addr{}, c.Target.Port)
	}
	var catcher reach.Catcher
	if s != nil {
		catcher = measuredSocket{s, c.Visits}
	}
	begin := time.Now()
	r := reach.Verify(ctx, t, catcher, probers...)
	return toReachReply(r, time.Since(begin))
}

func toReachReply(r reach.Result, took time.Duration) reachReply {
	reply := reachReply{Verdict: r.Verdict.String(), Proven: r.Proven.String(), External: r.External, Reason: r.Reason, Took: took}
	for _, e := range r.Evidence {
		reply.Evidence = append(reply.Evidence, reachEvidence{
			Method: e.Method, Verdict: e.Verdict.String(), Level: e.Level.String(), Inferred: e.Inferred, From: e.From, Detail: e.Detail,
		})
	}
	return reply
}

func reachProber(p *lab.Proc, name string) reach.Prober {
	switch kind, argument, _ := strings.Cut(name, ":"); kind {
	case "nothing":
		return nothing{}
	case "router":
		return reach.Router()
	case "hairpin":
		return reach.Hairpin()
	case "path":
		return reach.Path(argument)
	case "reflector":
		return reach.Reflector(argument)
	case "stun":
		return reach.STUN(argument)
	case "ssh":
		return reach.SSH(argument)
	case "wait":
		return waiting{}
	case "phone":
		return reach.Phone(func(url string) { p.Send(reachReply{URL: url}) })
	}
	p.Fatalf("no such prober: %q", name)
	return nil
}

// nothing is a prober that measures nothing.
type nothing struct{}

func (nothing) Name() string { return "nothing" }

func (nothing) Probe(context.Context, reach.Target, reach.Catcher) (reach.Evidence, error) {
	return reach.Evidence{}, errors.ErrUnsupported
}

// waiting is a prober that waits for a nonce that no one knows, as if its helper had failed.
type waiting struct{}

func (waiting) Name() string { return "wait" }

func (waiting) Probe(ctx context.Context, t reach.Target, catcher reach.Catcher) (reach.Evidence, error) {
	e := reach.Evidence{Level: reach.LevelInternet}
	arrivals, stop := catcher.Expect(reach.Expectation{First: "GFWD1 " + rand.Text()[:22], From: t.IsFromInternet})
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	select {
	case a := <-arrivals:
		e.Verdict, e.From, e.At, e.Detail = reach.Reachable, a.From, a.At, "a nonce arrived from "+a.From.String()
		return e, nil
	case <-ctx.Done():
		return e, errors.New("nothing arrived")
	}
}

// reachSocket is a socket of the program. What is not caught gets programText as answer.
type reachSocket struct {
	queue    catch.Queue
	datagram net.PacketConn // for UDP

	mu        sync.Mutex
	received  map[netip.Addr]int // connections or datagrams, including those that were caught
	visited   time.Time
	visitedBy netip.AddrPort
}

// measuredSocket is the socket as a Catcher.
type measuredSocket struct {
	*reachSocket
	after time.Time // of the visits that it reports; the zero Time means none
}

func openReachSocket(network, address string) (*reachSocket, error) {
	s := &reachSocket{received: map[netip.Addr]int{}}
	if network != "tcp" {
		pc, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, err
		}
		s.datagram = pc
		go s.readDatagrams() // the process ends it
		return s, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	go s.accept(ln) // the process ends it
	return s, nil
}

func (s *reachSocket) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			from := unmapped(conn.RemoteAddr())
			s.count(from.Addr())
			if s.queue.Conn(context.Background(), conn.(*net.TCPConn)) {
				return
			}
			s.mu.Lock()
			s.visited, s.visitedBy = time.Now(), from
			s.mu.Unlock()
			_, _ = io.WriteString(conn, programText)
		}()
	}
}

func (s *reachSocket) readDatagrams() {
	buf := make([]byte, 64<<10)
	for {
		n, peer, err := s.datagram.ReadFrom(buf)
		if err != nil {
			return
		}
		s.count(unmapped(peer).Addr())
		answer, caught, _ := s.queue.Match(buf[:n], unmapped(peer))
		if !caught {
			answer = []byte(programText)
		}
		if len(answer) > 0 {
			_, _ = s.datagram.WriteTo(answer, peer)
		}
	}
}

func unmapped(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (s *reachSocket) count(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received[from]++
}

func (s *reachSocket) counts() map[netip.Addr]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[netip.Addr]int{}
	for from, n := range s.received {
		counts[from] = n
	}
	return counts
}

// Owner implements reach.Catcher.
func (s measuredSocket) Owner() reach.Owner { return reach.OwnerProgram }

// Expect implements reach.Catcher.
func (s measuredSocket) Expect(e reach.Expectation) (<-chan reach.Arrival, func()) {
	return s.queue.Expect(e)
}

// Observing implements reach.Catcher.
func (s measuredSocket) Observing() error { return nil }

// Send implements reach.Catcher.
func (s measuredSocket) Send(b []byte, to netip.AddrPort) error {
	if s.datagram == nil {
		return errors.ErrUnsupported
	}
	_, err := s.datagram.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}

// Visited implements reach.Catcher.
func (s measuredSocket) Visited() (time.Time, netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.after.IsZero() || !s.visited.After(s.after) {
		return time.Time{}, netip.AddrPort{}
	}
	return s.visited, s.visitedBy
}

// reachListener is what a program has that uses package forward alone: a Listener and a
// PacketConn.
type reachListener struct {
	forwarder *forward.Forwarder
	listener  *forward.Listener
	packets   *forward.PacketConn
}

// listenForward opens the sockets for one version of IP, "4" or "6", or for both with "".
func listenForward(version string) (l *reachListener, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), maxWait)
	defer cancel()
	l = &reachListener{}
	if l.forwarder, err = forward.New(&forward.Config{CheckEvery: -1}); err != nil {
		return nil, err
	}
	if l.listener, err = l.forwarder.Listen(ctx, "tcp"+version, fmt.Sprintf(":%d", reachPort)); err != nil {
		return nil, err
	}
	if l.packets, err = l.forwarder.ListenPacket(ctx, "udp"+version, fmt.Sprintf(":%d", reachPort)); err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.listener.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(maxWait))
			_, _ = io.WriteString(conn, programText)
			_, _ = io.Copy(io.Discard, conn) // unread bytes would reset the connection
			_ = conn.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			_, peer, err := l.packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.packets.WriteTo([]byte(programText), peer)
		}
	}()
	for _, m := range l.mappings() {
		if err := m.Wait(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *reachListener) mappings() []*forward.Mapping {
	return append(l.listener.Mappings(), l.packets.Mappings()...)
}

// verify verifies all mappings at the same time, by the default probers.
func (l *reachListener) verify(p *lab.Proc, c reachCall) reachReply {
	ctx, cancel := context.WithTimeout(context.Background(), c.Within)
	defer cancel()
	mappings := l.mappings()
	all := make([]reachReply, len(mappings))
	var running sync.WaitGroup
	for i, m := range mappings {
		running.Go(func() {
			begin := time.Now()
			r, err := m.Verify(ctx)
			if err != nil {
				p.Fatal(err)
			}
			all[i] = toReachReply(r, time.Since(begin))
		})
	}
	running.Wait()
	return reachReply{Mappings: all}
}

func (l *reachListener) close() error {
	return errors.Join(l.listener.Close(), l.packets.Close(), l.forwarder.Close())
}

// prober is a running reachProgram.
type prober struct {
	t    *testing.T
	proc *lab.Running
}

func startProber(t *testing.T, host *lab.Host) *prober {
	t.Helper()
	return &prober{t, host.Start(t, reachProgram, nil)}
}

// call makes a call and waits for its reply. open opens the URL of the prober Phone; it runs at
// the same time as the measurement.
func (p *prober) call(c reachCall, open func(url string)) reachReply {
	p.t.Helper()
	p.proc.Send(c)
	var opening sync.WaitGroup
	defer opening.Wait()
	for {
		var r reachReply
		p.proc.Expect(&r)
		if r.URL == "" {
			return r
		}
		opening.Go(func() { open(r.URL) })
	}
}

// openURL opens a URL from a host, in the same way as a browser, and checks the page.
func openURL(t *testing.T, host *lab.Host, address, path string, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return host.Dial(ctx, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	if err == nil && !strings.Contains(string(body), "Your connection arrived") {
		err = fmt.Errorf("another page: %q", body)
	}
	return err
}

// splitURL returns the address and the path of a URL.
func splitURL(t *testing.T, text string) (address, path string) {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	return u.Host, u.RequestURI()
}
