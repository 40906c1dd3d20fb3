package gatewaytest

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// The range that ports come from where the client does not care.
const (
	firstHighPort = 49152
	numHighPorts  = 1 << 14
)

// companions share port numbers (RFC 6886, section 3.3).
var otherTransport = map[backends.Protocol]backends.Protocol{
	backends.TCP: backends.UDP,
	backends.UDP: backends.TCP,
}

// choose picks the external port: the one wished, else the next free one.
func (t *table) choosePort(s spec) (uint16, error) {
	requested := int(s.External.Port())
	if shared := t.rowSharingPort(s); shared != nil {
		if s.exactPort && s.External.Port() != shared.External.Port() {
			return 0, errPortTaken
		}
		return shared.External.Port(), nil
	}
	if s.Internal.Port() == 0 {
		return 0, t.checkAllPorts(s)
	}
	if requested == 0 {
		if port := t.highPort(s); port != 0 {
			return port, nil
		}
		return 0, errTableFull
	}
	if t.isFree(s, uint16(requested)) {
		return uint16(requested), nil
	}
	if s.exactPort {
		return 0, errPortTaken
	}
	for i := 1; i < 1<<16; i++ {
		// Past the end it goes on above the well-known ports.
		port := requested + i
		if port >= 1<<16 {
			port = port - 1<<16 + 1024
		}
		if port < 1<<16 && t.isFree(s, uint16(port)) {
			return uint16(port), nil
		}
	}
	return 0, errTableFull
}

// twin returns a row of the same internal endpoint that has to have the same
// external one: what goes out to a remote host leaves from where the others
// come in (RFC 6887, sections 11.3 and 12.3).
func (t *table) rowSharingPort(s spec) *row {
	for _, r := range t.byInternal[endpoint{s.Protocol, s.Internal}] {
		if s.Remote.IsValid() || r.Remote.IsValid() && !s.allowSecond {
			return r
		}
	}
	return nil
}

// high returns a free high port, another one each time, or 0.
func (t *table) highPort(s spec) uint16 {
	for range numHighPorts {
		port := uint16(firstHighPort + t.nextHighPort)
		t.nextHighPort = (t.nextHighPort + 1) % numHighPorts
		if t.isFree(s, port) {
			return port
		}
	}
	return 0
}

// anyPort returns a high port that is free for all of a client's protocols, or 0.
func (t *table) highPortForBoth() uint16 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteExpired()
	for range numHighPorts {
		port := t.highPort(spec{Entry: Entry{Protocol: backends.TCP}})
		if port == 0 || t.isFree(spec{Entry: Entry{Protocol: backends.UDP}}, port) {
			return port
		}
	}
	return 0
}

// free reports whether the wish may have the port: it is not the gateway's own,
// nobody has it, alone or with all others, and the same port of the companion
// protocol is no other client's (RFC 6886, section 3.3), which UPnP does not mind.
func (t *table) isFree(s spec, port uint16) bool {
	external := netip.AddrPortFrom(s.External.Addr(), port)
	if isReserved(s.Protocol, port) || t.isOccupied(endpoint{s.Protocol, external}) {
		return false
	}
	for _, at := range allPortsEndpoints(s.Protocol, external.Addr()) {
		if t.usedByOtherHost(at, s) {
			return false
		}
	}
	other, ok := otherTransport[s.Protocol]
	return !ok || s.Service == serviceUPnP || !t.usedByOtherHost(endpoint{other, external}, s)
}

// occupied reports whether an outside endpoint cannot have another entry. One of
// the firewall can have more of UPnP's, which are pinholes of one host.
func (t *table) isOccupied(at endpoint) bool {
	for _, r := range t.byExternal[at] {
		if !at.Addr().Is6() || r.Service != serviceUPnP {
			return true
		}
	}
	return false
}

// foreign reports whether another host than the wish's has the outside endpoint.
func (t *table) usedByOtherHost(at endpoint, s spec) bool {
	rows := t.byExternal[at]
	return len(rows) != 0 && rows[0].Internal.Addr() != s.Internal.Addr()
}

// reserved reports whether the port is that of the protocols themselves, which
// is never mapped (RFC 6887, section 11.3).
func isReserved(p backends.Protocol, port uint16) bool {
	return p == backends.UDP && (port == 5350 || port == 5351)
}

// wildcards are the outside endpoints that have all ports of a protocol.
func allPortsEndpoints(p backends.Protocol, external netip.Addr) [2]endpoint {
	all := netip.AddrPortFrom(external, 0)
	return [2]endpoint{{p, all}, {0, all}}
}

// freeAll returns nil where the wish may have all ports of its protocol, or of
// all protocols, because no other host has one; else errTaken.
func (t *table) checkAllPorts(s spec) error {
	if s.exactPort && s.External.Port() != 0 {
		return errPortTaken
	}
	for r := range t.rows {
		overlaps := r.Protocol == s.Protocol || r.Protocol == 0 || s.Protocol == 0
		if overlaps && r.External.Addr() == s.External.Addr() && r.Internal.Addr() != s.Internal.Addr() {
			return errPortTaken
		}
	}
	return nil
}

// inTheWay is the entry that has the port of a wish, or the zero Entry.
func (t *table) conflicting(s spec, now time.Time) Entry {
	endpoints := []endpoint{{s.Protocol, s.External}}
	if other, ok := otherTransport[s.Protocol]; ok {
		endpoints = append(endpoints, endpoint{other, s.External})
	}
	for _, at := range endpoints {
		if rows := t.byExternal[at]; len(rows) != 0 {
			return t.snapshot(rows[0], now)
		}
	}
	return Entry{}
}

// lookup finds the entry for what arrives from outside.
func (t *table) lookup(p backends.Protocol, external, from netip.AddrPort) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	all := allPortsEndpoints(p, external.Addr())
	for _, at := range []endpoint{{p, external}, all[0], all[1]} {
		rows := t.byExternal[at]
		for _, r := range rows {
			if r.admits(from) {
				r.packets++
				r.lastUsed = now
				e := t.snapshot(r, now)
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
