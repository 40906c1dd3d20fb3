package natpmp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
	"github.com/natforward/goforward/internal/ctxsync"
)

// DefaultLifetime is the lifetime that RFC 6886 section 3.3 recommends.
const DefaultLifetime = 2 * time.Hour

// The retransmission schedule of RFC 6886 section 3.1: nine requests, with waits
// that start at 250 ms and double. If the gateway does not reply, a call takes
// 127.75 s.
const (
	DefaultTransmissions = 9
	DefaultFirstWait     = 250 * time.Millisecond
)

// Config names the gateway of a Client and configures its requests.
type Config struct {
	// Gateway is the gateway's internal address. Required; port 0 is [Port].
	Gateway netip.AddrPort
	// Interface is the network interface that sends the requests, if the operating
	// system lets a program choose it. If it is empty, the kernel chooses.
	Interface string
	// Source is the local address from which requests are sent. The gateway maps
	// ports to this address. The zero Addr lets the kernel choose.
	Source netip.Addr
	// Transmissions is how many times a request is sent before the call fails with
	// no reply. Zero means DefaultTransmissions.
	Transmissions int
	// FirstWait is how long to wait for a reply to the first transmission. The wait
	// doubles with each later transmission. Zero means DefaultFirstWait.
	FirstWait time.Duration
	// LongestWait is the upper limit of these waits: mappings with a lifetime of
	// seconds cannot wait for minutes. Zero means no limit.
	LongestWait time.Duration
	// Announce is the address on which to listen for announcements during a call of
	// Watch. The zero value means 224.0.0.1:5350.
	Announce netip.AddrPort
	// Logger logs each request and reply at debug level. Nil disables logging.
	Logger *slog.Logger
}

// Client sends requests to one gateway. Its methods may be called by several
// goroutines at once. All requests of the process to one gateway are sent one after
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
	case gw.IsValid() && !gw.Is4():
		return nil, fmt.Errorf("natpmp: %w: NAT-PMP needs an IPv4 gateway, not %v", backends.ErrInvalid, gw)
	case config.Transmissions < 0 || config.FirstWait < 0 || config.LongestWait < 0:
		return nil, fmt.Errorf("natpmp: %w: negative retransmission schedule", backends.ErrInvalid)
	}
	config.Transmissions = cmp.Or(config.Transmissions, DefaultTransmissions)
	config.FirstWait = cmp.Or(config.FirstWait, DefaultFirstWait)
	session, err := port5351.NewSession(port5351.Config{
		Gateway: config.Gateway, Interface: config.Interface, Source: config.Source,
	})
	if err != nil {
		return nil, fmt.Errorf("natpmp: %w: %w", backends.ErrInvalid, err)
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

// ExternalAddr returns the gateway's external address (RFC 6886, section 3.2). If
// the gateway refuses, the error is a *[ResultError]. If it does not reply, the
// error wraps backends.ErrNoReply.
func (c *Client) ExternalAddr(ctx context.Context) (ExternalAddrResponse, error) {
	return c.externalAddr(ctx, port5351.Transaction{})
}

// Probe is ExternalAddr without the queue: it does not wait for other requests of
// the process to the gateway.
func (c *Client) Probe(ctx context.Context) (ExternalAddrResponse, error) {
	return c.externalAddr(ctx, port5351.Transaction{Probe: true})
}

// externalAddr requests the external address in a transaction, whose Request and Match it
// sets.
func (c *Client) externalAddr(ctx context.Context, tx port5351.Transaction) (ExternalAddrResponse, error) {
	tx.Request, _ = ExternalAddrRequest{}.MarshalBinary()
	tx.Match = func(b []byte) port5351.Match { return match(b, OpExternalAddr, externalAddrResponseSize, 0) }
	reply, err := c.do(ctx, OpExternalAddr, tx)
	if err != nil {
		return ExternalAddrResponse{}, err
	}
	r, err := ParseExternalAddrResponse(reply.Datagram)
	if err != nil {
		return ExternalAddrResponse{}, err
	}
	return r, c.checkResult(OpExternalAddr, r.Result, r.Epoch, reply)
}

// Map creates a mapping, or renews it (RFC 6886, section 3.3). Lifetime 0 means
// DefaultLifetime. The call succeeds even if the gateway grants another port than
// requested. Map fails with backends.ErrInvalid if the internal port is 0. If the
// gateway refuses, the error is a *[ResultError]. If it does not reply, the error
// wraps backends.ErrNoReply.
func (c *Client) Map(ctx context.Context, r MapRequest) (MapResponse, error) {
	r.Lifetime = cmp.Or(r.Lifetime, DefaultLifetime)
	resp, _, err := c.mapPort(ctx, r)
	return resp, err
}

// Unmap deletes the host's mapping of an internal port (RFC 6886, section 3.4). It
// succeeds if there is no such mapping. Unmap fails with backends.ErrInvalid if the
// internal port is 0.
func (c *Client) Unmap(ctx context.Context, p backends.Protocol, internalPort uint16) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	_, _, err := c.mapPort(ctx, MapRequest{Protocol: p, InternalPort: internalPort})
	return err
}

