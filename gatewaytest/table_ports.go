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
func (t *table) choosePort(spec mappingSpec) (uint16, error) {
	requested := int(spec.External.Port())
	if shared := t.rowSharingPort(spec); shared != nil {
		if spec.exactPort && spec.External.Port() != shared.External.Port() {
			return 0, errPortTaken
		}
		return shared.External.Port(), nil
	}
	if spec.Internal.Port() == 0 {
		return 0, t.checkAllPorts(spec)
	}
	if requested == 0 {
		if port := t.highPort(spec); port != 0 {
			return port, nil
		}
		return 0, errTableFull
	}
	if t.isFree(spec, uint16(requested)) {
		return uint16(requested), nil
	}
	if spec.exactPort {
		return 0, errPortTaken
	}
	for i := 1; i < 1<<16; i++ {
		// Past the end it goes on above the well-known ports.
		port := requested + i
		if port >= 1<<16 {
			port = port - 1<<16 + 1024
		}
		if port < 1<<16 && t.isFree(spec, uint16(port)) {
			return uint16(port), nil
		}
	}
	return 0, errTableFull
}

// twin returns a row of the same internal endpoint that has to have the same
// external one: what goes out to a remote host leaves from where the others
// come in (RFC 6887, sections 11.3 and 12.3).
func (t *table) rowSharingPort(spec mappingSpec) *row {
	for _, r := range t.byInternal[endpoint{spec.Protocol, spec.Internal}] {
		if spec.Remote.IsValid() || r.Remote.IsValid() && !spec.allowSecond {
			return r
		}
	}
	return nil
}

// high returns a free high port, another one each time, or 0.
func (t *table) highPort(spec mappingSpec) uint16 {
	for range numHighPorts {
		port := uint16(firstHighPort + t.nextHighPort)
		t.nextHighPort = (t.nextHighPort + 1) % numHighPorts
		if t.isFree(spec, port) {
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
		port := t.highPort(mappingSpec{Entry: Entry{Protocol: backends.TCP}})
		if port == 0 || t.isFree(mappingSpec{Entry: Entry{Protocol: backends.UDP}}, port) {
			return port
		}
	}
	return 0
}

// free reports whether the wish may have the port: it is not the gateway's own,
// nobody has it, alone or with all others, and the same port of the companion
// protocol is no other client's (RFC 6886, section 3.3), which UPnP does not mind.
func (t *table) isFree(spec mappingSpec, port uint16) bool {
	external := netip.AddrPortFrom(spec.External.Addr(), port)
	if isReserved(spec.Protocol, port) || t.isOccupied(endpoint{spec.Protocol, external}) {
		return false
	}
	for _, at := range allPortsEndpoints(spec.Protocol, external.Addr()) {
		if t.usedByOtherHost(at, spec) {
			return false
		}
	}
	other, ok := otherTransport[spec.Protocol]
	return !ok || spec.Service == serviceUPnP || !t.usedByOtherHost(endpoint{other, external}, spec)
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
func (t *table) usedByOtherHost(at endpoint, spec mappingSpec) bool {
	rows := t.byExternal[at]
	return len(rows) != 0 && rows[0].Internal.Addr() != spec.Internal.Addr()
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
func (t *table) checkAllPorts(spec mappingSpec) error {
	if spec.exactPort && spec.External.Port() != 0 {
		return errPortTaken
	}
	for r := range t.rows {
		overlaps := r.Protocol == spec.Protocol || r.Protocol == 0 || spec.Protocol == 0
		if overlaps && r.External.Addr() == spec.External.Addr() && r.Internal.Addr() != spec.Internal.Addr() {
			return errPortTaken
		}
	}
	return nil
}

// inTheWay is the entry that has the port of a wish, or the zero Entry.
func (t *table) conflicting(spec mappingSpec, now time.Time) Entry {
	endpoints := []endpoint{{spec.Protocol, spec.External}}
	if other, ok := otherTransport[spec.Protocol]; ok {
		endpoints = append(endpoints, endpoint{other, spec.External})
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
