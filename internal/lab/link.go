package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// Port is a network interface of a host: one end of a cable.
type Port struct {
	host  *Host
	name  string
	addrs []netip.Prefix
	err   error
}

// Port describes an interface for Connect or Plug to create. The addresses are as in
// "192.168.77.2/24".
func (h *Host) Port(name string, addrs ...string) Port {
	p := Port{host: h, name: name}
	for _, s := range addrs {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			p.err = fmt.Errorf("port %s of %s: %w", name, h.name, err)
		}
		p.addrs = append(p.addrs, prefix)
	}
	return p
}

// Connect puts a cable between two ports and brings both interfaces up.
func (l *Lab) Connect(a, b Port) {
	l.t.Helper()
	for _, p := range []Port{a, b} {
		if p.err != nil {
			l.t.Fatalf("lab: %v", p.err)
		}
	}
	if err := l.ip("link", "add", a.name, "netns", a.host.netns,
		"type", "veth", "peer", "name", b.name, "netns", b.host.netns); err != nil {
		l.t.Fatalf("lab: connect: %v", err)
	}
	a.up(l)
	b.up(l)
}

func (p Port) up(l *Lab) {
	l.t.Helper()
	var batch strings.Builder
	for _, addr := range p.addrs {
		fmt.Fprintf(&batch, "addr add %s dev %s\n", addr, p.name)
	}
	fmt.Fprintf(&batch, "link set %s up\n", p.name)
	p.host.execWithStdin(l.t, batch.String(), "ip", "-batch", "-")

	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	p.host.addrs = append(p.host.addrs, p.addrs...)
}

// Switch connects the cables that are plugged into it, and so forms one network.
type Switch struct {
	host  *Host
	ports int
}

// Switch adds a switch. It floods multicast, as cheap switches do.
func (l *Lab) Switch(name string) *Switch {
	l.t.Helper()
	h := l.Host(name)
	h.Exec(l.t, "ip", "link", "add", "br0", "up", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
	return &Switch{host: h}
}

// Plug puts a cable between the port and the switch.
func (s *Switch) Plug(p Port) {
	l := s.host.lab
	l.t.Helper()
	s.ports++
	name := fmt.Sprintf("port%d", s.ports)
	l.Connect(p, s.host.Port(name))
	s.host.Exec(l.t, "ip", "link", "set", name, "master", "br0")
}
