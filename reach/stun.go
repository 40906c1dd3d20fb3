package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
	"github.com/natforward/goforward/internal/stun"
)

const (
	// stunTimeout is how long one exchange with a STUN server may take.
	stunTimeout = 2 * time.Second
	// stunRTO is the shortest time until a request is repeated. It doubles each time
	// (RFC 8489 §6.2.1).
	stunRTO = 250 * time.Millisecond
	// maxStunDatagrams is the number of datagrams of a server that are read, at most.
	maxStunDatagrams = 512
)

// STUN returns a prober that lets a STUN server answer to the external port, from an address that
// this host has not contacted (RFC 5780: RESPONSE-PORT and CHANGE-REQUEST). The server is a host
// name or an address, with or without a port, such as "stun.example.net" or
// "[2001:db8::7]:3478". The default port is 3478. If the text is invalid, each measurement fails
// with backends.ErrInvalid.
//
// The server must have two public addresses of the family of the port, and name the second one
// (OTHER-ADDRESS). coturn does if it listens on two addresses (-L), and since version 4.7 only with
// --rfc5780. Most public servers do not: the Verdict is then Unknown, with the reason.
//
// Only UDP ports can be measured, and only if the catcher observes datagrams. Nothing is sent if
// another program has the port, and nothing is ever sent from the internal port. An answer that
// arrives proves LevelInternet. A missing answer is Unreachable only if this prober reached the same
// external endpoint before and the server still answers, and otherwise Unknown.
//
// The server can answer from two endpoints. The gateway may remember the packets from an endpoint: it
// could admit later ones although the mapping no longer exists, or drop them although a new mapping
// does. So this process uses each endpoint again for the same external endpoint only after five
// minutes. If both were used, the Verdict is Unknown, and the error says for how long. There is one
// exception: if an answer is missing, the absence of another one may confirm it.
//
// A wrong Reachable is possible in three cases. A host of the local network or on the path reads the
// request and forges the answer, because STUN is not encrypted. The server goes on sending to the
// port, so that the gateway does not forget its endpoint. Another process of this network measured the
// same port by the same server in the last minutes, and the mapping has ended since then.
func STUN(server string) Prober {
	host, err := stunHost(server)
	return &stunProber{helper: helper{name: "stun:" + server}, host: host, err: err, contacts: &contacted, flows: &sharedStunFlows, dial: dialHelper}
}

type stunProber struct {
	helper
	host     string // with the port
	err      error  // why host is invalid
	contacts *contacts
	flows    *stunFlows
	dial     func(ctx context.Context, t Target, network, host string) (net.Conn, error)
}

