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
const firstLook = 400 * time.Millisecond

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
	network   network.Network
	forwarder *forward.Forwarder
	own       bool          // the Forwarder is
	patience  time.Duration // firstLook
	end       func() error

	mu      sync.Mutex
	closed  bool
	held    map[endpoint]forwarded
	left    error          // the last mapping that could not be taken away
	closing sync.WaitGroup // mappings; none is added once closed
}

// forwarded is an endpoint that the gateway is asked for.
type forwarded struct {
	mapping *forward.Mapping
	look    time.Time // until when GetMapping waits for it
}

func newManager(n network.Network, f *forward.Forwarder) *manager {
	m := &manager{network: n, forwarder: f, patience: firstLook, held: map[endpoint]forwarded{}}
	if f == nil {
		m.own = true
		m.forwarder, _ = forward.New(&forward.Config{Description: "libp2p"}) // which is valid
	}
	m.end = sync.OnceValue(m.shut)
	return m
}

// start follows the network's listeners.
func (m *manager) start() {
	m.network.Notify((*notifiee)(m))
	m.sync() // with those that there were before
}

// GetMapping returns what the world reaches a listen address by: the same with
// the external address and port in place of its own, or nil while nothing is
// granted. It waits for a moment where the port has just been asked for.
func (m *manager) GetMapping(listen ma.Multiaddr) ma.Multiaddr {
	e, suffix, ok := parse(listen)
	if !ok {
		return nil
	}
	m.mu.Lock()
	f, ok := m.held[e]
	m.mu.Unlock()
	if !ok {
		return nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), f.look)
	defer cancel()
	_ = f.mapping.Wait(ctx) // what it came to, External tells
	return e.announce(f.mapping.External().AddrPort, suffix)
}

// HasDiscoveredNAT reports whether a gateway now forwards a port of the host.
func (m *manager) HasDiscoveredNAT() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.held {
		if by := f.mapping.Backend(); by != "" && by != "direct" {
			return true
		}
	}
	return false
}

// sync makes what is forwarded be what is listened on. It does no I/O: the
// network waits for it. The lock is held while looking, so that no older look
// comes after a newer one.
func (m *manager) sync() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	wanted := map[endpoint]bool{}
	for _, listen := range m.network.ListenAddresses() {
		if e, _, ok := parse(listen); ok {
			wanted[e] = true
		}
	}
	for e := range wanted {
		m.open(e)
	}
	for e, f := range m.held {
		if !wanted[e] {
			delete(m.held, e)
			m.drop(f.mapping)
		}
	}
}

// open asks for an endpoint that is not held yet. It fails where the Forwarder
// is closed, which its owner knows. m.mu is held.
func (m *manager) open(e endpoint) {
	if _, ok := m.held[e]; ok {
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
	m.held[e] = forwarded{mapping, time.Now().Add(m.patience)}
}

// drop takes a mapping away, which Close waits for. m.mu is held.
func (m *manager) drop(mapping *forward.Mapping) {
	m.closing.Go(func() {
		if err := mapping.Close(); err != nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.left = err
		}
	})
}

// Close takes all mappings away. A second call returns what the first did.
func (m *manager) Close() error { return m.end() }

func (m *manager) shut() error {
	m.mu.Lock()
	m.closed = true
	for e, f := range m.held {
		delete(m.held, e)
		m.drop(f.mapping)
	}
	m.mu.Unlock()
	m.network.StopNotify((*notifiee)(m)) // not under the lock: it waits for those that wait for it
	var err error
	if m.own {
		err = m.forwarder.Close() // bounds the rest
	}
	m.closing.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(err, m.left)
}

// notifiee is the manager as the network sees it.
type notifiee manager

var _ network.Notifiee = (*notifiee)(nil)

func (n *notifiee) Listen(network.Network, ma.Multiaddr)       { (*manager)(n).sync() }
func (n *notifiee) ListenClose(network.Network, ma.Multiaddr)  { (*manager)(n).sync() }
func (n *notifiee) Connected(network.Network, network.Conn)    {}
func (n *notifiee) Disconnected(network.Network, network.Conn) {}
