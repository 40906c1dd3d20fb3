package pcp

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Name is the name of the protocol, which Backend.String returns.
const Name = "pcp"

// Backend implements [backends.Backend] and [backends.Watcher] with a Client. The
// Token of its mappings is the nonce.
type Backend struct {
	client        *Client
	key           [sha256.Size]byte // for nonces that only this Backend can compute
	refusals      refusals
	noDescription atomic.Bool // set if the server refuses descriptions
	noOptions     atomic.Bool // set if the server ignores requests with options

	mu      sync.Mutex
	granted map[Nonce]netip.AddrPort // the external endpoints, for comparison with mapping updates
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Checker = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New returns a backend for one server. It does no I/O. Its error wraps
// backends.ErrInvalid.
func New(config Config) (*Backend, error) {
	c, err := NewClient(config)
	if err != nil {
		return nil, err
	}
	b := &Backend{client: c, granted: map[Nonce]netip.AddrPort{}}
	_, _ = rand.Read(b.key[:]) // never fails
	return b, nil
}

// String returns Name.
func (b *Backend) String() string { return Name }

// Client returns the underlying client, for functions that Backend does not have.
func (b *Backend) Client() *Client { return b.client }

// Close closes the client.
func (b *Backend) Close() error { return b.client.Close() }

// Probe checks whether the server supports PCP: see [Client.Probe].
func (b *Backend) Probe(ctx context.Context) error { return b.client.Probe(ctx) }

// errChanged is returned by Check if the reply shows a change that Watch reports.
var errChanged = errors.New("pcp: the gateway has restarted")

// Check sends the same request as Probe, in its turn in the queue and repeated at most once.
// The epoch in the reply shows a restart, which Watch then reports. PCP cannot look up a
// mapping, so Check never returns nil.
func (b *Backend) Check(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Check)
	if err := m.Check(); err != nil {
		return fmt.Errorf("pcp: %w", err)
	}
	losses := b.client.session.Losses()
	if err := b.client.probe(ctx, port5351.Transaction{Wait: port5351.CheckWait}); err != nil {
		return err
	}
	if b.client.session.Losses() != losses {
		return errChanged
	}
	return fmt.Errorf("pcp: %w: it cannot look up a mapping", backends.ErrUnsupported)
}

// Supports returns nil, or an error that has the reason why PCP cannot express the
// request. The limits of the server are not known before a request is sent.
func (b *Backend) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("pcp: %w", err)
	}
	is4 := b.client.config.Gateway.Addr().Is4()
	for _, addr := range []netip.Addr{r.Internal.Addr(), r.Remote.Addr()} {
		if addr.IsValid() && addr.Unmap().Is4() != is4 {
			return fmt.Errorf("pcp: %w: %v is not of the same address family as the gateway %v", backends.ErrUnsupported, addr, b.client.config.Gateway.Addr())
		}
	}
	return nil
}

// ExternalAddr creates a short mapping to find the external address: the protocol
// has no request for it. Over IPv6, it is the address of this host that the gateway
// permits.
func (b *Backend) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", ":0") // so that no other program receives the packets for the mapping
	if err != nil {
		return netip.Addr{}, fmt.Errorf("pcp: %w", err)
	}
	defer func() { _ = pc.Close() }()
	local, err := netip.ParseAddrPort(pc.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("pcp: %w", err)
	}
	m, err := b.Map(ctx, backends.Request{
		Protocol: backends.UDP, Internal: netip.AddrPortFrom(netip.Addr{}, local.Port()), Lifetime: time.Minute,
	})
	if err != nil {
		return netip.Addr{}, err
	}
	if err := b.Unmap(ctx, m); err != nil {
		b.client.log.Warn("pcp: could not delete the mapping of ExternalAddr, which lasts for its lifetime", "lifetime", m.Lifetime, "err", err)
	}
	return m.External.Addr(), nil
}

// Map requests a mapping. With Exact, it sets PREFER_FAILURE, so that the server
// refuses the request rather than grants another port. If a server ignores this, Map deletes the
// mapping and fails.
//
// With Remote, the request has a filter that permits only this peer. A server that
// does not support filters refuses the request. Common servers accept the filter
// but still let in all peers.
func (b *Backend) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return b.mapPort(ctx, r, Nonce{})
}

// Renew requests the mapping again with its nonce, and suggests its present address
// and port.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	nonce, err := b.mappingNonce(ctx, m)
	if err != nil {
		return backends.Mapping{}, err
	}
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, m.Internal, m.External, m.Remote
	if r.Exact { // requires the port only: the address may have changed
		r.External = netip.AddrPortFrom(netip.Addr{}, m.External.Port())
	}
	return b.mapPort(ctx, r, nonce)
}

