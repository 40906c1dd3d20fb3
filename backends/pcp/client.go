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

// DefaultLifetime is the lifetime that a [Backend] requests if the request has
// none.
const DefaultLifetime = 2 * time.Hour

// The retransmission schedule: the waits double from three seconds to 1024, and
// each varies by up to one tenth (RFC 6887, section 8.1.1). A call fails with no
// reply after four transmissions (RFC 7488, section 3).
const (
	DefaultFirstWait     = 3 * time.Second
	DefaultTransmissions = 4
	defaultLongestWait   = 1024 * time.Second
)

// Config names the server of a Client and configures its requests.
type Config struct {
	// Gateway is the server's address, IPv4 or IPv6. A link-local address needs a
	// zone. Required; port 0 is [Port].
	Gateway netip.AddrPort
	// Interface is the network interface that sends the requests, if the operating
	// system lets a program choose it. If it is empty, the kernel chooses.
	Interface string
	// Source is the local address from which requests are sent. The server maps
	// ports to this address. The zero Addr lets the kernel choose. For IPv6 it
	// should be a stable global address (RFC 6887, section 8.4).
	Source netip.Addr
	// Transmissions is how many times a request is sent before the call fails with
	// no reply. Zero means DefaultTransmissions.
	Transmissions int
	// FirstWait is roughly how long to wait for a reply to the first transmission.
	// Zero means DefaultFirstWait. Interactive programs need a shorter wait.
	FirstWait time.Duration
	// LongestWait is the upper limit of the waits: mappings with a lifetime of
	// seconds cannot wait for minutes. Zero means the 1024 s of the standard.
	LongestWait time.Duration
	// Announce is the address on which to listen for announcements during a call of
	// Watch. The zero value means 224.0.0.1:5350 or [ff02::1]:5350.
	Announce netip.AddrPort
	// Nonce returns the nonce of a mapping that has no Token: a new mapping, or a
	// mapping of another process. If Nonce is nil, each new mapping has a nonce
	// that only this Backend can compute, and mappings of other processes cannot be
	// renewed or deleted. See [DeriveNonce].
	Nonce func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) Nonce
	// Logger logs each request and reply at debug level, without nonces. Nil
	// disables logging.
	Logger *slog.Logger
}

// Client sends requests to one server. Its methods may be called by several
// goroutines at once. All requests of the process to one server are sent one after
// another.
type Client struct {
	config  Config
	session *port5351.Session
	log     *slog.Logger
}

// NewClient checks the config and returns a Client. It does no I/O. Its error wraps
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

// Close ends the calls in progress with net.ErrClosed, and waits for them. It
// deletes no mapping. A second call has no effect.
func (c *Client) Close() error {
	c.session.Close()
	return nil
}

// Gateway returns the address and port to which requests are sent.
func (c *Client) Gateway() netip.AddrPort { return c.config.Gateway }

// Announce requests the server's epoch (RFC 6887, section 14.1). The reply also
// shows that the server is reachable. The errors are those of Map.
func (c *Client) Announce(ctx context.Context) (AnnounceResponse, error) {
	var resp AnnounceResponse
	reply, err := c.do(ctx, OpAnnounce, c.config.FirstWait, port5351.Transaction{
		Match: func(b []byte) port5351.Match { return match(b, OpAnnounce, nil) },
	}, marshalAnnounce)
	if err != nil {
		return resp, err
	}
	if resp, err = ParseAnnounceResponse(reply.Datagram); err != nil {
		return resp, fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
	}
	return resp, nil
}

// probeFirstWait is the first wait of a probe. A program waits for its result, so
// the three seconds of the standard are too long.
const probeFirstWait = 250 * time.Millisecond

func marshalAnnounce(local netip.AddrPort) ([]byte, error) {
	return AnnounceRequest{Client: local.Addr()}.MarshalBinary()
}

// Probe checks whether the server supports PCP, and records its epoch. It sends an
// ANNOUNCE request. To that, some servers do not respond, so Probe then requests the
// deletion of a mapping that does not exist. Any response of version 2 is a success.
//
// Probe does not wait in the queue, and its waits start at 250 ms.
func (c *Client) Probe(ctx context.Context) error {
	return c.probe(ctx, port5351.Transaction{Probe: true})
}

// probe is Probe in a transaction, whose Retransmission and Match it sets.
func (c *Client) probe(ctx context.Context, tx port5351.Transaction) error {
	// No program has a mapping for the port of this client's own socket.
	deletion := MapRequest{Nonce: nonceOrRandom(Nonce{}), Protocol: backends.UDP}
	var retransmission []byte
	tx.Retransmission = func() []byte { return retransmission }
	tx.Match = func(b []byte) port5351.Match {
		key := mappingKey{deletion.Nonce, deletion.Protocol, deletion.InternalPort}
		return max(match(b, OpAnnounce, nil), match(b, OpMap, &key))
	}
	_, err := c.do(ctx, OpAnnounce, probeFirstWait, tx, func(local netip.AddrPort) (request []byte, err error) {
		deletion.Client, deletion.InternalPort = local.Addr(), local.Port()
		if retransmission, err = deletion.MarshalBinary(); err != nil {
			return nil, err
		}
		return marshalAnnounce(local)
	})
	if refusal := (*ResultError)(nil); errors.As(err, &refusal) {
		return nil
	}
	return err
}

