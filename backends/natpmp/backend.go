package natpmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Name is what Backend.String returns.
const Name = "natpmp"

// Backend is a Client that meets the contract of package backends.
type Backend struct {
	client *Client

	mu           sync.Mutex
	external     netip.Addr // as the gateway last told
	externalTime time.Time
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New returns a backend for one gateway. It does no I/O; its error wraps
// backends.ErrInvalid.
func New(config Config) (*Backend, error) {
	c, err := NewClient(config)
	if err != nil {
		return nil, err
	}
	return &Backend{client: c}, nil
}

// String returns Name.
func (b *Backend) String() string { return Name }

// Client returns the client beneath, for what the contract does not have.
func (b *Backend) Client() *Client { return b.client }

// Close closes the client.
func (b *Backend) Close() error { return b.client.Close() }

// Supports says why NAT-PMP cannot express a request, if so.
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
		reason = "it maps to the host that asks, not to another"
	case r.Remote != netip.AddrPort{}:
		reason = "it cannot admit one peer only"
	case r.Lifetime == backends.Forever:
		reason = "it has no permanent mappings"
	case r.Exact && r.External.Addr().IsValid() && !r.External.Addr().IsUnspecified():
		reason = "it cannot choose the external address"
	default:
		return nil
	}
	return fmt.Errorf("natpmp: %w: %s", backends.ErrUnsupported, reason)
}

// Probe asks for the external address out of turn: the cheapest question that
// tells whether the gateway speaks NAT-PMP.
func (b *Backend) Probe(ctx context.Context) error {
	r, err := b.client.Probe(ctx)
	if err == nil {
		b.recordExternal(r.Addr, time.Now())
	}
	return err
}

// ExternalAddr asks the gateway for its external address.
func (b *Backend) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	r, err := b.client.ExternalAddr(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	b.recordExternal(r.Addr, time.Now())
	return sanitizeAddr(r.Addr), nil
}

// Map asks for a mapping. Gateways of VPN providers grant a port of their choice
// and forward it to the same number here, whatever was asked: then Internal has
// that. With Exact, it takes back one with another port and
// fails with ErrConflict. Where another program of this host had that very
// internal port mapped already, the gateway answers with its mapping, and that
// is what is taken back: the protocol does not tell the two apart.
func (b *Backend) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	if err := b.validate(ctx, r); err != nil {
		return backends.Mapping{}, err
	}
	external, err := b.recentExternal(ctx)
	if err != nil {
		return backends.Mapping{}, err
	}
	return b.mapPort(ctx, r, external)
}

// Renew asks for the mapping again, wishing for the port that it has, and then
// for the external address. Where that answer is lost, it is the address that
// the gateway last told.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	if err := m.Check(); err != nil {
		return backends.Mapping{}, fmt.Errorf("natpmp: %w", err)
	}
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, m.Internal, m.External, m.Remote
	if err := b.validate(ctx, r); err != nil {
		return backends.Mapping{}, err
	}
	renewed, err := b.mapPort(ctx, r, netip.Addr{})
	if err == nil {
		renewed.External = netip.AddrPortFrom(b.externalOrPrevious(ctx, m.External.Addr()), renewed.External.Port())
	}
	return renewed, err
}

// validate refuses what the protocol cannot do.
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
	internal := r.Internal.Port()
	if resp.InternalPort == 0 { // the gateway forwards to the same number, whatever was asked
		internal = resp.ExternalPort
	}
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
	return m, b.rejectWrongPort(ctx, r, m)
}

// checkLocalHost refuses to map to another address than the one that the gateway
// will see.
func (b *Backend) checkLocalHost(ctx context.Context, internal netip.Addr) error {
	internal = internal.Unmap()
	if !internal.IsValid() || internal.IsUnspecified() {
		return nil
	}
	local, err := b.client.session.Local(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("natpmp: %w", err)
	case local != internal:
		return fmt.Errorf("natpmp: %w: it maps to the host that asks, %v, not to %v", backends.ErrUnsupported, local, internal)
	}
	return nil
}

// rejectWrongPort undoes a mapping with another port than the request insists on: the
// protocol itself has only wishes.
func (b *Backend) rejectWrongPort(ctx context.Context, r backends.Request, m backends.Mapping) error {
	if !r.Exact || m.External.Port() == r.External.Port() {
		return nil
	}
	conflict := fmt.Errorf("natpmp: %w: the gateway gives port %d in place of %d",
		backends.ErrConflict, m.External.Port(), r.External.Port())
	if err := b.Unmap(ctx, m); err != nil {
		return fmt.Errorf("%w; and the mapping in its place stays for %v: %w", conflict, m.Lifetime, err)
	}
	return conflict
}

// Unmap deletes the mapping. Where the gateway has none, it succeeds.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	if err := m.Check(); err != nil {
		return fmt.Errorf("natpmp: %w", err)
	}
	return b.client.Unmap(ctx, m.Protocol, m.Internal.Port())
}

// maxExternalAge is how old a told external address may be to go with a mapping
// granted now: mappings that are made or renewed together ask once. A caller may want
// one that is fresh.
const maxExternalAge = time.Second

// recentExternal returns the external address for a mapping granted now, or
// the zero Addr where the gateway will not tell: its refusal to tell does not
// mean that it refuses to map, so only silence ends the call.
func (b *Backend) recentExternal(ctx context.Context) (netip.Addr, error) {
	b.mu.Lock()
	external, received := b.external, b.externalTime
	b.mu.Unlock()
	if !received.IsZero() && time.Since(received) < maxExternalAge && ctxsync.IsFresh(ctx, received) {
		return sanitizeAddr(external), nil
	}
	r, err := b.client.externalAddr(ctx, false)
	var refusal *ResultError
	switch {
	case errors.As(err, &refusal):
		return netip.Addr{}, nil
	case err != nil:
		return netip.Addr{}, err
	}
	b.recordExternal(r.Addr, time.Now())
	return sanitizeAddr(r.Addr), nil
}

// externalTimeout is how long a renewed mapping waits for its external address: it
// holds already.
const externalTimeout = 2 * time.Second

// externalOrPrevious is recentExternal, and where the gateway is silent what it told
// last, or else the address given.
func (b *Backend) externalOrPrevious(ctx context.Context, previous netip.Addr) netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, externalTimeout)
	defer cancel()
	external, err := b.recentExternal(ctx)
	if err == nil {
		return external
	}
	if last := sanitizeAddr(b.lastExternal()); last.IsValid() {
		return last
	}
	return previous
}

func (b *Backend) recordExternal(external netip.Addr, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.external, b.externalTime = external, at
}

// sanitizeAddr makes the 0.0.0.0 of a gateway that does not know its address the zero
// Addr, and what no gateway can have.
func sanitizeAddr(a netip.Addr) netip.Addr { return backends.HostAddr(a) }
