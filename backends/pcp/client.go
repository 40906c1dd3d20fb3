package pcp

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
	"github.com/natforward/goforward/internal/ctxsync"
)

// DefaultLifetime is what a mapping is asked for where nothing else is said.
const DefaultLifetime = 2 * time.Hour

// The retransmission schedule: waits that double from three seconds to 1024, a
// tenth more or less each time (RFC 6887, section 8.1.1), and four requests
// before the server counts as silent (RFC 7488, section 3).
const (
	DefaultFirstWait     = 3 * time.Second
	DefaultTransmissions = 4
	defaultLongestWait   = 1024 * time.Second
)

// Config says which server a Client talks to, and how.
type Config struct {
	// Gateway is the server's address, IPv4 or IPv6, with a zone where it is
	// link-local. Required; port 0 is [Port].
	Gateway netip.AddrPort
	// Interface is the interface to leave by, where the OS lets us choose. Empty:
	// the kernel's choice.
	Interface string
	// Source is the local address to send from, which is the one that gets the
	// mappings. The zero Addr: the kernel's choice. For IPv6 it should be a stable
	// global address (RFC 6887, section 8.4).
	Source netip.Addr
	// Transmissions is how often a request is sent before the server counts as
	// silent. Zero: DefaultTransmissions.
	Transmissions int
	// FirstWait is about how long the first request waits for its answer. Zero:
	// DefaultFirstWait. Somebody who waits for the answer wants less.
	FirstWait time.Duration
	// LongestWait bounds the waits: mappings that last seconds cannot wait for
	// minutes. Zero: the standard's 1024 s.
	LongestWait time.Duration
	// Announce is where announcements are listened for, while somebody calls
	// Watch. The zero value: 224.0.0.1:5350 or [ff02::1]:5350.
	Announce netip.AddrPort
	// Nonce makes the nonce of a mapping whose Token is not known: of a new one,
	// and of one that another process made. Nil: a new one has a nonce that only
	// this Backend can make, and one of another process cannot be renewed or
	// deleted. See [DeriveNonce].
	Nonce func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) Nonce
	// Logger is told of each request and answer, at debug level, without nonces.
	// Nil: nobody.
	Logger *slog.Logger
}

// Client asks one server. Its methods may be called by several goroutines at
// once; requests of the whole process to one server go out one after another.
type Client struct {
	config  Config
	session *port5351.Session
	log     *slog.Logger
}

// NewClient checks the config. It does no I/O. Its error wraps
// backends.ErrInvalid.
func NewClient(config Config) (*Client, error) {
	switch gw := config.Gateway.Addr().Unmap(); {
	case gw.IsValid() && config.Source.IsValid() && config.Source.Unmap().Is4() != gw.Is4():
		return nil, fmt.Errorf("pcp: %w: source %v and gateway %v are of different families", backends.ErrInvalid, config.Source, gw)
	case config.Transmissions < 0 || config.FirstWait < 0 || config.LongestWait < 0:
		return nil, fmt.Errorf("pcp: %w: negative retransmission schedule", backends.ErrInvalid)
	}
	config.Transmissions = cmp.Or(config.Transmissions, DefaultTransmissions)
	config.FirstWait = cmp.Or(config.FirstWait, DefaultFirstWait)
	session, err := port5351.NewSession(port5351.Config{
		Gateway: config.Gateway, Interface: config.Interface, Source: config.Source,
	})
	if err != nil {
		return nil, fmt.Errorf("pcp: %w: %w", backends.ErrInvalid, err)
	}
	config.Gateway = session.Gateway()
	log := cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	return &Client{config: config, session: session, log: log}, nil
}

// Close ends the calls under way, with net.ErrClosed, and waits for them. It
// deletes no mapping. A second call does nothing.
func (c *Client) Close() error {
	c.session.Close()
	return nil
}

// Gateway returns the address and port that requests go to.
func (c *Client) Gateway() netip.AddrPort { return c.config.Gateway }

// Announce asks the server for nothing but an answer: whether it is there, and
// its epoch (RFC 6887, section 14.1).
func (c *Client) Announce(ctx context.Context) (AnnounceResponse, error) {
	return c.announce(ctx, port5351.Transaction{}, c.config.FirstWait)
}

// probeFirstWait is the first wait of a probe: the standard's three seconds are for
// requests that nobody waits for.
const probeFirstWait = 250 * time.Millisecond

// Probe is Announce out of turn, and with waits that begin at 250 ms. A server
// that refuses the opcode speaks PCP, which Probe takes for a success.
func (c *Client) Probe(ctx context.Context) error {
	_, err := c.announce(ctx, port5351.Transaction{Probe: true}, probeFirstWait)
	if refusal := (*ResultError)(nil); errors.As(err, &refusal) {
		return nil
	}
	return err
}

