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
	g      *Gateway
	config quirks.UPnP
	root   *igdDevice
	ssdp   []*port // of IPv4, and of IPv6 if there is one
	webs   []*web  // the same

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
	g.table.idle, g.table.idleAbove = s.config.Rules.IdleAfter, s.config.Rules.IdleAbove
	if !s.g.speaks(serviceUPnP) {
		return
	}
	s.root = s.buildTree()
	s.webs = []*web{{network: "tcp4", addr: config.ListenHTTP}}
	s.ssdp = []*port{{network: "udp4", addr: config.ListenSSDP, receive: s.receive}}
	if config.Listen6.IsValid() {
		any6 := netip.AddrPortFrom(config.Listen6.Addr(), 0)
		s.webs = append(s.webs, &web{network: "tcp6", addr: any6})
		s.ssdp = append(s.ssdp, &port{network: "udp6", addr: any6, receive: s.receive})
	}
}

// randomUDN is a name for a device (RFC 9562, section 5.4).
func randomUDN() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// SSDP is where searches are answered, or the zero AddrPort without UPnP.
func (g *Gateway) SSDP() netip.AddrPort { return g.upnp.ssdpAddr(0) }

// SSDP6 is the same over IPv6, or the zero AddrPort without [Config.Listen6].
func (g *Gateway) SSDP6() netip.AddrPort { return g.upnp.ssdpAddr(1) }

func (s *upnpServer) ssdpAddr(i int) netip.AddrPort {
	if i >= len(s.ssdp) {
		return netip.AddrPort{}
	}
	return s.ssdp[i].addr
}

// DescriptionURL is where the device description is, or empty without UPnP.
// With quirks.UPnP.MovePort it changes at each Restart.
func (g *Gateway) DescriptionURL() string { return g.upnp.descriptionURL(0) }

// DescriptionURL6 is the same over IPv6, or empty without [Config.Listen6].
func (g *Gateway) DescriptionURL6() string { return g.upnp.descriptionURL(1) }

func (s *upnpServer) descriptionURL(i int) string {
	if i >= len(s.webs) {
		return ""
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.webs[i].base() + s.config.Description.Path
}

// UDN is the unique name of the root device, "uuid:…".
func (g *Gateway) UDN() string { return g.upnp.config.UDN }

// DownUPnP closes only the ports of UPnP, as if the service had died: nothing is
// notified, and connections are cut. See [Gateway.Byebye].
func (g *Gateway) DownUPnP() {
	g.mu.Lock()
	g.upnp.crashed = false
	closers := g.upnp.shut()
	g.mu.Unlock()
	for _, c := range closers {
		_ = c.Close()
	}
	g.upnp.hangUp()
}

// Byebye notifies that the devices leave, as a router does that shuts down in
// order. It goes on answering all the same.
func (g *Gateway) Byebye() {
	g.series(&g.notifying, 1, func() { g.upnp.notify("ssdp:byebye") })
}

// open opens what is closed. Callers hold the gateway's lock.
func (s *upnpServer) open() error {
	for _, w := range s.webs {
		if w.ln != nil {
			continue
		}
		if err := s.listen(w, w.addr); err != nil {
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
func (s *upnpServer) listen(w *web, at netip.AddrPort) error {
	ln, err := listenTCP(w.network, at)
	if err != nil {
		return fmt.Errorf("gatewaytest: %w", err)
	}
	w.ln = ln
	if w.addr.Port() == 0 || at.Port() == 0 {
		w.addr = netip.AddrPortFrom(at.Addr(), ln.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	s.g.wg.Go(func() { s.accept(w, ln) })
	return nil
}

// shut marks the ports as closed and returns what is to be closed, without the
// lock. Callers hold it.
func (s *upnpServer) shut() []io.Closer {
	closers := shutUDP(s.ssdp)
	for _, w := range s.webs {
		if w.ln != nil {
			closers = append(closers, w.ln)
			w.ln = nil
		}
	}
	return closers
}

// restart is what a power failure does to UPnP. What has crashed comes back, and
// the port moves if it is to; where the system has none to give, it stays.
func (s *upnpServer) restart() {
	if !s.g.speaks(serviceUPnP) {
		return
	}
	var old []io.Closer
	s.g.mu.Lock()
	if !s.config.Search.BootIDStuck {
		s.bootID++
	}
	for _, w := range s.webs {
		ln := w.ln
		if !s.config.MovePort || s.g.closed || ln == nil && !s.crashed {
			continue
		}
		if s.listen(w, netip.AddrPortFrom(w.addr.Addr(), 0)) == nil && ln != nil {
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
	s.hangUp()
}

// crash closes the ports until Restart or Up.
func (s *upnpServer) crash() {
	s.g.mu.Lock()
	s.crashed = true
	closers := s.shut()
	s.g.mu.Unlock()
	for _, c := range closers {
		_ = c.Close()
	}
	s.hangUp()
}

// addressChanged notifies of another external address.
func (s *upnpServer) addressChanged() {
	if !s.g.speaks(serviceUPnP) || !s.config.Search.Update {
		return
	}
	s.notify("ssdp:update")
	s.g.mu.Lock()
	s.bootID++
	s.g.mu.Unlock()
}