// mappingNonce returns the nonce of a mapping, from its token or computed.
func (b *Backend) mappingNonce(ctx context.Context, m backends.Mapping) (Nonce, error) {
	if err := m.Check(); err != nil {
		return Nonce{}, fmt.Errorf("pcp: %w", err)
	}
	switch token := m.Token.Bytes(); {
	case len(token) == len(Nonce{}):
		return Nonce(token), nil
	case len(token) == 0 && b.client.config.Nonce != nil:
		local, err := b.local(ctx)
		return b.deriveNonce(m.Protocol, m.Internal, m.Remote, local), err
	}
	return Nonce{}, fmt.Errorf("pcp: %w: a mapping without its nonce cannot be renewed or deleted", backends.ErrInvalid)
}

// deriveNonce computes the nonce of a mapping to a host. The unspecified address
// and the local address both mean this host and have the same nonce. The nonce is
// the same each time: a request without a reply may have been granted, and while
// that mapping lasts the server accepts no other nonce. If Config.Nonce is nil, the
// nonce also depends on the remote peer, so that the filters for different peers do
// not add up.
func (b *Backend) deriveNonce(p backends.Protocol, internal, remote netip.AddrPort, local netip.Addr) Nonce {
	addr := internal.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() || addr == local {
		addr = netip.Addr{}
	}
	internal = netip.AddrPortFrom(addr, internal.Port())
	if deriveFunc := b.client.config.Nonce; deriveFunc != nil {
		return deriveFunc(b.client.config.Gateway.Addr(), p, internal)
	}
	return DeriveNonce(append(b.key[:], remote.String()...), b.client.config.Gateway.Addr(), p, internal)
}

// local returns the address from which requests are sent.
func (b *Backend) local(ctx context.Context) (netip.Addr, error) {
	local, err := b.client.session.Local(ctx)
	if err != nil {
		return netip.Addr{}, b.client.wrapError(ctx, OpMap, err)
	}
	return local.Addr().WithZone(""), nil
}

func (b *Backend) mapPort(ctx context.Context, r backends.Request, nonce Nonce) (backends.Mapping, error) {
	if err := b.Supports(r); err != nil {
		return backends.Mapping{}, err
	}
	local, err := b.local(ctx)
	if err != nil {
		return backends.Mapping{}, err
	}
	if nonce == (Nonce{}) {
		nonce = b.deriveNonce(r.Protocol, r.Internal, r.Remote, local)
	}
	if err := b.refusals.check(r, time.Now()); err != nil {
		return backends.Mapping{}, err
	}
	q := newMapRequest(r, local, nonce, b.client.config.Nonce != nil)
	resp, reply, err := b.sendMap(ctx, q)
	if err != nil {
		return backends.Mapping{}, b.recordRefusal(r, err)
	}
	m := backends.Mapping{
		Backend:     Name,
		Gateway:     b.client.config.Gateway,
		Protocol:    r.Protocol,
		Internal:    netip.AddrPortFrom(firstValid(thirdParty(r, local), local), r.Internal.Port()),
		External:    netip.AddrPortFrom(b.sanitizeAddr(resp.External), resp.ExternalPort),
		Remote:      r.Remote,
		Description: r.Description,
		Lifetime:    resp.Lifetime,
		Granted:     reply.Sent,
		Token:       backends.NewToken(resp.Nonce[:]),
	}
	if r.Exact {
		if err := b.client.rejectWrongPort(ctx, q, resp); err != nil {
			return backends.Mapping{}, err
		}
	}
	b.recordGrant(resp.Nonce, m.External)
	return m, nil
}

// newMapRequest converts a request to a message. Filters add up on the server, so a
// zero filter first deletes those of earlier requests. If all peers are permitted,
// earlier filters exist only if another process created the mapping with the same
// nonce.
func newMapRequest(r backends.Request, local netip.Addr, nonce Nonce, derived bool) MapRequest {
	q := MapRequest{
		Lifetime: cmp.Or(r.Lifetime, DefaultLifetime), Nonce: nonce,
		Protocol: r.Protocol, InternalPort: r.Internal.Port(),
		ExternalPort: r.External.Port(), External: r.External.Addr(),
		Options: Options{
			ThirdParty:    thirdParty(r, local),
			PreferFailure: r.Exact,
			Description:   wireDescription(r.Description),
		},
	}
	if r.Remote.Addr().IsValid() {
		peer := r.Remote.Addr().Unmap().WithZone("")
		q.Options.Filters = []Filter{{}, {Prefix: netip.PrefixFrom(peer, peer.BitLen()), Port: r.Remote.Port()}}
	} else if derived {
		q.Options.Filters = []Filter{{}}
	}
	return q
}