func (c *Client) announce(ctx context.Context, tx port5351.Transaction, firstWait time.Duration) (AnnounceResponse, error) {
	var resp AnnounceResponse
	tx.Match = func(b []byte) port5351.Match { return match(b, OpAnnounce, nil) }
	reply, err := c.do(ctx, OpAnnounce, firstWait, tx, func(local netip.Addr) ([]byte, error) {
		return AnnounceRequest{Client: local}.MarshalBinary()
	})
	if err != nil {
		return resp, err
	}
	if resp, err = ParseAnnounceResponse(reply.Datagram); err != nil {
		return resp, fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
	}
	return resp, nil
}

// Map asks for a mapping, for more of its lifetime, or, with Lifetime 0, for
// its end (RFC 6887, sections 11 and 15). The zero Client is the address that
// the request leaves from, and the zero Nonce a random one: keep the one that
// the response has, which renews and deletes the mapping. Another external port
// than the wish is success, unless Options.PreferFailure.
//
// Protocol 0 and InternalPort 0, which mean all, fail with
// backends.ErrInvalid: see MapAll. A refusal is a *[ResultError], and silence
// wraps backends.ErrNoReply.
func (c *Client) Map(ctx context.Context, r MapRequest) (MapResponse, error) {
	if r.Protocol == 0 || r.InternalPort == 0 {
		return MapResponse{}, fmt.Errorf("pcp: %w: protocol %d, internal port %d: 0 means all", backends.ErrInvalid, r.Protocol, r.InternalPort)
	}
	resp, _, err := c.mapPort(ctx, r)
	return resp, err
}

// MapAll asks for all ports of a protocol or, with protocol 0, of all of them
// (RFC 6887, section 11.1): everything that comes in comes here. Lifetime 0
// deletes such a mapping, and no other. Few servers allow it.
func (c *Client) MapAll(ctx context.Context, p backends.Protocol, lifetime time.Duration, nonce Nonce) (MapResponse, error) {
	resp, _, err := c.mapPort(ctx, MapRequest{Protocol: p, Lifetime: lifetime, Nonce: nonce})
	return resp, err
}

// Unmap deletes the mapping with the nonce (RFC 6887, section 15). Where there
// is none, it succeeds. Protocol 0 and port 0 fail with backends.ErrInvalid.
func (c *Client) Unmap(ctx context.Context, p backends.Protocol, internalPort uint16, nonce Nonce) error {
	_, err := c.Map(ctxsync.DefaultPriority(ctx, ctxsync.Delete), MapRequest{Protocol: p, InternalPort: internalPort, Nonce: nonce})
	return err
}

// Peer asks for a mapping for connections to one peer, or for more of its
// lifetime (RFC 6887, section 12). The zero Client and Nonce are as in Map.
func (c *Client) Peer(ctx context.Context, r PeerRequest) (PeerResponse, error) {
	r.Nonce = nonceOrRandom(r.Nonce)
	key := mappingKey{r.Nonce, r.Protocol, r.InternalPort}
	var resp PeerResponse
	reply, err := c.do(ctx, OpPeer, c.config.FirstWait, port5351.Transaction{
		Match: func(b []byte) port5351.Match { return match(b, OpPeer, &key) },
	}, func(local netip.Addr) ([]byte, error) {
		r.Client = firstValid(r.Client, local)
		return r.MarshalBinary()
	})
	if err == nil {
		if resp, err = ParsePeerResponse(reply.Datagram); err != nil {
			err = fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
		}
	}
	return resp, err
}

// mapPort returns the response to a request, which may be about everything.
func (c *Client) mapPort(ctx context.Context, r MapRequest) (MapResponse, port5351.Reply, error) {
	r.Nonce = nonceOrRandom(r.Nonce)
	key := mappingKey{r.Nonce, r.Protocol, r.InternalPort}
	client := r.Client
	requestSize := 0 // of the request
	reply, err := c.do(ctx, OpMap, c.config.FirstWait, port5351.Transaction{
		// A deletion may be answered with the time until an idle mapping goes
		// (RFC 6887, section 15.1), but hardly ever is.
		Match: port5351.RequireRepeats(
			func(b []byte) port5351.Match {
				if e, err := ParseErrorResponse(b); err == nil && requestSize == mapSize && (e.Result == UnsupportedOption || e.Result == MalformedOption) {
					// About options that an earlier request had, and as often as that was
					// sent: errors repeat them. This one has none.
					return port5351.None
				}
				return match(b, OpMap, &key)
			},
			func(b []byte) bool {
				resp, err := ParseErrorResponse(b)
				switch {
				case err != nil:
					return false
				case resp.Result == UnsupportedOption || resp.Result == MalformedOption:
					return len(b) != requestSize // then it may be about other options
				}
				return resp.Result == Success && (resp.Lifetime == 0) != (r.Lifetime == 0)
			}),
	}, func(local netip.Addr) ([]byte, error) {
		r.Client = firstValid(client, local)
		request, err := r.MarshalBinary()
		requestSize = len(request)
		return request, err
	})
	if err != nil {
		return MapResponse{}, reply, err
	}
	resp, err := ParseMapResponse(reply.Datagram)
	switch {
	case err != nil:
		return MapResponse{}, reply, fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
	case r.Lifetime > 0 && (resp.Lifetime == 0 || r.InternalPort != 0 && resp.ExternalPort == 0):
		return resp, reply, fmt.Errorf("pcp: %w: %v granted external port %d for %v",
			backends.ErrMalformed, c.config.Gateway, resp.ExternalPort, resp.Lifetime)
	}
	return resp, reply, nil
}

