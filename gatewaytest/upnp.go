package gatewaytest

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// The names of the protocols in entries and requests.
const (
	serviceUPnP = "upnp"
	serviceSSDP = "ssdp"
)

// upnpServer answers searches, describes the gateway, and performs actions out
// of its table.
type upnpServer struct {
	g           *Gateway
	config      quirks.UPnP
	root        *igdDevice
	ssdp        []*udpServer  // of IPv4, and of IPv6 if there is one
	httpServers []*httpServer // the same

	// Guarded by Gateway.mu, as are the ports.
	bootID  uint32
	crashed bool // until restart

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{}
}

// init completes a server that does not listen yet.
func (s *upnpServer) init(g *Gateway, config Config) {
	s.g, s.config, s.bootID = g, config.Quirks.UPnP, 1
	s.conns = make(map[*net.TCPConn]struct{})
	g.table.idleAfter, g.table.idleAbove = s.config.Rules.IdleAfter, s.config.Rules.IdleAbove
	if !s.g.supports(serviceUPnP) {
		return
	}
	s.root = s.buildTree()
	s.httpServers = []*httpServer{{network: "tcp4", addr: config.ListenHTTP}}
	s.ssdp = []*udpServer{{network: "udp4", addr: config.ListenSSDP, handle: s.receive}}
	if config.Listen6.IsValid() {
		any6 := netip.AddrPortFrom(config.Listen6.Addr(), 0)
		s.httpServers = append(s.httpServers, &httpServer{network: "tcp6", addr: any6})
		s.ssdp = append(s.ssdp, &udpServer{network: "udp6", addr: any6, handle: s.receive})
	}
}

// randomUDN is a name for a device (RFC 9562, section 5.4).
func randomUDN() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// SSDP is the address where the gateway answers searches, or the zero AddrPort without
// UPnP. It answers only what is sent there: nothing joins a multicast group.
func (g *Gateway) SSDP() netip.AddrPort { return g.upnp.ssdpAddr(0) }

// UPnP is the gateway's UPnP device.
func (g *Gateway) UPnP() Device { return Device{&g.upnp} }

// Device is the UPnP device of a gateway. Wrong hosts in its description, which are
// quirks, are loopback addresses where nobody listens.
type Device struct{ s *upnpServer }

// DescriptionURL is the URL of the device description, or empty without UPnP.
// With quirks.UPnP.MovePort it changes at each Restart.
func (d Device) DescriptionURL() string { return d.s.descriptionURL(0) }

// DescriptionURL6 is the same over IPv6, or empty without [Config.Listen6].
func (d Device) DescriptionURL6() string { return d.s.descriptionURL(1) }

// SSDP6 is the address where searches over IPv6 are answered, or the zero AddrPort without
// [Config.Listen6]. Over IPv4 that is [Gateway.SSDP].
func (d Device) SSDP6() netip.AddrPort { return d.s.ssdpAddr(1) }

// UDN is the unique name of the root device, "uuid:…".
func (d Device) UDN() string { return d.s.config.UDN }

// Byebye notifies that the device leaves, as a router does that is shut down. The gateway
// goes on answering.
func (d Device) Byebye() {
	d.s.g.sendSeries(&d.s.g.cancelNotify, 1, func() { d.s.notify("ssdp:byebye") })
}

func (s *upnpServer) ssdpAddr(i int) netip.AddrPort {
	if i >= len(s.ssdp) {
		return netip.AddrPort{}
	}
	return s.ssdp[i].addr
}

func (s *upnpServer) descriptionURL(i int) string {
	if i >= len(s.httpServers) {
		return ""
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.httpServers[i].base() + s.config.Description.Path
}

// down closes the ports and cuts the connections.
func (s *upnpServer) down() {
	s.g.mu.Lock()
	s.crashed = false
	closers := s.detachListeners()
	s.g.mu.Unlock()
	for _, c := range closers {
		_ = c.Close()
	}
	s.closeConns()
}

// open opens what is closed. Callers hold the gateway's lock.
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

// listen has a web server take connections at the address. Callers hold the
// gateway's lock.
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

// shut marks the ports as closed and returns what is to be closed, without the
// lock. Callers hold it.
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

// restart is what a power failure does to UPnP. What has crashed comes back, and
// the port moves if it is to; where the system has none to give, it stays.
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
		_ = s.open() // where the system has given a port away, it stays dead
	}
	s.g.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
	s.closeConns()
}

// crash closes the ports until Restart or Up.
func (s *upnpServer) simulateCrash() {
	s.g.mu.Lock()
	s.crashed = true
	closers := s.detachListeners()
	s.g.mu.Unlock()
	for _, c := range closers {
		_ = c.Close()
	}
	s.closeConns()
}

// addressChanged notifies of another external address.
func (s *upnpServer) addressChanged() {
	if !s.g.supports(serviceUPnP) || !s.config.Search.Update {
		return
	}
	s.notify("ssdp:update")
	s.g.mu.Lock()
	s.bootID++
	s.g.mu.Unlock()
}