// thirdParty returns the host to map for, or the zero Addr if it is this host.
func thirdParty(r backends.Request, local netip.Addr) netip.Addr {
	addr := r.Internal.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() || addr == local {
		return netip.Addr{}
	}
	return addr
}

// wireDescription returns a description that every server can store: RFC 7220
// guarantees 128 bytes.
func wireDescription(s string) string {
	const maxSize = 128
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) > maxSize {
		s = strings.ToValidUTF8(s[:maxSize], "")
	}
	return s
}

// maxWithOptions is how many times a request is sent with options that are not
// essential, if the server does not reply. mapPort ignores as many late refusals.
const maxWithOptions = 2

// dropOptional removes the options that are not essential. PREFER_FAILURE is not
// essential, because the client compares the ports, and a description is only for
// people.
var dropOptional = []func(*Options) bool{dropDescription, dropFilterReset, dropPreferFailure}

// sendMap sends a map request. If the server refuses an option that is not
// essential, it sends the request again without it; later requests to a server that
// refuses descriptions have none. If the server does not reply, it sends the request
// without all these options, and remembers whether the server replied then.
func (b *Backend) sendMap(ctx context.Context, q MapRequest) (MapResponse, port5351.Reply, error) {
	if b.noDescription.Load() {
		q.Options.Description = ""
	}
	essential, optional := q, false
	for _, drop := range dropOptional {
		optional = drop(&essential.Options) || optional
	}
	if b.noOptions.Load() {
		q, optional = essential, false
	}
	client := *b.client
	if optional {
		client.config.Transmissions = min(maxWithOptions, client.config.Transmissions)
	}
	resp, reply, err := client.mapPort(ctx, q)
	if optional && errors.Is(err, backends.ErrNoReply) && ctx.Err() == nil {
		resp, reply, err = b.client.mapPort(ctx, essential)
		b.noOptions.Store(reply.Datagram != nil)
		return resp, reply, err
	}
	for _, drop := range dropOptional {
		var refusal *ResultError
		if !errors.As(err, &refusal) || !refusal.Code.isOptionError() || !drop(&q.Options) {
			continue
		}
		resp, reply, err = b.client.mapPort(ctx, q)
		if err == nil && q.Options.Description == "" {
			b.noDescription.Store(true)
		}
	}
	return resp, reply, err
}

func dropDescription(o *Options) bool {
	present := o.Description != ""
	o.Description = ""
	return present
}

// dropFilterReset removes a filter list that only deletes earlier filters, which
// most likely do not exist.
func dropFilterReset(o *Options) bool {
	present := len(o.Filters) == 1 && o.Filters[0] == (Filter{})
	if present {
		o.Filters = nil
	}
	return present
}

func dropPreferFailure(o *Options) bool {
	present := o.PreferFailure
	o.PreferFailure = false
	return present
}

// isOptionError reports whether a request with fewer options may succeed.
func (c ResultCode) isOptionError() bool {
	return c == UnsupportedOption || c == MalformedOption || c == MalformedRequest
}

// recordRefusal caches a refusal. Some servers put their external address into a
// NoResources response. If that address is private or shared, recordRefusal adds it
// to the error, together with ErrPrivateWAN.
func (b *Backend) recordRefusal(r backends.Request, err error) error {
	var refusal *ResultError
	if !errors.As(err, &refusal) {
		return err
	}
	if gatewayAddr := refusal.External.Addr(); refusal.Code == NoResources && gatewayAddr.Is4() && !gatewayAddr.IsUnspecified() && gatewayAddr != r.External.Addr() {
		switch backends.ScopeOf(gatewayAddr) {
		case backends.ScopeShared:
			err = fmt.Errorf("%w: %w: %v, behind the provider's NAT", err, backends.ErrPrivateWAN, gatewayAddr)
		case backends.ScopePrivate:
			err = fmt.Errorf("%w: %w: %v, behind another router", err, backends.ErrPrivateWAN, gatewayAddr)
		}
	}
	b.refusals.add(r, refusal, err, time.Now())
	return err
}

