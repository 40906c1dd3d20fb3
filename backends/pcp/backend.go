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

// Name is what Backend.String returns.
const Name = "pcp"

// Backend is a Client that meets the contract of package backends. The Token
// of its mappings is the nonce.
type Backend struct {
	client        *Client
	key           [sha256.Size]byte // of nonces that only this Backend knows
	refusals      refusals
	noDescription atomic.Bool // the server refuses descriptions

	mu      sync.Mutex
	granted map[Nonce]netip.AddrPort // what mapping updates are compared with
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// New returns a backend for one server. It does no I/O; its error wraps
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

// Client returns the client beneath, for what the contract does not have.
func (b *Backend) Client() *Client { return b.client }

// Close closes the client.
func (b *Backend) Close() error { return b.client.Close() }

// Probe asks whether the server speaks PCP: see [Client.Probe].
func (b *Backend) Probe(ctx context.Context) error { return b.client.Probe(ctx) }

// Supports says why PCP cannot express a request, if so. What the server at
// hand can do, it tells when asked.
func (b *Backend) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("pcp: %w", err)
	}
	is4 := b.client.config.Gateway.Addr().Is4()
	for _, addr := range []netip.Addr{r.Internal.Addr(), r.Remote.Addr()} {
		if addr.IsValid() && addr.Unmap().Is4() != is4 {
			return fmt.Errorf("pcp: %w: %v is not of the family of the gateway %v", backends.ErrUnsupported, addr, b.client.config.Gateway.Addr())
		}
	}
	return nil
}

// ExternalAddr finds the external address by a mapping that it makes for a
// moment: the protocol has no question for it. Over IPv6 it is the address of
// this host that the gateway lets through.
func (b *Backend) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", ":0") // nobody else is to get what comes in
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
		b.client.log.Warn("pcp: a mapping stays for its lifetime", "lifetime", m.Lifetime, "err", err)
	}
	return m.External.Addr(), nil
}

// Map asks for a mapping. With Exact it tells the server to fail rather than
// give another port, and takes back what a server gives that does not listen.
// With Remote, the server is told to let nobody else in: a server that does not
// know filters refuses, but common ones accept the filter and let everybody in.
func (b *Backend) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	return b.mapPort(ctx, r, Nonce{})
}

// Renew asks for the mapping again, with its nonce, wishing for the address and
// port that it has.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	nonce, err := b.mappingNonce(ctx, m)
	if err != nil {
		return backends.Mapping{}, err
	}
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, m.Internal, m.External, m.Remote
	if r.Exact { // about the port: the address may have changed
		r.External = netip.AddrPortFrom(netip.Addr{}, m.External.Port())
	}
	return b.mapPort(ctx, r, nonce)
}

// mappingNonce is the secret of a mapping that somebody made.
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

// deriveNonce makes the nonce of a mapping to a host. However this host is named, it
// is the same one, and it is the same each time: a request that got no answer may
// have been granted, and then the server takes no other nonce while that lasts.
// Where only this Backend needs to know it, what admits another peer has another,
// lest the filters add up.
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

// local is the address that requests leave from.
func (b *Backend) local(ctx context.Context) (netip.Addr, error) {
	local, err := b.client.session.Local(ctx)
	if err != nil {
		return netip.Addr{}, b.client.wrapError(ctx, OpMap, err)
	}
	return local.WithZone(""), nil
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
	resp, reply, err := b.sendMap(ctx, newMapRequest(r, local, nonce, b.client.config.Nonce != nil))
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
	if err := b.rejectWrongPort(ctx, r, m); err != nil {
		return backends.Mapping{}, err
	}
	b.recordGrant(resp.Nonce, m.External)
	return m, nil
}

// newMapRequest is the request on the wire. Filters add up, so that those of an
// earlier request have to go first. Where nobody is to be kept out, there are
// such only if the nonce is that of a mapping that another process made.
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

// thirdParty is the host to map for, where it is not this one.
func thirdParty(r backends.Request, local netip.Addr) netip.Addr {
	addr := r.Internal.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() || addr == local {
		return netip.Addr{}
	}
	return addr
}

// wireDescription makes a description that any server can store: RFC 7220 promises
// room for 128 bytes.
func wireDescription(s string) string {
	const maxSize = 128
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) > maxSize {
		s = strings.ToValidUTF8(s[:maxSize], "")
	}
	return s
}

