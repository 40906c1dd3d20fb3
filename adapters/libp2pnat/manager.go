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

// grantWait is how long GetMapping waits for the grant of a new mapping, because libp2p calls
// it again only after five seconds. It is long enough for a gateway that supports only PCP;
// the PCP request follows shortly after the NAT-PMP request.
const grantWait = 400 * time.Millisecond

// New returns the argument for the option libp2p.NATManager: a function that creates a
// NATManager for a host. It may be used for several hosts.
//
// The caller closes f, after its hosts. If f is nil, each host gets its own Forwarder, with
// the defaults of forward.Config and the description "libp2p". It is closed with the host.
//
// If a host is closed, all its mappings are deleted at the same time. This takes as long as
// forward.Mapping.Close: two seconds by default if the gateway does not reply. If mappings
// could not be deleted, the NATManager's Close returns an error, which libp2p logs. These
// mappings end with their lifetime.
func New(f *forward.Forwarder) func(network.Network) basichost.NATManager {
	return func(n network.Network) basichost.NATManager {
		m := newManager(n, f)
		m.start()
		return m
	}
}

var _ basichost.NATManager = (*manager)(nil)

// manager forwards the ports of a host's listeners. It starts goroutines only to delete
// mappings.
type manager struct {
	network       network.Network
	forwarder     *forward.Forwarder
	ownsForwarder bool          // Close closes forwarder
	grantWait     time.Duration // the constant grantWait, except in tests
	closeOnce     func() error

	mu        sync.Mutex
	closed    bool
	entries   map[internalAddr]mappingEntry
	deleteErr error          // the error of the last failed deletion
	deletions sync.WaitGroup // deletions in progress; none is added once closed
}

// mappingEntry is the mapping of an endpoint.
type mappingEntry struct {
	mapping   *forward.Mapping
	waitUntil time.Time // GetMapping waits for the grant until then
}

func newManager(n network.Network, f *forward.Forwarder) *manager {
	m := &manager{network: n, forwarder: f, grantWait: grantWait, entries: map[internalAddr]mappingEntry{}}
	if f == nil {
		m.ownsForwarder = true
		m.forwarder, _ = forward.New(&forward.Config{Description: "libp2p"}) // a valid config
	}
	m.closeOnce = sync.OnceValue(m.shutdown)
	return m
}

// start creates the mappings of the network's listeners, and subscribes to their changes.
func (m *manager) start() {
	m.network.Notify((*notifiee)(m))
	m.updateMappings() // for the existing listeners
}

// GetMapping returns a listen address with the address and port replaced by the external ones.
// If no mapping is granted, it returns nil. If the mapping is new, it waits for the grant for
// grantWait.
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
	_ = entry.mapping.Wait(ctx) // External shows whether it was granted
	return e.externalMultiaddr(entry.mapping.External().AddrPort, suffix)
}

// HasDiscoveredNAT reports whether a gateway forwards a port of the host now.
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

// updateMappings creates the mappings of new listeners, and deletes those of closed listeners.
// It does no I/O, because the network waits for it. It reads the listeners with m.mu locked,
// so that a concurrent call cannot apply an older list after a newer one.
func (m *manager) updateMappings() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	listening := map[internalAddr]bool{}
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

// addMapping requests the mapping of an endpoint, if it has none. If the Forwarder is closed,
// it does nothing. The caller holds m.mu.
func (m *manager) addMapping(e internalAddr) {
	if _, ok := m.entries[e]; ok {
		return
	}
	opts := []forward.Option{forward.Protocol(e.protocol, e.port), forward.Background(), forward.NoDefault()}
	if e.addr.IsValid() {
		opts = append(opts, forward.To(netip.AddrPortFrom(e.addr, e.port)))
	}
	mapping, err := m.forwarder.Enable(context.Background(), opts...) // needs no deadline: Enable returns at once
	if err != nil {
		return
	}
	m.entries[e] = mappingEntry{mapping, time.Now().Add(m.grantWait)}
}

// deleteMapping deletes a mapping in the background. Close waits for it. The caller holds
// m.mu.
func (m *manager) deleteMapping(mapping *forward.Mapping) {
	m.deletions.Go(func() {
		if err := mapping.Close(); err != nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.deleteErr = err
		}
	})
}

// Close deletes all mappings. A second call returns the error of the first.
func (m *manager) Close() error { return m.closeOnce() }

// shutdown is the body of Close.
func (m *manager) shutdown() error {
	m.mu.Lock()
	m.closed = true
	for e, entry := range m.entries {
		delete(m.entries, e)
		m.deleteMapping(entry.mapping)
	}
	m.mu.Unlock()
	m.network.StopNotify((*notifiee)(m)) // without m.mu: it waits for notifications in progress, which lock m.mu
	var err error
	if m.ownsForwarder {
		err = m.forwarder.Close() // ends the deletions too
	}
	m.deletions.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(err, m.deleteErr)
}

// notifiee is a manager with the methods of network.Notifiee.
type notifiee manager

var _ network.Notifiee = (*notifiee)(nil)

func (n *notifiee) Listen(network.Network, ma.Multiaddr)       { (*manager)(n).updateMappings() }
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr)  { (*manager)(n).updateMappings() }
func (n *notifiee) Connected(network.Network, network.Conn)    {}
func (n *notifiee) Disconnected(network.Network, network.Conn) {}