// stunHost returns the host and the port of a server.
func stunHost(server string) (string, error) {
	host, port := server, strconv.Itoa(stun.Port)
	if inner, ok := strings.CutPrefix(server, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok && strings.Contains(inner, ":") {
			host = inner
		}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil && strings.Contains(server, ":") {
		if host, port, err = net.SplitHostPort(server); err != nil {
			return "", fmt.Errorf("%w: STUN server %q: %w", backends.ErrInvalid, server, err)
		}
		addr, err = netip.ParseAddr(host)
	}
	number, portErr := strconv.ParseUint(port, 10, 16)
	switch {
	case portErr != nil || number == 0:
		return "", fmt.Errorf("%w: STUN server %q: port %q", backends.ErrInvalid, server, port)
	case err == nil && addr.IsUnspecified(), err != nil && (host == "" || strings.ContainsAny(host, " /@?#[]:%")):
		return "", fmt.Errorf("%w: STUN server %q: neither a host name nor an address", backends.ErrInvalid, server)
	}
	return net.JoinHostPort(host, port), nil
}

// Probe implements Prober.
func (p *stunProber) Probe(ctx context.Context, t Target, catcher Catcher) (Evidence, error) {
	e := Evidence{Level: LevelInternet, To: t.Internal}
	switch {
	case p.err != nil:
		return e, p.err
	case t.Protocol != backends.UDP:
		return e, fmt.Errorf("%w: a STUN server cannot measure %v, only UDP", backends.ErrUnsupported, t.Protocol)
	}
	if err := p.check(t, catcher); err != nil {
		return e, err
	}
	s, err := p.open(ctx, t)
	if err != nil {
		return e, fmt.Errorf("%s: %w", p.name, err)
	}
	defer s.close()

	begun := time.Now()
	plain := s.exchange(ctx, stun.Request{ID: stun.NewID()}, stunRTO, nil)
	if err := plain.problem(); err != nil {
		return e, fmt.Errorf("%s: %w", p.name, err)
	}
	at := plain.response.Mapped.Addr()
	other, err := p.alternate(t, s.server, plain.response)
	if err != nil {
		return e, fmt.Errorf("%s: %w", p.name, err)
	}
	// The two endpoints that were never contacted: both parts changed, or only the address.
	external := netip.AddrPortFrom(at, t.External.Port())
	flow, err := p.flows.take(external, t.Internal, other, netip.AddrPortFrom(other.Addr(), s.server.Port()))
	if err != nil {
		return e, fmt.Errorf("%s: %w", p.name, err)
	}
	source := flow.source
	request := stun.Request{ID: stun.NewID(), ResponsePort: external.Port(), ChangeIP: true, ChangePort: source == other}
	arrivals, stop := catcher.Expect(Expectation{First: request.ID.First(), Skip: 4, From: func(from netip.Addr) bool { return from == other.Addr() }})
	defer stop()
	rto := min(max(stunRTO, 2*time.Since(begun)), time.Second)
	begun = time.Now()
	answer := s.exchange(ctx, request, rto, arrivals)
	switch {
	case answer.arrived:
		p.flows.used(flow, flowArrived)
		flow.source = answer.arrival.From
		p.flows.used(flow, flowArrived)
	case answer.isResponse:
		p.flows.undo(flow) // it did not answer to the external port
	case answer.err == errStunSilent: //nolint:errorlint // it is never wrapped
		p.flows.used(flow, flowMissed)
		// An outage of the server, or of this host's uplink, is not a fault of the mapping.
		again := s.exchange(ctx, stun.Request{ID: stun.NewID()}, rto, nil)
		switch err := again.problem(); {
		case err != nil:
			return e, fmt.Errorf("nothing arrived, and %s no longer answers: %w", p.name, err)
		case again.response.Mapped.Addr() != at:
			return e, fmt.Errorf("nothing arrived, and %s sees this host at %v instead of %v now", p.name, again.response.Mapped.Addr(), at)
		}
		return p.missed(t, e, at, fmt.Sprintf("that it answers from %v", source))
	default:
		p.flows.used(flow, flowTaken)
	}
	switch problem := answer.problem(); {
	case problem != nil:
		return e, fmt.Errorf("%s: %w", p.name, problem)
	case answer.isResponse:
		return e, fmt.Errorf("%s: it answered to the port of the request, so it does not support RESPONSE-PORT", p.name)
	case answer.arrival.From != source:
		return e, fmt.Errorf("an answer by %s arrived from %v instead of %v", p.name, answer.arrival.From, source)
	case p.contacts.has(other.Addr()):
		return e, fmt.Errorf("%s: %w", p.name, errContacted(other.Addr()))
	case flow.confirms:
		return e, fmt.Errorf("an answer by %s arrived, from %v, after another one did not: the router may only remember an earlier one", p.name, source)
	}
	return p.arrived(t, e, at, answer.arrival, begun)
}

func errContacted(addr netip.Addr) error {
	return fmt.Errorf("this host has contacted its second address %v too, so the router may admit only that one", addr)
}

// alternate returns the alternate address and port of a server. It fails if an answer from there
// would prove nothing.
func (p *stunProber) alternate(t Target, server netip.AddrPort, r stun.Response) (netip.AddrPort, error) {
	at, other := r.Mapped.Addr(), r.Other
	switch {
	case !at.IsValid():
		return other, errors.New("its answer lacks XOR-MAPPED-ADDRESS")
	case at.Is4() != t.Internal.Addr().Unmap().Is4() || backends.ScopeOf(at) != backends.ScopePublic:
		return other, fmt.Errorf("it sees this host at %v, which is not a public address", at)
	case !other.IsValid():
		return other, errors.New("it has no second address (OTHER-ADDRESS)")
	case other.Port() == 0 || other.Addr() == server.Addr() || other.Addr() == at:
		return other, fmt.Errorf("it names %v as its second address, which proves nothing: this host has contacted %v", other, server)
	case !t.IsFromInternet(other.Addr()):
		return other, fmt.Errorf("it names %v as its second address, which is not an address of the internet", other)
	case p.contacts.has(other.Addr()):
		return other, errContacted(other.Addr())
	}
	return other, nil
}

// stunSession is a socket that is connected to a server: it receives only from there.
type stunSession struct {
	conn      net.Conn
	server    netip.AddrPort
	responses chan stunResponse
	closed    chan struct{}
	reading   sync.WaitGroup
}

// stunResponse is a response, or why there is none.
type stunResponse struct {
	id stun.ID
	stun.Response
	err    error
	failed bool // the socket reports err, not a response
}

// open connects to the server. The caller closes the session.
func (p *stunProber) open(ctx context.Context, t Target) (*stunSession, error) {
	ctx, cancel := context.WithTimeout(ctx, stunTimeout)
	defer cancel()
	conn, err := p.dial(ctx, t, "udp", p.host)
	if err != nil {
		return nil, err
	}
	s := &stunSession{
		conn: conn, server: endpointOf(conn.RemoteAddr()),
		responses: make(chan stunResponse), closed: make(chan struct{}),
	}
	s.reading.Go(s.read)
	return s, nil
}

func (s *stunSession) close() {
	close(s.closed)
	_ = s.conn.Close()
	s.reading.Wait()
}

// read reads responses until the session is closed.
func (s *stunSession) read() {
	buf := make([]byte, 2048)
	for range maxStunDatagrams {
		n, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		r := stunResponse{failed: err != nil, err: err}
		if errno.IsRefused(err) || errno.IsReset(err) { // an ICMP error
			r.err = errStunRefused
		}
		if err == nil {
			var ok bool
			if r.id, ok = stun.IDOf(buf[:n]); !ok {
				continue
			}
			r.Response, r.err = stun.ParseResponse(buf[:n])
		}
		select {
		case s.responses <- r:
		case <-s.closed:
			return
		}
	}
}

var (
	errStunRefused = errors.New("it is not reachable: its host or a router refuses the port")
	errStunSilent  = errors.New("it does not answer")
)

// stunAnswer is the end of an exchange: an arrival at the internal port, or a response to the port of
// the request, or an error.
type stunAnswer struct {
	arrived    bool
	arrival    Arrival
	isResponse bool
	response   stun.Response
	err        error
}

// problem returns an error if the exchange failed, or if the server reports an error.
func (a stunAnswer) problem() error {
	if a.isResponse && a.response.Code != 0 {
		return fmt.Errorf("it reports error %d %+q", a.response.Code, a.response.Reason)
	}
	return a.err
}

// exchange sends a request, and repeats it until there is an answer. If arrivals is not nil, the
// answer is expected there, and an error of the socket ends the exchange only when the time is up.
func (s *stunSession) exchange(ctx context.Context, r stun.Request, rto time.Duration, arrivals <-chan Arrival) stunAnswer {
	bounded, cancel := context.WithTimeout(ctx, stunTimeout)
	defer cancel()
	message := r.Append(nil)
	silent := errStunSilent
	for ; ; rto *= 2 {
		switch _, err := s.conn.Write(message); {
		case errno.IsRefused(err) || errno.IsReset(err): // an ICMP error for an earlier one
			if silent = errStunRefused; arrivals == nil {
				return stunAnswer{err: silent}
			}
		case err != nil:
			return stunAnswer{err: err}
		}
		repeat := time.NewTimer(rto)
		for waiting := true; waiting; {
			select {
			case a := <-arrivals:
				repeat.Stop()
				return stunAnswer{arrived: true, arrival: a}
			case got := <-s.responses:
				switch {
				case got.failed && arrivals != nil:
					silent = got.err
				case got.failed || got.id == r.ID:
					repeat.Stop()
					return stunAnswer{isResponse: got.err == nil, response: got.Response, err: got.err}
				}
			case <-repeat.C:
				waiting = false
			case <-bounded.Done():
				repeat.Stop()
				if ctx.Err() != nil {
					return stunAnswer{err: context.Cause(ctx)}
				}
				return stunAnswer{err: silent}
			}
		}
	}
}
