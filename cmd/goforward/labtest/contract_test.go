package labtest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"net/rpc"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/backendtest"
	"github.com/natforward/goforward/internal/lab"
)

// TestContract runs the backend contract tests on a real router. The backend runs in the
// home's host. The tests run in the test process, which can inspect the router. Remote
// procedure calls connect the two.
func TestContract(t *testing.T) {
	t.Parallel()
	for _, name := range []string{natpmp.Name, pcp.Name, upnp.Name} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, name+": the contract")
			testContract(t, name)
		})
	}
}

func testContract(t *testing.T, name string) {
	home := lab.Home(t, lab.Router{})
	other := home.Join("neighbour", "192.168.77.3/24")
	requestsOf := `iifname "lan0" ip saddr 192.168.77.2 udp dport 5351`
	if name == upnp.Name {
		requestsOf = `iifname "lan0" ip saddr 192.168.77.2 tcp dport 5000`
	}
	home.Router.Rule(t, "input", requestsOf+` counter comment "requests"`)
	proc := home.Lan.Start(t, backendProgram, backendArgs{name, netip.AddrPortFrom(home.Gateway, 0)})
	var addr netip.AddrPort
	proc.Expect(&addr)

	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		home.Daemon.Restart(t) // this empties the table
		conn, err := home.Lan.Dial(t.Context(), "tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		client := rpc.NewClient(conn)
		t.Cleanup(func() { _ = client.Close() })
		echoes := map[netip.AddrPort]map[backends.Protocol]lab.Echo{}
		return backendtest.Fixture{
			Backend:  &remoteBackend{name: name, client: client},
			External: home.External,
			Table:    func(t *testing.T) []backendtest.Row { return readTable(t, home) },
			Requests: func(t *testing.T) int { return countRequests(t, home) },
			Reaches: func(t *testing.T, m backends.Mapping) bool {
				byProtocol := echoes[m.Internal]
				if byProtocol == nil {
					byProtocol = map[backends.Protocol]lab.Echo{}
					echoes[m.Internal] = byProtocol
				}
				if _, has := byProtocol[m.Protocol]; !has {
					byProtocol[m.Protocol] = home.Lan.Echo(t, m.Protocol.String(), m.Internal.String())
				}
				for range 10 { // a busy machine may not reply within the short timeout
					if isReachable(t, home.Wan, byProtocol[m.Protocol], m.External) {
						return true
					}
				}
				return false
			},
			Occupy: func(t *testing.T, p backends.Protocol, port uint16) {
				mapByNatpmpc(t, home, other, p.String(), port)
			},
			Pass: func(t *testing.T, d time.Duration) {
				begin := time.Now()
				waitUntil(t, d+maxWait, "the wait takes too long", func() bool { return time.Since(begin) > d })
			},
			Silence: func(t *testing.T) {
				rule := home.Router.Rule(t, "input", requestsOf+` drop`)
				t.Cleanup(func() { rule.Remove(t) })
			},
		}
	})
}

var (
	entryPattern = regexp.MustCompile(`0x([0-9a-f]+) th dport (\d+) dnat ip to 192\.168\.77\.\d+:(\d+)`)
	requestCount = regexp.MustCompile(`counter packets (\d+) bytes \d+ comment "requests"`)
)

// readTable returns the router's entries.
func readTable(t *testing.T, home *lab.HomeNet) []backendtest.Row {
	t.Helper()
	var rows []backendtest.Row
	for _, rule := range home.Rules(t) {
		m := entryPattern.FindStringSubmatch(rule)
		if m == nil {
			t.Fatalf("a rule that is not an entry: %s", rule)
		}
		p, err := strconv.ParseUint(m[1], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, backendtest.Row{Protocol: backends.Protocol(p), ExternalPort: parsePort(t, m[2]), InternalPort: parsePort(t, m[3])})
	}
	return rows
}