// do sends a request made for the local address, and returns a reply that is a
// success of the opcode. A server that saw another address than the request
// names is asked again, once, where ours has changed (RFC 6887, section 7.4).
func (c *Client) do(ctx context.Context, op Opcode, firstWait time.Duration, tx port5351.Transaction,
	request func(local netip.Addr) ([]byte, error),
) (port5351.Reply, error) {
	var previous netip.Addr
	for {
		local, err := c.session.Local(ctx)
		if err != nil {
			return port5351.Reply{}, c.wrapError(ctx, op, err)
		}
		if tx.Request, err = request(local.WithZone("")); err != nil {
			return port5351.Reply{}, err
		}
		tx.Wait = c.schedule(firstWait)
		reply, err := c.session.Do(ctx, tx)
		if err != nil {
			return reply, c.wrapError(ctx, op, err)
		}
		c.log.Debug("pcp request answered", "op", op, "gateway", c.config.Gateway, "took", reply.Received.Sub(reply.Sent))
		err = c.checkReply(op, reply)
		var refusal *ResultError
		if errors.As(err, &refusal) && refusal.Code == AddressMismatch && !previous.IsValid() {
			previous = local
			if current := c.session.Redial(ctx); current.IsValid() && current != previous {
				continue
			}
		}
		return reply, err
	}
}

// wrapError says what was under way when a request got no answer.
func (c *Client) wrapError(ctx context.Context, op Opcode, err error) error {
	c.log.Debug("pcp request failed", "op", op, "gateway", c.config.Gateway, "err", err)
	if !errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		err = fmt.Errorf("waiting for %v: %w", c.config.Gateway, err)
	}
	return fmt.Errorf("pcp: %w", err)
}

// checkReply gives the epoch to the link, and makes what is no success a Go error.
func (c *Client) checkReply(op Opcode, reply port5351.Reply) error {
	r, err := ParseErrorResponse(reply.Datagram)
	switch {
	case err != nil:
		return fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
	case r.Version != Version:
		return &VersionError{Version: r.Version, Lifetime: r.Lifetime}
	}
	c.session.ObservePCP(r.Epoch, reply)
	if r.Result == Success {
		return nil
	}
	e := &ResultError{Op: op, Code: r.Result, Lifetime: r.Lifetime, Response: reply.Datagram}
	if m, err := ParseMapResponse(reply.Datagram); err == nil && op == OpMap {
		e.External = netip.AddrPortFrom(m.External, m.ExternalPort)
	}
	return e
}

// schedule makes the waits of one exchange.
func (c *Client) schedule(firstWait time.Duration) func(int) (time.Duration, bool) {
	next := firstWait
	return func(n int) (time.Duration, bool) {
		if n >= c.config.Transmissions {
			return 0, false
		}
		const tenth = 0.1
		wait := time.Duration(float64(next) * (1 - tenth + 2*tenth*mathrand.Float64())) //nolint:gosec // no secret
		next = min(2*wait, cmp.Or(c.config.LongestWait, defaultLongestWait))
		return wait, true
	}
}

// mappingKey is what a response about a mapping repeats of its request.
type mappingKey struct {
	nonce    Nonce
	protocol backends.Protocol
	internal uint16
}

// match judges whether a datagram answers a request. The link has checked the
// source. Version errors of servers of another version answer anything; one of
// version 2 answers somebody else's request (RFC 6887, sections 8.3 and 9).
func match(b []byte, op Opcode, key *mappingKey) port5351.Match {
	r, err := ParseErrorResponse(b)
	switch {
	case err != nil:
		return port5351.None
	case r.Version != Version:
		if r.Opcode&^OpResponse == 0 || r.Opcode == op|OpResponse {
			return port5351.Exact
		}
		return port5351.Possible
	case r.Result == UnsupportedVersion || r.Opcode != op|OpResponse || len(b) < headerSize:
		return port5351.None
	case key == nil:
		return port5351.Exact
	case len(b) < mapSize: // an error that carries no mapping
		if r.Result != Success {
			return port5351.Possible
		}
		return port5351.None
	}
	got := mappingKey{Nonce(b[24:36]), backends.Protocol(b[36]), uint16(b[40])<<8 | uint16(b[41])}
	if got != *key {
		return port5351.None
	}
	return port5351.Exact
}

// nonceOrRandom is the nonce, or a random one in the place of the zero value.
func nonceOrRandom(n Nonce) Nonce {
	if n == (Nonce{}) {
		_, _ = rand.Read(n[:]) // never fails
	}
	return n
}

func firstValid(a, b netip.Addr) netip.Addr {
	if a.IsValid() {
		return a
	}
	return b
}
