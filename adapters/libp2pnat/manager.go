package libp2pnat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	basichost "github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/natforward/goforward/forward"
)

// firstLook is how long GetMapping waits for a port that has just been asked
// for: libp2p looks again only after five seconds. It is enough for a gateway
// that speaks PCP only, which is asked a moment after NAT-PMP.
const grantWait = 400 * time.Millisecond

// New returns what the option libp2p.NATManager wants: a function that makes a
// NATManager for a host. It may be called for several hosts.
//
// The Forwarder stays the caller's. Closing a host takes the host's mappings away,
// all at once, in the time of forward.Mapping.Close: two seconds by default if the
// gateway does not answer. Close the Forwarder after its hosts. With nil,
// each host gets a Forwarder of its own, with the defaults of forward.Config, that
// is closed with it. Either way, the NATManager's Close, whose error libp2p
// logs, says what could not be taken away and is left to its lifetime.
func New(f *forward.Forwarder) func(network.Network) basichost.NATManager {
	return func(n network.Network) basichost.NATManager {
		m := newManager(n, f)
		m.start()
		return m
	}
}

var _ basichost.NATManager = (*manager)(nil)

// manager forwards the ports of a host's listeners. It has no goroutine but to
// take mappings away.
type manager struct {
	network       network.Network
	forwarder     *forward.Forwarder
	ownsForwarder bool          // the Forwarder is
	grantWait     time.Duration // firstLook
	closeOnce     func() error

	mu        sync.Mutex
	closed    bool
	entries   map[endpoint]mappingEntry
	deleteErr error          // the last mapping that could not be taken away
	deletions sync.WaitGroup // mappings; none is added once closed
}

// forwarded is an endpoint that the gateway is asked for.
type mappingEntry struct {
	mapping   *forward.Mapping
	waitUntil time.Time // until when GetMapping waits for it
}

func newManager(n network.Network, f *forward.Forwarder) *manager {
	m := &manager{network: n, forwarder: f, grantWait: grantWait, entries: map[endpoint]mappingEntry{}}
	if f == nil {
		m.ownsForwarder = true
		m.forwarder, _ = forward.New(&forward.Config{Description: "libp2p"}) // which is valid
	}
	m.closeOnce = sync.OnceValue(m.shutdown)
	return m
}

// start follows the network's listeners.
func (m *manager) start() {
	m.network.Notify((*notifiee)(m))
	m.updateMappings() // with those that there were before
}

// GetMapping returns what the world reaches a listen address by: the same with
// the external address and port in place of its own, or nil while nothing is
// granted. It waits for a moment where the port has just been asked for.
func (m *manager) GetMapping(listen ma.Multiaddr) ma.Multiaddr {
	e, suffix, ok := parseListenAddr(listen)
	if !ok {
		return nil
	}
	m.mu.Lock()
	entry, ok := m.entries[e]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), entry.waitUntil)
	defer cancel()
	_ = entry.mapping.Wait(ctx) // what it came to, External tells
	return e.externalMultiaddr(entry.mapping.External().AddrPort, suffix)
}

// HasDiscoveredNAT reports whether a gateway now forwards a port of the host.
func (m *manager) HasDiscoveredNAT() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, entry := range m.entries {
		if backend := entry.mapping.Backend(); backend != "" && backend != "direct" {
			return true
		}
	}
	return false
}

// sync makes what is forwarded be what is listened on. It does no I/O: the
// network waits for it. The lock is held while looking, so that no older look
// comes after a newer one.
func (m *manager) updateMappings() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	listening := map[endpoint]bool{}
	for _, listen := range m.network.ListenAddresses() {
		if e, _, ok := parseListenAddr(listen); ok {
			listening[e] = true
		}
	}
	for e := range listening {
		m.addMapping(e)
	}
	for e, entry := range m.entries {
		if !listening[e] {
			delete(m.entries, e)
			m.deleteMapping(entry.mapping)
		}
	}
}

// open asks for an endpoint that is not held yet. It fails where the Forwarder
// is closed, which its owner knows. m.mu is held.
func (m *manager) addMapping(e endpoint) {
	if _, ok := m.entries[e]; ok {
		return
	}
	opts := []forward.Option{forward.Protocol(e.protocol, e.port), forward.Background(), forward.NoDefault()}
	if e.addr.IsValid() {
		opts = append(opts, forward.To(netip.AddrPortFrom(e.addr, e.port)))
	}
	mapping, err := m.forwarder.Enable(context.Background(), opts...) // bounds nothing: it returns at once
	if err != nil {
		return
	}
	m.entries[e] = mappingEntry{mapping, time.Now().Add(m.grantWait)}
}

// drop takes a mapping away, which Close waits for. m.mu is held.
func (m *manager) deleteMapping(mapping *forward.Mapping) {
	m.deletions.Go(func() {
		if err := mapping.Close(); err != nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.deleteErr = err
		}
	})
}

// Close takes all mappings away. A second call returns what the first did.
func (m *manager) Close() error { return m.closeOnce() }

func (m *manager) shutdown() error {
	m.mu.Lock()
	m.closed = true
	for e, entry := range m.entries {
		delete(m.entries, e)
		m.deleteMapping(entry.mapping)
	}
	m.mu.Unlock()
	m.network.StopNotify((*notifiee)(m)) // not under the lock: it waits for those that wait for it
	var err error
	if m.ownsForwarder {
		err = m.forwarder.Close() // bounds the rest
	}
	m.deletions.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(err, m.deleteErr)
}

// notifiee is the manager as the network sees it.
type notifiee manager

var _ network.Notifiee = (*notifiee)(nil)

func (n *notifiee) Listen(network.Network, ma.Multiaddr)       { (*manager)(n).updateMappings() }
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr)  { (*manager)(n).updateMappings() }
func (n *notifiee) Connected(network.Network, network.Conn)    {}
func (n *notifiee) Disconnected(network.Network, network.Conn) {}