func parsePort(t *testing.T, s string) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// countRequests returns how many requests the router has received.
func countRequests(t *testing.T, home *lab.HomeNet) int {
	t.Helper()
	m := requestCount.FindStringSubmatch(home.Router.Ruleset(t))
	if m == nil {
		t.Fatal("the router does not count requests")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// backendArgs selects a backend and its gateway.
type backendArgs struct {
	Name    string
	Gateway netip.AddrPort
}

func (a backendArgs) open() (backends.Backend, error) {
	const transmissions, firstWait = 2, 500 * time.Millisecond
	switch a.Name {
	case upnp.Name:
		const wait = 1500 * time.Millisecond // devices may take a second to respond to a search
		return upnp.New(upnp.Config{Gateway: a.Gateway.Addr(), Wait: wait, Timeout: wait})
	case pcp.Name:
		return pcp.New(pcp.Config{Gateway: a.Gateway, Transmissions: transmissions, FirstWait: firstWait})
	}
	return natpmp.New(natpmp.Config{Gateway: a.Gateway, Transmissions: transmissions, FirstWait: firstWait})
}

// backendProgram serves a backend. Each connection gets a new one.
var backendProgram = lab.Func("backend", func(p *lab.Proc) {
	var args backendArgs
	p.Args(&args)
	ln, err := net.Listen("tcp", netip.AddrPortFrom(p.Addr(), 0).String())
	if err != nil {
		p.Fatal(err)
	}
	p.Send(ln.Addr().String())
	for {
		conn, err := ln.Accept()
		if err != nil {
			p.Fatal(err)
		}
		b, err := args.open()
		if err != nil {
			p.Fatal(err)
		}
		s := rpc.NewServer()
		if err := s.RegisterName("Backend", &BackendService{backend: b, cancels: map[uint64]context.CancelFunc{}}); err != nil {
			p.Fatal(err)
		}
		go s.ServeConn(conn)
	}
})

// BackendCall and BackendReply are the messages. They are exported because package rpc
// requires it.
type (
	BackendCall struct {
		ID       uint64
		Deadline time.Time // the deadline of the caller's context
		Canceled bool      // the context was cancelled before the call
		Request  backends.Request
		Mapping  gobMapping
	}
	BackendReply struct {
		Addr    netip.Addr
		Mapping gobMapping
		Failed  bool
		Failure failure
	}
)

// gobMapping is a Mapping for package gob, which cannot encode a Token.
type gobMapping struct{ backends.Mapping }

// mappingFields replaces the Token, which hides its bytes, by the bytes. It replaces the
// Protocol by its number, which may be 0, because a Protocol cannot be decoded from 0.
type mappingFields struct {
	backends.Mapping
	Protocol uint8
	Token    []byte
}

func (m gobMapping) GobEncode() ([]byte, error) {
	return json.Marshal(mappingFields{m.Mapping, uint8(m.Protocol), m.Token.Bytes()})
}

func (m *gobMapping) GobDecode(b []byte) error {
	var f mappingFields
	err := json.Unmarshal(b, &f)
	m.Mapping = f.Mapping
	m.Protocol, m.Token = backends.Protocol(f.Protocol), backends.NewToken(f.Token)
	return err
}

// BackendService serves a backend in the process of backendProgram.
type BackendService struct {
	backend backends.Backend
	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
}

// do calls f with a context that has the caller's deadline and that Cancel can cancel.
func (s *BackendService) do(c BackendCall, r *BackendReply, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	if !c.Deadline.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, c.Deadline)
	}
	defer cancel()
	if c.Canceled {
		cancel()
	}
	s.mu.Lock()
	s.cancels[c.ID] = cancel
	s.mu.Unlock()
	if failed := toFailure(f(ctx)); failed != nil {
		r.Failed, r.Failure = true, *failed
	}
	return nil
}

// Cancel cancels the context of a call.
func (s *BackendService) Cancel(id uint64, _ *struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.cancels[id]; cancel != nil {
		cancel()
	}
	return nil
}

// Supports is the method of backends.Backend, and so are the methods below.
func (s *BackendService) Supports(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(context.Context) error { return s.backend.Supports(c.Request) })
}

func (s *BackendService) ExternalAddr(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(ctx context.Context) (err error) {
		r.Addr, err = s.backend.ExternalAddr(ctx)
		return err
	})
}

func (s *BackendService) Map(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(ctx context.Context) (err error) {
		r.Mapping.Mapping, err = s.backend.Map(ctx, c.Request)
		return err
	})
}

func (s *BackendService) Renew(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(ctx context.Context) (err error) {
		r.Mapping.Mapping, err = s.backend.Renew(ctx, c.Mapping.Mapping, c.Request)
		return err
	})
}

func (s *BackendService) Unmap(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(ctx context.Context) error { return s.backend.Unmap(ctx, c.Mapping.Mapping) })
}

// Check is the method of backends.Checker.
func (s *BackendService) Check(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(ctx context.Context) error { return s.backend.(backends.Checker).Check(ctx, c.Mapping.Mapping) })
}

func (s *BackendService) Close(c BackendCall, r *BackendReply) error {
	return s.do(c, r, func(context.Context) error { return s.backend.Close() })
}

// remoteBackend is the backend in the test process. It forwards the calls to a
// BackendService.
type remoteBackend struct {
	name   string
	client *rpc.Client
	mu     sync.Mutex
	lastID uint64
}

var (
	_ backends.Backend = (*remoteBackend)(nil)
	_ backends.Checker = (*remoteBackend)(nil)
)

func (b *remoteBackend) call(ctx context.Context, name string, c BackendCall) (BackendReply, error) {
	b.mu.Lock()
	b.lastID++
	c.ID = b.lastID
	b.mu.Unlock()
	var r BackendReply
	c.Deadline, _ = ctx.Deadline()
	c.Canceled = errors.Is(ctx.Err(), context.Canceled)
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) { // the server applies the deadline itself
			b.client.Go("Backend.Cancel", c.ID, &struct{}{}, nil)
		}
	})
	defer stop()
	if err := b.client.Call("Backend."+name, c, &r); err != nil {
		return r, err
	}
	if r.Failed {
		return r, &r.Failure
	}
	return r, nil
}

func (b *remoteBackend) String() string { return b.name }

func (b *remoteBackend) Supports(r backends.Request) error {
	_, err := b.call(context.Background(), "Supports", BackendCall{Request: r})
	return err
}

func (b *remoteBackend) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	r, err := b.call(ctx, "ExternalAddr", BackendCall{})
	return r.Addr, err
}

func (b *remoteBackend) Map(ctx context.Context, req backends.Request) (backends.Mapping, error) {
	r, err := b.call(ctx, "Map", BackendCall{Request: req})
	return r.Mapping.Mapping, err
}

func (b *remoteBackend) Renew(ctx context.Context, m backends.Mapping, req backends.Request) (backends.Mapping, error) {
	r, err := b.call(ctx, "Renew", BackendCall{Mapping: gobMapping{m}, Request: req})
	return r.Mapping.Mapping, err
}

func (b *remoteBackend) Unmap(ctx context.Context, m backends.Mapping) error {
	_, err := b.call(ctx, "Unmap", BackendCall{Mapping: gobMapping{m}})
	return err
}

func (b *remoteBackend) Check(ctx context.Context, m backends.Mapping) error {
	_, err := b.call(ctx, "Check", BackendCall{Mapping: gobMapping{m}})
	return err
}

func (b *remoteBackend) Close() error {
	_, err := b.call(context.Background(), "Close", BackendCall{})
	return err
}
