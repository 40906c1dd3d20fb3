package natpmp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Name is the name of the protocol, which Backend.String returns.
const Name = "natpmp"

// Backend implements [backends.Backend] and [backends.Watcher] with a Client.
type Backend struct {
	client      *Client
	externalAge time.Duration // maxExternalAge, except in tests

	mu           sync.Mutex
	external     netip.Addr // the last address that the gateway reported
	externalTime time.Time
	losses       int        // the session's number of losses of state at externalTime
	previous     netip.Addr // the address before external, until Watch has reported the change
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Checker = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New returns a backend for one gateway. It does no I/O. Its error wraps
// backends.ErrInvalid.
func New(config Config) (*Backend, error) {
	c, err := NewClient(config)
	if err != nil {
		return nil, err
	}
	return &Backend{client: c, externalAge: maxExternalAge}, nil
}

// String returns Name.
func (b *Backend) String() string { return Name }

// Client returns the underlying client, for functions that Backend does not have.
func (b *Backend) Client() *Client { return b.client }

// Close closes the client.
func (b *Backend) Close() error { return b.client.Close() }

// Supports returns nil, or an error that has the reason why NAT-PMP cannot express
// the request.
func (b *Backend) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("natpmp: %w", err)
	}
	if _, err := mapOpcode(r.Protocol); err != nil {
		return err
	}
	reason := ""
	internal, source := r.Internal.Addr().Unmap(), b.client.config.Source.Unmap()
	switch {
	case internal.IsValid() && !internal.Is4():
		reason = "it maps IPv4 only"
	case internal.IsValid() && !internal.IsUnspecified() && source.IsValid() && internal != source:
		reason = "it maps ports to the requesting host only"
	case r.Remote != netip.AddrPort{}:
		reason = "it cannot restrict the remote peer"
	case r.Lifetime == backends.Forever:
		reason = "it has no permanent mappings"
	case r.Exact && r.External.Addr().IsValid() && !r.External.Addr().IsUnspecified():
		reason = "it cannot choose the external address"
	default:
		return nil
	}
	return fmt.Errorf("natpmp: %w: %s", backends.ErrUnsupported, reason)
}

// Probe requests the external address without waiting in the queue. This is the
// smallest request that shows whether the gateway supports NAT-PMP.
func (b *Backend) Probe(ctx context.Context) error {
	r, err := b.client.Probe(ctx)
	if err == nil {
		b.recordExternal(r.Addr)
	}
	return err
}

// errChanged is returned by Check if the reply shows a change that Watch reports.
var errChanged = errors.New("natpmp: the gateway has restarted or has another external address")

// Check requests the external address, repeated at most once. The reply shows a restart
// and a new external address, which Watch then reports. NAT-PMP cannot look up a mapping,
// so Check never returns nil.
func (b *Backend) Check(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Check)
	if err := m.Check(); err != nil {
		return fmt.Errorf("natpmp: %w", err)
	}
	losses := b.client.session.Losses()
	r, err := b.client.externalAddr(ctx, port5351.Transaction{Wait: port5351.CheckWait})
	changed := false
	var refusal *ResultError
	switch {
	case err == nil:
		changed = b.recordExternal(r.Addr)
	case !errors.As(err, &refusal):
		return err
	}
	if changed || b.client.session.Losses() != losses {
		return errChanged
	}
	return fmt.Errorf("natpmp: %w: it cannot look up a mapping", backends.ErrUnsupported)
}

// ExternalAddr requests the gateway's external address.
func (b *Backend) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	r, err := b.client.ExternalAddr(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	b.recordExternal(r.Addr)
	return sanitizeAddr(r.Addr), nil
}