// UnmapAll deletes all mappings of the host for a protocol, including the mappings
// of other programs on the host (RFC 6886, section 3.4). Common gateways also
// delete the mappings for the other protocol.
func (c *Client) UnmapAll(ctx context.Context, p backends.Protocol) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	_, _, err := c.transactMap(ctx, MapRequest{Protocol: p})
	return err
}

// mapPort is transactMap for a single port.
func (c *Client) mapPort(ctx context.Context, r MapRequest) (MapResponse, port5351.Reply, error) {
	if r.InternalPort == 0 {
		return MapResponse{}, port5351.Reply{}, fmt.Errorf("natpmp: %w: internal port 0 means all ports", backends.ErrInvalid)
	}
	if r.Lifetime < 0 {
		return MapResponse{}, port5351.Reply{}, fmt.Errorf("natpmp: %w: negative lifetime %v", backends.ErrInvalid, r.Lifetime)
	}
	resp, reply, err := c.transactMap(ctx, r)
	if err == nil && r.Lifetime > 0 && (resp.ExternalPort == 0 || resp.Lifetime == 0) {
		return resp, reply, fmt.Errorf("natpmp: %w: %v granted external port %d for %v",
			backends.ErrMalformed, c.config.Gateway, resp.ExternalPort, resp.Lifetime)
	}
	return resp, reply, err
}

func (c *Client) transactMap(ctx context.Context, r MapRequest) (MapResponse, port5351.Reply, error) {
	request, err := r.MarshalBinary()
	if err != nil {
		return MapResponse{}, port5351.Reply{}, err
	}
	op := Opcode(request[1])
	tx := port5351.Transaction{
		Request: request,
		Match: port5351.RequireRepeats(
			func(b []byte) port5351.Match { return match(b, op, mapResponseSize, r.InternalPort) },
			func(b []byte) bool {
				resp, err := ParseMapResponse(b)
				return err == nil && resp.Result == Success && (resp.Lifetime == 0) != (r.Lifetime == 0)
			}),
	}
	reply, err := c.do(ctx, op, tx)
	if isAmbiguous(reply.Datagram, r.InternalPort) {
		// The response may be a late reply to a request for another port. Only this
		// request is sent from the second socket, so a reply there is a reply to it.
		tx.Alone = true
		reply, err = c.do(ctx, op, tx)
	}
	if err != nil {
		return MapResponse{}, reply, err
	}
	resp, err := ParseMapResponse(reply.Datagram)
	if err != nil {
		return MapResponse{}, reply, err
	}
	return resp, reply, c.checkResult(op, resp.Result, resp.Epoch, reply)
}

// Transact sends any datagram that begins with a NAT-PMP header, with the client's
// retransmission schedule and in its turn in the queue. It returns, unchanged, the
// first datagram from the gateway that has the opcode of the response.
func (c *Client) Transact(ctx context.Context, request []byte) ([]byte, error) {
	h, err := ParseHeader(request)
	if err != nil {
		return nil, fmt.Errorf("natpmp: %w: %w", backends.ErrInvalid, err)
	}
	reply, err := c.send(ctx, h.Opcode, port5351.Transaction{
		Request: request,
		Match: func(b []byte) port5351.Match {
			if r, err := ParseHeader(b); err == nil && r.Version == h.Version && r.Opcode == h.Opcode|OpResponse {
				return port5351.Exact
			}
			return match(b, h.Opcode, len(b)+1, 0)
		},
	})
	return reply.Datagram, err
}

// do sends a request, and converts error responses without a payload to Go errors.
// If a gateway that supports this version rejects this version, the response is
// probably a late reply to another request, for example to a retransmitted PCP
// request. The same applies to a version that is neither this one nor PCP's. Such a
// response is accepted only if it is repeated.
func (c *Client) do(ctx context.Context, op Opcode, tx port5351.Transaction) (port5351.Reply, error) {
	tx.Match = port5351.RequireRepeats(tx.Match, func(b []byte) bool {
		r, err := ParseErrorResponse(b)
		return err == nil && r.Version != pcpVersion && (r.Version != Version || r.Result == UnsupportedVersion)
	})
	reply, err := c.send(ctx, op, tx)
	if err != nil {
		return reply, err
	}
	r, err := ParseErrorResponse(reply.Datagram)
	size := mapResponseSize
	if op == OpExternalAddr {
		size = externalAddrResponseSize
	}
	switch {
	case err != nil:
		return reply, fmt.Errorf("natpmp: %w: %w", backends.ErrMalformed, err)
	case r.Version != Version:
		return reply, &VersionError{Version: r.Version}
	case r.Result == UnsupportedVersion || r.Result == UnsupportedOpcode || r.Result != Success && len(reply.Datagram) < size:
		return reply, &ResultError{Op: op, Code: r.Result, Response: reply.Datagram}
	}
	return reply, nil
}

