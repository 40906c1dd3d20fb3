package gatewaytest

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// The names of the protocols in entries and requests.
const (
	serviceUPnP = "upnp"
	serviceSSDP = "ssdp"
)

// upnpServer answers searches, serves the device description, and performs actions on
// the gateway's table.
type upnpServer struct {
	g           *Gateway
	config      quirks.UPnP
	root        *igdDevice
	ssdp        []*udpServer  // over IPv4, and over IPv6 if Config.Listen6 is set
	httpServers []*httpServer // one for each of ssdp

	descriptions, deletions atomic.Int64 // number of requests, for the quirks of the first ones

	// Guarded by Gateway.mu, like the ports.
	bootID  uint32
	crashed bool // set by a simulated crash, until Restart, Up or Down

	mu            sync.Mutex
	conns         map[*net.TCPConn]struct{}
	subscriptions map[string]struct{} // the identifiers
}

// init initializes the server, which does not listen yet.
func (s *upnpServer) init(g *Gateway, config Config) {
	s.g, s.config, s.bootID = g, config.Quirks.UPnP, 1
	s.conns, s.subscriptions = make(map[*net.TCPConn]struct{}), make(map[string]struct{})
	g.table.idleAfter, g.table.idleAbove = s.config.Rules.IdleAfter, s.config.Rules.IdleAbove
	if !s.g.supports(serviceUPnP) {
		return
	}
	s.root = s.buildTree()
	s.httpServers = []*httpServer{{network: "tcp4", addr: config.ListenHTTP}}
	s.ssdp = []*udpServer{{network: "udp4", addr: config.ListenSSDP, handle: s.receive}}
	if config.Listen6.IsValid() && !s.config.Search.IPv4Only {
		any6 := netip.AddrPortFrom(config.Listen6.Addr(), 0)
		s.httpServers = append(s.httpServers, &httpServer{network: "tcp6", addr: any6})
		s.ssdp = append(s.ssdp, &udpServer{network: "udp6", addr: any6, handle: s.receive})
	}
}

// randomUDN returns a random device name (RFC 9562, section 5.4).
func randomUDN() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// SSDP returns the address at which the gateway receives UPnP searches, or the zero
// AddrPort if it does not support UPnP. The gateway answers only searches that are sent
// to this address: it joins no multicast group.
func (g *Gateway) SSDP() netip.AddrPort { return g.upnp.ssdpAddr(0) }

// UPnP returns the UPnP device of the gateway.
func (g *Gateway) UPnP() Device { return Device{&g.upnp} }

// Device is the UPnP device of a gateway. If a quirk makes its description name a wrong
// host, that host is a loopback address at which nothing listens.
type Device struct{ s *upnpServer }

// DescriptionURL returns the URL of the device description, or an empty string if the
// gateway does not support UPnP. With quirks.UPnP.MovePort, it changes at each Restart.
func (d Device) DescriptionURL() string { return d.s.descriptionURL(0) }

// DescriptionURL6 returns the URL of the device description over IPv6, or an empty
// string without [Config.Listen6].
func (d Device) DescriptionURL6() string { return d.s.descriptionURL(1) }

// SSDP6 returns the address at which the gateway receives searches over IPv6, or the
// zero AddrPort without [Config.Listen6]. For IPv4, use [Gateway.SSDP].
func (d Device) SSDP6() netip.AddrPort { return d.s.ssdpAddr(1) }

// UDN returns the unique device name of the root device, "uuid:…".
func (d Device) UDN() string { return d.s.config.UDN }

// Byebye sends ssdp:byebye notifications, as a router does when it shuts down. The
// gateway continues to respond.
func (d Device) Byebye() {
	d.s.g.sendSeries(&d.s.g.cancelNotify, 1, func() { d.s.notify("ssdp:byebye") })
}

// ssdpAddr returns the address for searches over IPv4 (0) or IPv6 (1).
func (s *upnpServer) ssdpAddr(i int) netip.AddrPort {
	if i >= len(s.ssdp) {
		return netip.AddrPort{}
	}
	return s.ssdp[i].addr
}

// descriptionURL returns the URL of the description over IPv4 (0) or IPv6 (1).
func (s *upnpServer) descriptionURL(i int) string {
	if i >= len(s.httpServers) {
		return ""
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.httpServers[i].base() + s.config.Description.Path
}

// down closes the ports and the open connections until Up.
func (s *upnpServer) down() { s.closePorts(false) }

// closePorts closes the ports and the open connections until Up or, if crashed is set, until
// Restart or Up.
func (s *upnpServer) closePorts(crashed bool) {
	s.g.mu.Lock()
	s.crashed = crashed
	closers := s.detachListeners()
	s.g.mu.Unlock()
	closeAll(closers)
	s.closeConns()
}

// open opens the ports that are closed. The caller holds Gateway.mu.
func (s *upnpServer) open() error {
	for _, server := range s.httpServers {
		if server.ln != nil {
			continue
		}
		if err := s.listen(server, server.addr); err != nil {
			return err
		}
	}
	if err := s.g.openUDP(s.ssdp); err != nil {
		return err
	}
	s.crashed = false
	return nil
}

// listen makes an HTTP server accept connections at the address. The caller holds
// Gateway.mu.
func (s *upnpServer) listen(server *httpServer, at netip.AddrPort) error {
	ln, err := listenTCP(server.network, at)
	if err != nil {
		return fmt.Errorf("gatewaytest: %w", err)
	}
	server.ln = ln
	if server.addr.Port() == 0 || at.Port() == 0 {
		server.addr = netip.AddrPortFrom(at.Addr(), ln.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	s.g.wg.Go(func() { s.accept(server, ln) })
	return nil
}

// detachListeners marks the ports as closed. It returns the sockets, which must be
// closed without Gateway.mu. The caller holds Gateway.mu.
func (s *upnpServer) detachListeners() []io.Closer {
	closers := detachConns(s.ssdp)
	for _, server := range s.httpServers {
		if server.ln != nil {
			closers = append(closers, server.ln)
			server.ln = nil
		}
	}
	return closers
}

// restart simulates the effect of a power failure on UPnP. A crashed service runs again.
// With MovePort, the HTTP port changes, unless the system has no free port.
func (s *upnpServer) restart() {
	if !s.g.supports(serviceUPnP) {
		return
	}
	var old []io.Closer
	s.g.mu.Lock()
	if !s.config.Search.BootIDStuck {
		s.bootID++
	}
	for _, server := range s.httpServers {
		ln := server.ln
		if !s.config.MovePort || s.g.closed || ln == nil && !s.crashed {
			continue
		}
		if s.listen(server, netip.AddrPortFrom(server.addr.Addr(), 0)) == nil && ln != nil {
			old = append(old, ln)
		}
	}
	if s.crashed && !s.g.closed {
		_ = s.open() // if another socket has taken a port meanwhile, the service stays down
	}
	s.g.mu.Unlock()
	closeAll(old)
	s.closeConns()
}

// addressChanged sends the notification for a changed external address.
func (s *upnpServer) addressChanged() {
	if !s.g.supports(serviceUPnP) || !s.config.Search.Update {
		return
	}
	s.notify("ssdp:update")
	s.g.mu.Lock()
	s.bootID++
	s.g.mu.Unlock()
}