// Map requests a mapping. Gateways of VPN providers ignore the requested ports:
// they choose a port and forward it to the same port number on this host. Internal
// of the returned mapping then has that number.
//
// With Exact, Map deletes a mapping that has another external port, and fails with
// ErrConflict. If another program on this host already had mapped the same internal
// port, the gateway returns the mapping of that program, and Map deletes it: the
// protocol cannot distinguish the two.
func (b *Backend) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	if err := b.validate(ctx, r); err != nil {
		return backends.Mapping{}, err
	}
	external, err := b.recentExternal(ctx, r.Lifetime)
	if err != nil {
		return backends.Mapping{}, err
	}
	return b.mapPort(ctx, r, external)
}

// Renew requests the mapping again with its present external port, and then the
// external address. If the second reply is lost, the result has the last address
// that the gateway reported.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	if err := m.Check(); err != nil {
		return backends.Mapping{}, fmt.Errorf("natpmp: %w", err)
	}
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, netip.AddrPortFrom(m.Internal.Addr(), requestedPort(m)), m.External, m.Remote
	if err := b.validate(ctx, r); err != nil {
		return backends.Mapping{}, err
	}
	renewed, err := b.mapPort(ctx, r, netip.Addr{})
	if err == nil {
		renewed.External = netip.AddrPortFrom(b.externalOrPrevious(ctx, renewed.Lifetime, m.External.Addr()), renewed.External.Port())
	}
	return renewed, err
}

// validate returns an error if the protocol cannot express the request.
func (b *Backend) validate(ctx context.Context, r backends.Request) error {
	if err := b.Supports(r); err != nil {
		return err
	}
	return b.checkLocalHost(ctx, r.Internal.Addr())
}

func (b *Backend) mapPort(ctx context.Context, r backends.Request, external netip.Addr) (backends.Mapping, error) {
	resp, reply, err := b.client.mapPort(ctx, MapRequest{
		Protocol:     r.Protocol,
		InternalPort: r.Internal.Port(),
		ExternalPort: r.External.Port(),
		Lifetime:     cmp.Or(r.Lifetime, DefaultLifetime),
	})
	if err != nil {
		return backends.Mapping{}, err
	}
	internal := cmp.Or(resp.InternalPort, resp.ExternalPort) // 0: the gateway forwards to the same port number
	m := backends.Mapping{
		Backend:     Name,
		Gateway:     b.client.config.Gateway,
		Protocol:    r.Protocol,
		Internal:    netip.AddrPortFrom(reply.Local, internal),
		External:    netip.AddrPortFrom(external, resp.ExternalPort),
		Description: r.Description,
		Lifetime:    resp.Lifetime,
		Granted:     reply.Sent,
	}
	if resp.InternalPort != 0 && resp.InternalPort != r.Internal.Port() {
		m.Token = backends.NewToken(binary.BigEndian.AppendUint16(nil, r.Internal.Port()))
	}
	return m, b.rejectWrongPort(ctx, r, m)
}

// requestedPort returns the internal port in requests about a mapping. If the gateway
// reported another one, the Token has the port of the first request: a request for the
// reported port could concern the mapping of another program.
func requestedPort(m backends.Mapping) uint16 {
	if b := m.Token.Bytes(); len(b) == 2 {
		return binary.BigEndian.Uint16(b)
	}
	return m.Internal.Port()
}

// checkLocalHost returns an error if internal is not the local address that the
// gateway sees.
func (b *Backend) checkLocalHost(ctx context.Context, internal netip.Addr) error {
	internal = internal.Unmap()
	if !internal.IsValid() || internal.IsUnspecified() {
		return nil
	}
	local, err := b.client.session.Local(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("natpmp: %w", err)
	case local.Addr() != internal:
		return fmt.Errorf("natpmp: %w: it maps ports to the requesting host, %v, not to %v", backends.ErrUnsupported, local.Addr(), internal)
	}
	return nil
}

// rejectWrongPort deletes a mapping that does not have the exact port of the
// request. The protocol itself has no exact requests.
func (b *Backend) rejectWrongPort(ctx context.Context, r backends.Request, m backends.Mapping) error {
	if !r.Exact || m.External.Port() == r.External.Port() {
		return nil
	}
	conflict := fmt.Errorf("natpmp: %w: the gateway granted port %d instead of %d",
		backends.ErrConflict, m.External.Port(), r.External.Port())
	if err := b.Unmap(ctx, m); err != nil {
		return fmt.Errorf("%w; the granted mapping was not deleted and lasts for %v: %w", conflict, m.Lifetime, err)
	}
	return conflict
}