// Map creates, renews or, with Lifetime 0, deletes a mapping (RFC 6887, sections 11
// and 15). The zero Client means the address from which the request is sent. The
// zero Nonce means a random nonce: keep the nonce of the response to renew and
// delete the mapping. The call succeeds even if the server grants another external
// port or address than requested, unless Options.PreferFailure is set: it then fails
// with an error that wraps backends.ErrConflict. If the server ignores this option,
// Map deletes the mapping that it granted. A deletion succeeds if there is no such
// mapping, even if the result of the response is NoResources.
//
// Protocol 0 and InternalPort 0, which mean all, fail with backends.ErrInvalid: use
// MapAll. If the server refuses, the error is a *[ResultError]. If it does not
// reply, the error wraps backends.ErrNoReply.
func (c *Client) Map(ctx context.Context, r MapRequest) (MapResponse, error) {
	if r.Protocol == 0 || r.InternalPort == 0 {
		return MapResponse{}, fmt.Errorf("pcp: %w: protocol %d, internal port %d: 0 means all", backends.ErrInvalid, r.Protocol, r.InternalPort)
	}
	r.Nonce = nonceOrRandom(r.Nonce)
	resp, _, err := c.mapPort(ctx, r)
	if err == nil && r.Options.PreferFailure {
		err = c.rejectWrongPort(ctx, r, resp)
	}
	return resp, err
}

// rejectWrongPort deletes a mapping that does not have the external port and address
// of its request.
func (c *Client) rejectWrongPort(ctx context.Context, r MapRequest, resp MapResponse) error {
	if resp.ExternalPort == r.ExternalPort && (!r.External.IsValid() || r.External.IsUnspecified() || canonicalAddr(r.External) == resp.External) {
		return nil
	}
	conflict := fmt.Errorf("pcp: %w: the gateway granted %v instead of port %d",
		backends.ErrConflict, netip.AddrPortFrom(resp.External, resp.ExternalPort), r.ExternalPort)
	_, _, err := c.mapPort(ctxsync.DefaultPriority(ctx, ctxsync.Delete), MapRequest{
		Client: r.Client, Nonce: r.Nonce, Protocol: r.Protocol, InternalPort: r.InternalPort, Options: Options{ThirdParty: r.Options.ThirdParty},
	})
	if err != nil {
		return fmt.Errorf("%w; the granted mapping was not deleted and lasts for %v: %w", conflict, resp.Lifetime, err)
	}
	return conflict
}

// MapAll maps all ports of a protocol or, with protocol 0, of all protocols (RFC
// 6887, section 11.1). The server then forwards all incoming packets to this host.
// Lifetime 0 deletes this mapping and no other. Few servers permit it.
func (c *Client) MapAll(ctx context.Context, p backends.Protocol, lifetime time.Duration, nonce Nonce) (MapResponse, error) {
	resp, _, err := c.mapPort(ctx, MapRequest{Protocol: p, Lifetime: lifetime, Nonce: nonce})
	return resp, err
}

// Unmap deletes the mapping with the nonce (RFC 6887, section 15). It succeeds if
// there is no such mapping. Protocol 0 and port 0 fail with backends.ErrInvalid.
func (c *Client) Unmap(ctx context.Context, p backends.Protocol, internalPort uint16, nonce Nonce) error {
	_, err := c.Map(ctxsync.DefaultPriority(ctx, ctxsync.Delete), MapRequest{Protocol: p, InternalPort: internalPort, Nonce: nonce})
	return err
}

// Peer creates or renews a mapping for connections to one remote peer (RFC 6887,
// section 12). The zero Client and Nonce, and the errors, have the same meaning as in
// Map.
func (c *Client) Peer(ctx context.Context, r PeerRequest) (PeerResponse, error) {
	r.Nonce = nonceOrRandom(r.Nonce)
	key := mappingKey{r.Nonce, r.Protocol, r.InternalPort}
	var resp PeerResponse
	reply, err := c.do(ctx, OpPeer, c.config.FirstWait, port5351.Transaction{
		Match: func(b []byte) port5351.Match { return match(b, OpPeer, &key) },
	}, func(local netip.AddrPort) ([]byte, error) {
		r.Client = firstValid(r.Client, local.Addr())
		return r.MarshalBinary()
	})
	if err == nil {
		if resp, err = ParsePeerResponse(reply.Datagram); err != nil {
			err = fmt.Errorf("pcp: %w: %w", backends.ErrMalformed, err)
		}
	}
	return resp, err
}