// Unmap deletes the mapping. It succeeds if the server has no such mapping.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	nonce, err := b.mappingNonce(ctx, m)
	if err != nil {
		return err
	}
	local, err := b.local(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	delete(b.granted, nonce)
	b.mu.Unlock()
	third := thirdParty(backends.Request{Internal: m.Internal}, local)
	_, _, err = b.client.mapPort(ctx, MapRequest{
		Nonce: nonce, Protocol: m.Protocol, InternalPort: m.Internal.Port(), Options: Options{ThirdParty: third},
	})
	var refusal *ResultError
	switch {
	case !errors.As(err, &refusal):
		return err
	case refusal.Code == NotAuthorized && !m.Token.IsZero() && local.Is6():
		return b.shorten(ctx, m, nonce, third, err)
	}
	return err
}

// shorten reduces the lifetime of a pinhole that the server does not delete. When
// miniupnpd 2.3.1 on nftables renews a pinhole, it loses the nonce. It then refuses
// to delete the pinhole, but permits a shorter lifetime.
func (b *Backend) shorten(ctx context.Context, m backends.Mapping, nonce Nonce, third netip.Addr, unmapErr error) error {
	resp, _, err := b.client.mapPort(ctx, MapRequest{
		Nonce: nonce, Protocol: m.Protocol, InternalPort: m.Internal.Port(), Lifetime: time.Second,
		ExternalPort: m.External.Port(), External: m.External.Addr(), Options: Options{ThirdParty: third},
	})
	if err != nil {
		return unmapErr
	}
	b.client.log.Info("pcp: the server refused to delete a mapping, so its lifetime was shortened", "lifetime", resp.Lifetime)
	return nil
}

// sanitizeAddr returns the zero Addr for the unspecified address and for addresses
// that no gateway can have. An IPv6 gateway reports the address of this host, which
// is a loopback address if the gateway has one.
func (b *Backend) sanitizeAddr(a netip.Addr) netip.Addr {
	if a.IsLoopback() && b.client.config.Gateway.Addr().Is6() {
		return a
	}
	return backends.HostAddr(a)
}

// maxGranted limits the number of recorded mappings, because a caller may never
// delete them.
const maxGranted = 1 << 16

func (b *Backend) recordGrant(n Nonce, external netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.granted) >= maxGranted {
		clear(b.granted)
	}
	b.granted[n] = external
}

// How long a refusal is cached: for the lifetime in the response, within these
// limits (RFC 6887, section 8.3). The minimum is higher for the codes that the
// standard calls long-lifetime errors. Common servers send 0 even if the refusal is
// permanent.
const (
	minShortRefusal = 30 * time.Second
	minLongRefusal  = 5 * time.Minute
	maxRefusal      = 30 * time.Minute
)

// cachedRefusal is a refusal that has not expired.
type cachedRefusal struct {
	until time.Time
	err   error
}

// keyOf returns the fields of a request that must be equal for a cached refusal to
// apply.
func keyOf(r backends.Request) backends.Request {
	r.Lifetime, r.Description = 0, ""
	return r
}

// maxRefusals is the maximum number of cached refusals.
const maxRefusals = 1024

// refusals is the cache of refusals. Until a refusal expires, the same request is
// not sent again.
type refusals struct {
	mu    sync.Mutex
	byKey map[backends.Request]cachedRefusal
}

// check returns the cached refusal of a request, or nil.
func (r *refusals) check(request backends.Request, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := keyOf(request)
	cached, ok := r.byKey[key]
	switch {
	case !ok:
		return nil
	case !now.Before(cached.until):
		delete(r.byKey, key)
		return nil
	}
	return fmt.Errorf("%w (cached refusal; not sent again for %v)", cached.err, cached.until.Sub(now).Round(time.Second))
}

// add caches a refusal.
func (r *refusals) add(request backends.Request, refusal *ResultError, err error, now time.Time) {
	minimum := minShortRefusal
	if refusal.Code.isLongLived() {
		minimum = minLongRefusal
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byKey == nil || len(r.byKey) >= maxRefusals {
		r.byKey = map[backends.Request]cachedRefusal{}
	}
	r.byKey[keyOf(request)] = cachedRefusal{now.Add(min(max(refusal.Lifetime, minimum), maxRefusal)), err}
}

// clear deletes all cached refusals, because the server has changed.
func (r *refusals) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byKey = nil
}

// isLongLived reports whether the standard classifies the code as a long-lifetime
// error (RFC 6887, section 7.4).
func (c ResultCode) isLongLived() bool {
	switch c {
	case NetworkFailure, NoResources, UserExceededQuota, CannotProvideExternal:
		return false
	}
	return true
}