// Unmap deletes the mapping. It succeeds if the gateway has no such mapping.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	if err := m.Check(); err != nil {
		return fmt.Errorf("natpmp: %w", err)
	}
	return b.client.Unmap(ctx, m.Protocol, requestedPort(m))
}

// maxExternalAge is the maximum age of an external address that is used for a new
// or renewed mapping. The address is requested again earlier if the gateway has lost
// its state. The context can require a newer address.
const maxExternalAge = time.Minute

// maxExternalAge returns the maximum age for a mapping with the lifetime: mappings that are
// renewed often show a change of the address sooner.
func (b *Backend) maxExternalAge(lifetime time.Duration) time.Duration {
	const part = 4
	return min(b.externalAge, cmp.Or(lifetime, DefaultLifetime)/part)
}

// recentExternal returns the external address for a mapping with the lifetime, or the zero Addr
// if the gateway refuses to report it. The refusal is not an error, because such a
// gateway may still create mappings.
func (b *Backend) recentExternal(ctx context.Context, lifetime time.Duration) (netip.Addr, error) {
	b.mu.Lock()
	external, received, losses := b.external, b.externalTime, b.losses
	b.mu.Unlock()
	if !received.IsZero() && time.Since(received) < b.maxExternalAge(lifetime) && losses == b.client.session.Losses() && ctxsync.IsFresh(ctx, received) {
		return sanitizeAddr(external), nil
	}
	r, err := b.client.ExternalAddr(ctx)
	var refusal *ResultError
	switch {
	case errors.As(err, &refusal):
		return netip.Addr{}, nil
	case err != nil:
		return netip.Addr{}, err
	}
	b.recordExternal(r.Addr)
	return sanitizeAddr(r.Addr), nil
}

// externalTimeout is how long Renew waits for the external address. The mapping is
// renewed already.
const externalTimeout = 2 * time.Second

// externalOrPrevious is recentExternal with a fallback. If the gateway does not
// reply, it returns the last reported address or, if there is none, the previous
// address of the mapping.
func (b *Backend) externalOrPrevious(ctx context.Context, lifetime time.Duration, previous netip.Addr) netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, externalTimeout)
	defer cancel()
	external, err := b.recentExternal(ctx, lifetime)
	if err == nil {
		return external
	}
	if last := sanitizeAddr(b.lastExternal()); last.IsValid() {
		return last
	}
	return previous
}

// recordExternal records the address that the gateway just reported. If it differs from the
// last one, recordExternal sends a hint to Watch and returns true.
func (b *Backend) recordExternal(external netip.Addr) (changed bool) {
	losses := b.client.session.Losses()
	b.mu.Lock()
	before := b.external
	changed = before.IsValid() && before != external
	b.external, b.externalTime, b.losses = external, time.Now(), losses
	if changed && !b.previous.IsValid() {
		b.previous = before
	}
	b.mu.Unlock()
	if changed {
		b.client.session.SendHint(port5351.Hint{Reason: "the gateway reported another external address"})
	}
	return changed
}

// takeChange returns the external address that Watch has reported last, and the present one.
// It returns zero values if the gateway reports no address at the moment.
func (b *Backend) takeChange() (previous, current netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.externalTime.IsZero() {
		return netip.Addr{}, netip.Addr{}
	}
	previous = b.previous
	if !previous.IsValid() {
		previous = b.external
	}
	b.previous = netip.Addr{}
	return previous, b.external
}

// sanitizeAddr returns the zero Addr for 0.0.0.0, which means that the gateway has
// no address, and for addresses that no gateway can have.
func sanitizeAddr(a netip.Addr) netip.Addr { return backends.HostAddr(a) }
