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

// DefaultLifetime is the lifetime that RFC 6886 section 3.3 recommends to ask for.
const DefaultLifetime = 2 * time.Hour

// The retransmission schedule of RFC 6886 section 3.1: nine requests, the waits
// after them doubling from 250 ms, so that a silent gateway costs 127.75 s.
const (
	DefaultTransmissions = 9
	DefaultFirstWait     = 250 * time.Millisecond
)

// Config says which gateway a Client talks to, and how.
type Config struct {
	// Gateway is the gateway's internal address. Required; port 0 is [Port].
	Gateway netip.AddrPort
	// Interface is the interface to leave by, where the OS lets us choose. Empty:
	// the kernel's choice.
	Interface string
	// Source is the local address to send from, which is the one that gets the
	// mappings. The zero Addr: the kernel's choice.
	Source netip.Addr
	// Transmissions is how often a request is sent before the gateway counts as
	// silent. Zero: DefaultTransmissions.
	Transmissions int
	// FirstWait is how long the first request waits for its answer; each later
	// one waits twice as long as the one before. Zero: DefaultFirstWait.
	FirstWait time.Duration
	// LongestWait bounds those waits: mappings that last seconds cannot wait for
	// minutes. Zero: nothing does.
	LongestWait time.Duration
	// Announce is where announcements are listened for, while somebody calls
	// Watch. The zero value: 224.0.0.1:5350.
	Announce netip.AddrPort
	// Logger is told of each request and answer, at debug level. Nil: nobody.
	Logger *slog.Logger
}

// Client asks one gateway. Its methods may be called by several goroutines at
// once; requests of the whole process to one gateway go out one after another.
type Client struct {
	config  Config
	session *port5351.Session
	log     *slog.Logger
}

// NewClient checks the config. It does no I/O. Its error wraps
// backends.ErrInvalid.
func NewClient(config Config) (*Client, error) {
	switch gw := config.Gateway.Addr().Unmap(); {
	case gw.IsValid() && !gw.Is4():
		return nil, fmt.Errorf("natpmp: %w: NAT-PMP is for IPv4, the gateway %v is not", backends.ErrInvalid, gw)
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

// Close ends the calls under way, with net.ErrClosed, and waits for them. It
// deletes no mapping. A second call does nothing.
func (c *Client) Close() error {
	c.session.Close()
	return nil
}

// Gateway returns the address and port that requests go to.
func (c *Client) Gateway() netip.AddrPort { return c.config.Gateway }

// ExternalAddr asks for the gateway's external address (RFC 6886, section
// 3.2). A refusal is a *[ResultError]; silence wraps backends.ErrNoReply.
func (c *Client) ExternalAddr(ctx context.Context) (ExternalAddrResponse, error) {
	return c.externalAddr(ctx, false)
}

// Probe is ExternalAddr out of turn: it does not wait until other requests of
// the process to the gateway are done.
func (c *Client) Probe(ctx context.Context) (ExternalAddrResponse, error) {
	return c.externalAddr(ctx, true)
}

func (c *Client) externalAddr(ctx context.Context, probe bool) (ExternalAddrResponse, error) {
	request, _ := ExternalAddrRequest{}.MarshalBinary()
	reply, err := c.do(ctx, OpExternalAddr, port5351.Transaction{
		Request: request, Probe: probe,
		Match: func(b []byte) port5351.Match { return match(b, OpExternalAddr, externalAddrResponseSize, 0) },
	})
	if err != nil {
		return ExternalAddrResponse{}, err
	}
	r, err := ParseExternalAddrResponse(reply.Datagram)
	if err != nil {
		return ExternalAddrResponse{}, err
	}
	return r, c.checkResult(OpExternalAddr, r.Result, r.Epoch, reply)
}

// Map asks for a mapping, or for more of its lifetime (RFC 6886, section 3.3).
// Lifetime 0 is DefaultLifetime. Another port than the wish is success. An
// internal port 0 fails with backends.ErrInvalid, a refusal is a *[ResultError],
// and silence wraps backends.ErrNoReply.
func (c *Client) Map(ctx context.Context, r MapRequest) (MapResponse, error) {
	r.Lifetime = cmp.Or(r.Lifetime, DefaultLifetime)
	resp, _, err := c.mapPort(ctx, r)
	return resp, err
}

// Unmap deletes the host's mapping of an internal port (RFC 6886, section
// 3.4). Where there is none, it succeeds. An internal port 0 fails with
// backends.ErrInvalid.
func (c *Client) Unmap(ctx context.Context, p backends.Protocol, internalPort uint16) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	_, _, err := c.mapPort(ctx, MapRequest{Protocol: p, InternalPort: internalPort})
	return err
}

// UnmapAll deletes all of the host's mappings of a protocol, also those of
// other programs on the host; common gateways delete those of the other
// protocol too (RFC 6886, section 3.4).
func (c *Client) UnmapAll(ctx context.Context, p backends.Protocol) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	_, _, err := c.transactMap(ctx, MapRequest{Protocol: p})
	return err
}

