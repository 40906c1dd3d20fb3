package gatewaytest

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// The range from which the gateway chooses a port if the client does not request one.
const (
	firstHighPort = 49152
	numHighPorts  = 1 << 14
)

// otherTransport maps TCP to UDP and UDP to TCP: a port number that a host has for one
// of them is not assigned to another host for the other (RFC 6886, section 3.3).
var otherTransport = map[backends.Protocol]backends.Protocol{
	backends.TCP: backends.UDP,
	backends.UDP: backends.TCP,
}

// choosePort chooses the external port: the requested port if it is free, otherwise the
// next free port above it. If no port is requested, it chooses a high port.
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
		// After 65535, the search continues above the well-known ports, at 1024.
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

// rowSharingPort returns a row of the same internal endpoint whose external endpoint the
// new row must share: traffic to a remote host must leave from the endpoint at which the
// other entries receive (RFC 6887, sections 11.3 and 12.3).
func (t *table) rowSharingPort(spec mappingSpec) *row {
	for _, r := range t.byInternal[transportAddr{spec.Protocol, spec.Internal}] {
		if spec.Remote.IsValid() || r.Remote.IsValid() && !spec.allowSecond {
			return r
		}
	}
	return nil
}

// highPort returns a free high port, or 0. Successive calls return different ports.
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

// highPortForBoth returns a high port that is free for both TCP and UDP, or 0.
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

// isFree reports whether the new entry may have the port. The port must not be one of
// the gateway's own, and no entry may have it, alone or with all other ports. Unless the
// request comes from UPnP, no other host may have the same port of the other transport
// protocol (RFC 6886, section 3.3).
func (t *table) isFree(spec mappingSpec, port uint16) bool {
	external := netip.AddrPortFrom(spec.External.Addr(), port)
	if isReserved(spec.Protocol, port) || t.isOccupied(transportAddr{spec.Protocol, external}) {
		return false
	}
	for _, at := range allPortsEndpoints(spec.Protocol, external.Addr()) {
		if t.usedByOtherHost(at, spec) {
			return false
		}
	}
	other, ok := otherTransport[spec.Protocol]
	return !ok || spec.Service == serviceUPnP || !t.usedByOtherHost(transportAddr{other, external}, spec)
}

// isOccupied reports whether an external endpoint cannot have another entry. An endpoint
// of the firewall can have several UPnP entries, which are pinholes of one host.
func (t *table) isOccupied(at transportAddr) bool {
	for _, r := range t.byExternal[at] {
		if !at.Addr().Is6() || r.Service != serviceUPnP {
			return true
		}
	}
	return false
}

// usedByOtherHost reports whether a host other than the one in spec has the external
// endpoint.
func (t *table) usedByOtherHost(at transportAddr, spec mappingSpec) bool {
	rows := t.byExternal[at]
	return len(rows) != 0 && rows[0].Internal.Addr() != spec.Internal.Addr()
}

// isReserved reports whether the port is one that NAT-PMP and PCP use themselves; these
// ports are never mapped (RFC 6887, section 11.3).
func isReserved(p backends.Protocol, port uint16) bool {
	return p == backends.UDP && (port == 5350 || port == 5351)
}

// allPortsEndpoints returns the external endpoints that stand for all ports of a
// protocol and for all ports of all protocols.
func allPortsEndpoints(p backends.Protocol, external netip.Addr) [2]transportAddr {
	all := netip.AddrPortFrom(external, 0)
	return [2]transportAddr{{p, all}, {0, all}}
}

// checkAllPorts returns nil if the host may have all ports of its protocol, or of all
// protocols, because no other host has one of them. Otherwise it returns errPortTaken.
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

// conflicting returns the entry that has the requested port, or the zero Entry.
func (t *table) conflicting(spec mappingSpec, now time.Time) Entry {
	endpoints := []transportAddr{{spec.Protocol, spec.External}}
	if other, ok := otherTransport[spec.Protocol]; ok {
		endpoints = append(endpoints, transportAddr{other, spec.External})
	}
	for _, at := range endpoints {
		if rows := t.byExternal[at]; len(rows) != 0 {
			return t.snapshot(rows[0], now)
		}
	}
	return Entry{}
}

// lookup finds the entry for a connection or datagram from outside.
func (t *table) lookup(p backends.Protocol, external, from netip.AddrPort) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	all := allPortsEndpoints(p, external.Addr())
	for _, at := range []transportAddr{{p, external}, all[0], all[1]} {
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
			break // a host that the filters of a port reject is not admitted by an entry for all ports
		}
	}
	return Entry{}, false
}
