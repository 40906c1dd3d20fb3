package gatewaytest

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// The range that ports come from where the client does not care.
const (
	highPorts    = 49152
	highPortsNum = 1 << 14
)

// companions share port numbers (RFC 6886, section 3.3).
var companions = map[backends.Protocol]backends.Protocol{
	backends.TCP: backends.UDP,
	backends.UDP: backends.TCP,
}

// choose picks the external port: the one wished, else the next free one.
func (t *table) choose(w wish) (uint16, error) {
	wished := int(w.External.Port())
	if twin := t.twin(w); twin != nil {
		if w.exact && w.External.Port() != twin.External.Port() {
			return 0, errTaken
		}
		return twin.External.Port(), nil
	}
	if w.Internal.Port() == 0 {
		return 0, t.freeAll(w)
	}
	if wished == 0 {
		if port := t.high(w); port != 0 {
			return port, nil
		}
		return 0, errFull
	}
	if t.free(w, uint16(wished)) {
		return uint16(wished), nil
	}
	if w.exact {
		return 0, errTaken
	}
	for i := 1; i < 1<<16; i++ {
		// Past the end it goes on above the well-known ports.
		port := wished + i
		if port >= 1<<16 {
			port = port - 1<<16 + 1024
		}
		if port < 1<<16 && t.free(w, uint16(port)) {
			return uint16(port), nil
		}
	}
	return 0, errFull
}

// twin returns a row of the same internal endpoint that has to have the same
// external one: what goes out to a remote host leaves from where the others
// come in (RFC 6887, sections 11.3 and 12.3).
func (t *table) twin(w wish) *row {
	for _, r := range t.inside[endpoint{w.Protocol, w.Internal}] {
		if w.Remote.IsValid() || r.Remote.IsValid() && !w.another {
			return r
		}
	}
	return nil
}

// high returns a free high port, another one each time, or 0.
func (t *table) high(w wish) uint16 {
	for range highPortsNum {
		port := uint16(highPorts + t.nextHigh)
		t.nextHigh = (t.nextHigh + 1) % highPortsNum
		if t.free(w, port) {
			return port
		}
	}
	return 0
}

// anyPort returns a high port that is free for all of a client's protocols, or 0.
func (t *table) anyPort() uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	for range highPortsNum {
		port := t.high(wish{Entry: Entry{Protocol: backends.TCP}})
		if port == 0 || t.free(wish{Entry: Entry{Protocol: backends.UDP}}, port) {
			return port
		}
	}
	return 0
}

// free reports whether the wish may have the port: it is not the gateway's own,
// nobody has it, alone or with all others, and the same port of the companion
// protocol is no other client's (RFC 6886, section 3.3), which UPnP does not mind.
func (t *table) free(w wish, port uint16) bool {
	out := netip.AddrPortFrom(w.External.Addr(), port)
	if reserved(w.Protocol, port) || t.occupied(endpoint{w.Protocol, out}) {
		return false
	}
	for _, at := range wildcards(w.Protocol, out.Addr()) {
		if t.foreign(at, w) {
			return false
		}
	}
	other, ok := companions[w.Protocol]
	return !ok || w.Service == serviceUPnP || !t.foreign(endpoint{other, out}, w)
}

// occupied reports whether an outside endpoint cannot have another entry. One of
// the firewall can have more of UPnP's, which are pinholes of one host.
func (t *table) occupied(at endpoint) bool {
	for _, r := range t.outside[at] {
		if !at.Addr().Is6() || r.Service != serviceUPnP {
			return true
		}
	}
	return false
}

// foreign reports whether another host than the wish's has the outside endpoint.
func (t *table) foreign(at endpoint, w wish) bool {
	rows := t.outside[at]
	return len(rows) != 0 && rows[0].Internal.Addr() != w.Internal.Addr()
}

// reserved reports whether the port is that of the protocols themselves, which
// is never mapped (RFC 6887, section 11.3).
func reserved(p backends.Protocol, port uint16) bool {
	return p == backends.UDP && (port == 5350 || port == 5351)
}

// wildcards are the outside endpoints that have all ports of a protocol.
func wildcards(p backends.Protocol, external netip.Addr) [2]endpoint {
	all := netip.AddrPortFrom(external, 0)
	return [2]endpoint{{p, all}, {0, all}}
}

// freeAll returns nil where the wish may have all ports of its protocol, or of
// all protocols, because no other host has one; else errTaken.
func (t *table) freeAll(w wish) error {
	if w.exact && w.External.Port() != 0 {
		return errTaken
	}
	for r := range t.rows {
		overlaps := r.Protocol == w.Protocol || r.Protocol == 0 || w.Protocol == 0
		if overlaps && r.External.Addr() == w.External.Addr() && r.Internal.Addr() != w.Internal.Addr() {
			return errTaken
		}
	}
	return nil
}

// inTheWay is the entry that has the port of a wish, or the zero Entry.
func (t *table) inTheWay(w wish, now time.Time) Entry {
	places := []endpoint{{w.Protocol, w.External}}
	if other, ok := companions[w.Protocol]; ok {
		places = append(places, endpoint{other, w.External})
	}
	for _, at := range places {
		if rows := t.outside[at]; len(rows) != 0 {
			return t.leave(rows[0], now)
		}
	}
	return Entry{}
}

// lookup finds the entry for what arrives from outside.
func (t *table) lookup(p backends.Protocol, external, from netip.AddrPort) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	all := wildcards(p, external.Addr())
	for _, at := range []endpoint{{p, external}, all[0], all[1]} {
		rows := t.outside[at]
		for _, r := range rows {
			if r.admits(from) {
				r.packets++
				r.used = now
				e := t.leave(r, now)
				if e.Internal.Port() == 0 {
					e.Internal = netip.AddrPortFrom(e.Internal.Addr(), external.Port())
				}
				return e, true
			}
		}
		if len(rows) != 0 {
			break // who is refused at a port does not get in by all ports
		}
	}
	return Entry{}, false
}