// send sends a request with the client's retransmission schedule, unless it has its own.
func (c *Client) send(ctx context.Context, op Opcode, tx port5351.Transaction) (port5351.Reply, error) {
	if tx.Wait == nil {
		tx.Wait = c.wait
	}
	reply, err := c.session.Do(ctx, tx)
	if err != nil {
		c.log.Debug("natpmp: request failed", "op", op, "gateway", c.config.Gateway, "err", err)
		if !errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
			err = fmt.Errorf("waiting for %v: %w", c.config.Gateway, err)
		}
		return reply, fmt.Errorf("natpmp: %w", err)
	}
	if c.log.Enabled(ctx, slog.LevelDebug) {
		c.logReply(op, reply)
	}
	return reply, nil
}

func (c *Client) logReply(op Opcode, reply port5351.Reply) {
	c.log.Debug("natpmp: reply received", "op", op, "gateway", c.config.Gateway,
		"took", reply.Received.Sub(reply.Sent), "response", fmt.Sprintf("%x", reply.Datagram))
}

// wait is the schedule of RFC 6886 section 3.1, with the values of the config.
func (c *Client) wait(n int) (time.Duration, bool) {
	if n >= c.config.Transmissions {
		return 0, false
	}
	limit := cmp.Or(c.config.LongestWait, time.Hour) // so that a schedule of hundreds of requests does not overflow
	wait := c.config.FirstWait
	for range n {
		wait = min(2*wait, limit)
	}
	return min(wait, limit), true
}

// checkResult records the epoch of a complete response, and converts a refusal to a
// Go error.
func (c *Client) checkResult(op Opcode, code ResultCode, epoch time.Duration, reply port5351.Reply) error {
	c.session.ObserveNATPMP(epoch, reply)
	if code != Success {
		return &ResultError{Op: op, Code: code, Response: reply.Datagram}
	}
	return nil
}

// hasOwnPort reports whether a gateway of a VPN provider may have sent a response. Its
// client has one port, with the same number on both sides, and only the lifetime of
// the request has an effect. Internal port 0 means this number. The response to a
// deletion may have no external port. Some gateways truncate both ports to eight bits,
// so small ports do not count.
func hasOwnPort(b []byte) bool {
	const maxTruncated = 255
	r, err := ParseMapResponse(b)
	return err == nil && r.Result == Success &&
		(r.InternalPort == 0 || r.InternalPort > maxTruncated && (r.InternalPort == r.ExternalPort || r.ExternalPort == 0 && r.Lifetime == 0))
}

// isAmbiguous reports whether a response to a map request may answer a request for
// another port: it names another port, or it is a refusal without a port. A success
// with internal port 0 is the same for all requests, and so is a refusal of the
// version or the opcode.
func isAmbiguous(b []byte, internalPort uint16) bool {
	h, err := ParseHeader(b)
	if err != nil || h.Version != Version || h.Result == UnsupportedVersion || h.Result == UnsupportedOpcode {
		return false
	}
	r, err := ParseMapResponse(b)
	return err != nil || r.InternalPort != internalPort && (r.InternalPort != 0 || r.Result != Success)
}

// match reports how well a datagram answers a request. The source address has been
// checked. A response of the right size with the right internal port is Exact.
// Responses with the gateway's own port, refusals of any size, and the responses of
// gateways that support another version, complete or truncated, are Possible.
func match(b []byte, op Opcode, size int, internalPort uint16) port5351.Match {
	h, err := ParseHeader(b)
	switch {
	case err != nil:
		return port5351.None
	case h.Version != Version:
		const pcpHeader = 24 // RFC 6887 section 7.2; the result is its fourth byte
		if h.Opcode&OpResponse != 0 && (len(b) < pcpHeader || b[3] == byte(UnsupportedVersion)) {
			return port5351.Possible
		}
	case h.Opcode == op|OpResponse && len(b) >= size && (size != mapResponseSize || binary.BigEndian.Uint16(b[8:]) == internalPort):
		return port5351.Exact
	case h.Opcode == op|OpResponse && (h.Result != Success || size == mapResponseSize && hasOwnPort(b)):
		return port5351.Possible
	case h.Opcode == 0 && len(b) == errorResponseSize && b[2] == 0 && b[3] == byte(UnsupportedVersion):
		return port5351.Possible // the form in the diagram of the standard, without the response bit
	}
	return port5351.None
}