// mapPort is transactMap for one port.
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
	reply, err := c.do(ctx, op, port5351.Transaction{
		Request: request,
		Match: port5351.RequireRepeats(
			func(b []byte) port5351.Match { return match(b, op, mapResponseSize, r.InternalPort) },
			func(b []byte) bool {
				resp, err := ParseMapResponse(b)
				return err == nil && resp.Result == Success && (resp.Lifetime == 0) != (r.Lifetime == 0)
			}),
	})
	if err != nil {
		return MapResponse{}, reply, err
	}
	resp, err := ParseMapResponse(reply.Datagram)
	if err != nil {
		return MapResponse{}, reply, err
	}
	return resp, reply, c.checkResult(op, resp.Result, resp.Epoch, reply)
}

// Transact sends any datagram that begins with a NAT-PMP header by the
// client's schedule and in its turn, and returns the first datagram from the
// gateway that has the opcode of its answer, as it came.
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

// do is exchange, with errors that have no payload made Go errors. That a
// gateway of this version does not know this version, it says to others: the
// answer to a PCP request that was repeated can come late.
func (c *Client) do(ctx context.Context, op Opcode, tx port5351.Transaction) (port5351.Reply, error) {
	tx.Match = port5351.RequireRepeats(tx.Match, func(b []byte) bool {
		r, err := ParseErrorResponse(b)
		return err == nil && r.Version == Version && r.Result == UnsupportedVersion
	})
	reply, err := c.send(ctx, op, tx)
	if err != nil {
		return reply, err
	}
	r, err := ParseErrorResponse(reply.Datagram)
	switch {
	case err != nil:
		return reply, fmt.Errorf("natpmp: %w: %w", backends.ErrMalformed, err)
	case r.Version != Version:
		return reply, &VersionError{Version: r.Version}
	case r.Result == UnsupportedVersion || r.Result == UnsupportedOpcode:
		return reply, &ResultError{Op: op, Code: r.Result, Response: reply.Datagram}
	}
	return reply, nil
}

// send sends a request by the client's schedule.
func (c *Client) send(ctx context.Context, op Opcode, tx port5351.Transaction) (port5351.Reply, error) {
	tx.Wait = c.wait
	reply, err := c.session.Do(ctx, tx)
	if err != nil {
		c.log.Debug("natpmp request failed", "op", op, "gateway", c.config.Gateway, "err", err)
		if !errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
			err = fmt.Errorf("waiting for %v: %w", c.config.Gateway, err)
		}
		return reply, fmt.Errorf("natpmp: %w", err)
	}
	c.log.Debug("natpmp request answered", "op", op, "gateway", c.config.Gateway,
		"took", reply.Received.Sub(reply.Sent), "response", fmt.Sprintf("%x", reply.Datagram))
	return reply, nil
}

// wait is the schedule of RFC 6886 section 3.1, with the client's numbers.
func (c *Client) wait(n int) (time.Duration, bool) {
	if n >= c.config.Transmissions {
		return 0, false
	}
	limit := cmp.Or(c.config.LongestWait, time.Hour) // a schedule of hundreds of requests must not overflow
	wait := c.config.FirstWait
	for range n {
		wait = min(2*wait, limit)
	}
	return min(wait, limit), true
}

// checkResult gives the epoch of a full response to the link, and makes a refusal a
// Go error.
func (c *Client) checkResult(op Opcode, code ResultCode, epoch time.Duration, reply port5351.Reply) error {
	c.session.ObserveNATPMP(epoch, reply)
	if code != Success {
		return &ResultError{Op: op, Code: code, Response: reply.Datagram}
	}
	return nil
}

// isVPNResponse reports whether a response does not say which internal port it is about.
// Those of VPN providers' gateways do not: a client has one port there, of the same
// number on both sides, and asks for nothing but its lifetime.
func isVPNResponse(b []byte) bool {
	r, err := ParseMapResponse(b)
	return err == nil && r.InternalPort == 0
}

// match judges whether a datagram answers a request. The link has checked the
// source. Exact is a response of the right size with the internal port; errors
// that carry no port, and the answers of gateways that speak another version
// (whole, or cut short as some send them), are possible answers to anything.
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
	case h.Opcode == op|OpResponse && len(b) >= size:
		switch {
		case size != mapResponseSize || binary.BigEndian.Uint16(b[8:]) == internalPort:
			return port5351.Exact
		case isVPNResponse(b):
			return port5351.Possible
		}
	case h.Opcode == op|OpResponse && (h.Result == UnsupportedVersion || h.Result == UnsupportedOpcode):
		return port5351.Possible
	case h.Opcode == 0 && len(b) == errorResponseSize && b[2] == 0 && b[3] == byte(UnsupportedVersion):
		return port5351.Possible // the form that the standard draws, without the response bit
	}
	return port5351.None
}
