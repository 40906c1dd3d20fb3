package gatewaytest

import "fmt"

// notify tells Config.Notify of all devices and services, unless UPnP is down
// (UPnP Device Architecture 1.1, sections 1.2.2 to 1.2.4). The kind is
// ssdp:alive, ssdp:byebye, or ssdp:update, which names the next BOOTID.
func (s *upnpServer) notify(kind string) {
	to := s.g.config.Notify
	if !s.g.speaks(serviceUPnP) || !to.IsValid() {
		return
	}
	v6 := to.Addr().Is6()
	p := s.ssdp[0]
	if v6 {
		p = s.ssdp[len(s.ssdp)-1]
	}
	s.g.mu.Lock()
	conn, boot := p.conn, s.bootID
	s.g.mu.Unlock()
	if conn == nil {
		return
	}
	for _, t := range s.targets() {
		m := newSSDPMessage("NOTIFY * HTTP/1.1", s.config.Search)
		m.add("HOST", to.String())
		if kind == "ssdp:alive" {
			m.add("CACHE-CONTROL", "max-age=1800")
			m.add("SERVER", serverName)
		}
		if at := s.location(v6); at != "" && kind != "ssdp:byebye" {
			m.add("LOCATION", at)
		}
		m.add("NT", t.st)
		m.add("NTS", kind)
		m.add("USN", t.usn)
		m.add("BOOTID.UPNP.ORG", fmt.Sprint(boot))
		m.add("CONFIGID.UPNP.ORG", "1")
		if kind == "ssdp:update" {
			m.add("NEXTBOOTID.UPNP.ORG", fmt.Sprint(boot+1))
		}
		s.g.record.count(func(s *Stats) { s.Notifications++ })
		_, _ = conn.WriteToUDPAddrPort(m.bytes(), to)
	}
}