// mapPort sends a map request, which may be for all ports, and returns the
// response.
func (c *Client) mapPort(ctx context.Context, r MapRequest) (MapResponse, port5351.Reply, error) {
	r.Nonce = nonceOrRandom(r.Nonce)
	key := mappingKey{r.Nonce, r.Protocol, r.InternalPort}
	client := r.Client
	requestSize := 0 // in bytes; set when the request is encoded
	reply, err := c.do(ctx, OpMap, c.config.FirstWait, port5351.Transaction{
		// A response to a deletion that has a lifetime is suspicious. It may have
		// the remaining lifetime of an idle mapping (RFC 6887, section 15.1), but
		// this is rare.
		Match: port5351.RequireRepeats(
			func(b []byte) port5351.Match {
				if e, err := ParseErrorResponse(b); err == nil && requestSize == mapSize && (e.Result == UnsupportedOption || e.Result == MalformedOption) {
					// The request has no options. The error repeats the options of
					// an earlier request, and can arrive as often as that request
					// was sent.
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
					return len(b) != requestSize // then the error may be about the options of another request
				}
				return resp.Result == Success && (resp.Lifetime == 0) != (r.Lifetime == 0) ||
					resp.Result == CannotProvideExternal && !r.Options.PreferFailure // an earlier request had this option
			}),
	}, func(local netip.AddrPort) ([]byte, error) {
		r.Client = firstValid(client, local.Addr())
		request, err := r.MarshalBinary()
		requestSize = len(request)
		return request, err
	})
	var refusal *ResultError
	if errors.As(err, &refusal) && refusal.Code == NoResources && r.Lifetime == 0 {
		// miniupnpd sends this if it has no such mapping.
		resp, _ := ParseMapResponse(reply.Datagram)
		return resp, reply, nil
	}
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

// do sends a request that is built for the local address, and returns a reply that
// is a success with the opcode. If the server saw another address than the one in
// the request, and the local address has changed, the request is sent once more
// (RFC 6887, section 7.4).
func (c *Client) do(ctx context.Context, op Opcode, firstWait time.Duration, tx port5351.Transaction,
	request func(local netip.AddrPort) ([]byte, error),
) (port5351.Reply, error) {
	var previous netip.Addr
	for {
		local, err := c.session.Local(ctx)
		if err != nil {
			return port5351.Reply{}, c.wrapError(ctx, op, err)
		}
		if tx.Request, err = request(netip.AddrPortFrom(local.Addr().WithZone(""), local.Port())); err != nil {
			return port5351.Reply{}, err
		}
		sent := tx
		if sent.Wait == nil {
			sent.Wait = c.schedule(firstWait)
		}
		reply, err := c.session.Do(ctx, sent)
		if err != nil {
			return reply, c.wrapError(ctx, op, err)
		}
		c.log.Debug("pcp: reply received", "op", op, "gateway", c.config.Gateway, "took", reply.Received.Sub(reply.Sent))
		err = c.checkReply(op, reply)
		var refusal *ResultError
		if errors.As(err, &refusal) && refusal.Code == AddressMismatch && !previous.IsValid() {
			previous = local.Addr()
			if current := c.session.Redial(ctx); current.IsValid() && current != previous {
				continue
			}
		}
		return reply, err
	}
}

// wrapError logs that a request failed without a reply. If ctx has ended, it adds
// the gateway to the error.
func (c *Client) wrapError(ctx context.Context, op Opcode, err error) error {
	c.log.Debug("pcp: request failed", "op", op, "gateway", c.config.Gateway, "err", err)
	if !errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		err = fmt.Errorf("waiting for %v: %w", c.config.Gateway, err)
	}
	return fmt.Errorf("pcp: %w", err)
}

// checkReply records the epoch, and converts every result except a success to a Go
// error.
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

// schedule returns the waits of one transaction.
func (c *Client) schedule(firstWait time.Duration) func(int) (time.Duration, bool) {
	next := firstWait
	return func(n int) (time.Duration, bool) {
		if n >= c.config.Transmissions {
			return 0, false
		}
		const tenth = 0.1
		wait := time.Duration(float64(next) * (1 - tenth + 2*tenth*mathrand.Float64())) //nolint:gosec // not a secret
		next = min(2*wait, cmp.Or(c.config.LongestWait, defaultLongestWait))
		return wait, true
	}
}

// mappingKey has the fields of a request that its response repeats.
type mappingKey struct {
	nonce    Nonce
	protocol backends.Protocol
	internal uint16
}

// match reports how well a datagram answers a request. The source address has been
// checked. Version errors of servers with another version can answer any request. A
// version error of version 2 answers a request of another version (RFC 6887,
// sections 8.3 and 9).
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
	case len(b) < mapSize: // an error without the fields of a mapping
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

// nonceOrRandom returns the nonce, or a random nonce if n is the zero value.
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