// sendMap sends a request, and again without options that the server does not
// know or cannot read and that can be done without: who prefers failure can
// compare, and a description is for people. Common servers refuse requests with
// a description, although RFC 7220 makes it optional to process: such a one is
// spared it from then on.
func (b *Backend) sendMap(ctx context.Context, q MapRequest) (MapResponse, port5351.Reply, error) {
	if b.noDescription.Load() {
		q.Options.Description = ""
	}
	resp, reply, err := b.client.mapPort(ctx, q)
	for _, drop := range []func(*Options) bool{dropDescription, dropFilterReset, dropPreferFailure} {
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

// dropFilterReset does without taking filters away that are most likely not there.
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

// isOptionError reports whether a request without options may fare better.
func (c ResultCode) isOptionError() bool {
	return c == UnsupportedOption || c == MalformedOption || c == MalformedRequest
}

// recordRefusal remembers a refusal, and says what can be read in it beside its code:
// some servers put their own external address into it.
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

// rejectWrongPort undoes a mapping that is not what the request insists on.
func (b *Backend) rejectWrongPort(ctx context.Context, r backends.Request, m backends.Mapping) error {
	requested := r.External
	if !r.Exact || m.External.Port() == requested.Port() && (!requested.Addr().IsValid() || requested.Addr().IsUnspecified() || requested.Addr() == m.External.Addr()) {
		return nil
	}
	conflict := fmt.Errorf("pcp: %w: the gateway gives %v in place of port %d", backends.ErrConflict, m.External, requested.Port())
	if err := b.Unmap(ctx, m); err != nil {
		return fmt.Errorf("%w; and the mapping in its place stays for %v: %w", conflict, m.Lifetime, err)
	}
	return conflict
}

// Unmap deletes the mapping. Where the server has none, it succeeds.
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
	case refusal.Code == NoResources:
		return nil // what a common server answers where it has no such mapping
	case refusal.Code == NotAuthorized && !m.Token.IsZero() && local.Is6():
		return b.shorten(ctx, m, nonce, third, err)
	}
	return err
}

// shorten shortens a pinhole of ours that the server does not delete: miniupnpd
// 2.3.1 on nftables forgets the nonce of a pinhole when it is renewed, and then
// refuses to delete it, but lets it be shortened.
func (b *Backend) shorten(ctx context.Context, m backends.Mapping, nonce Nonce, third netip.Addr, unmapErr error) error {
	resp, _, err := b.client.mapPort(ctx, MapRequest{
		Nonce: nonce, Protocol: m.Protocol, InternalPort: m.Internal.Port(), Lifetime: time.Second,
		ExternalPort: m.External.Port(), External: m.External.Addr(), Options: Options{ThirdParty: third},
	})
	if err != nil {
		return unmapErr
	}
	b.client.log.Info("pcp: a mapping cannot be deleted, and was shortened", "lifetime", resp.Lifetime)
	return nil
}

// sanitizeAddr makes an unspecified address the zero Addr, and what no gateway can have.
// An IPv6 gateway tells this host's own address, which is loopback where it is.
func (b *Backend) sanitizeAddr(a netip.Addr) netip.Addr {
	if a.IsLoopback() && b.client.config.Gateway.Addr().Is6() {
		return a
	}
	return backends.HostAddr(a)
}

// maxGranted bounds what is remembered of mappings that nobody deletes.
const maxGranted = 1 << 16

func (b *Backend) recordGrant(n Nonce, external netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.granted) >= maxGranted {
		clear(b.granted)
	}
	b.granted[n] = external
}

// How long a refusal is taken to last: what the server says, but no less and no
// more than this (RFC 6887, section 8.3). Common servers say 0 where they mean
// long.
const (
	minShortRefusal = 30 * time.Second
	minLongRefusal  = 5 * time.Minute
	maxRefusal      = 30 * time.Minute
)

// cachedRefusal is a refusal that still lasts.
type cachedRefusal struct {
	until time.Time
	err   error
}

// refusalKey is what makes requests the same.
type refusalKey struct {
	protocol backends.Protocol
	internal netip.AddrPort
	external netip.AddrPort
	exact    bool
	remote   netip.AddrPort
}

func keyOf(r backends.Request) refusalKey {
	return refusalKey{r.Protocol, r.Internal, r.External, r.Exact, r.Remote}
}

// maxRefusals bounds the refusals that are remembered.
const maxRefusals = 1024

// refusals are the refusals that last. The same request is not sent again in their
// time.
type refusals struct {
	mu    sync.Mutex
	byKey map[refusalKey]cachedRefusal
}

// check returns the refusal of a request, while it lasts.
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
	return fmt.Errorf("%w (refused a while ago; not asked again for %v)", cached.err, cached.until.Sub(now).Round(time.Second))
}

// add remembers a refusal.
func (r *refusals) add(request backends.Request, refusal *ResultError, err error, now time.Time) {
	minimum := minShortRefusal
	if refusal.Code.isLongLived() {
		minimum = minLongRefusal
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byKey == nil || len(r.byKey) >= maxRefusals {
		r.byKey = map[refusalKey]cachedRefusal{}
	}
	r.byKey[keyOf(request)] = cachedRefusal{now.Add(min(max(refusal.Lifetime, minimum), maxRefusal)), err}
}

// clear drops all refusals: the server has changed.
func (r *refusals) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byKey = nil
}

// isLongLived reports whether the standard has the code last isLongLived (RFC 6887, section 7.4).
func (c ResultCode) isLongLived() bool {
	switch c {
	case NetworkFailure, NoResources, UserExceededQuota, CannotProvideExternal:
		return false
	}
	return true
}
