package gatewaytest

import (
	"net/netip"
	"strconv"
	"time"
)

// connectionAddr returns the external address of the service's connection. unusable is
// true if no mapping can be created on it.
func (s *upnpServer) connectionAddr(v *igdService) (addr netip.Addr, unusable bool) {
	addr = s.g.sessionAddr(v.session)
	if !v.connected {
		addr = netip.IPv4Unspecified()
	}
	return addr, addr.IsUnspecified() || s.config.Rules.RefusePrivate && isPrivate(addr)
}

// externalAddress returns the external address, or an empty string if there is none
// (WANIPConnection:2, section 2.5.20).
func (s *upnpServer) externalAddress(c *soapCall) ([]soapArg, error) {
	addr, unusable := s.connectionAddr(c.service)
	text := addr.String()
	switch external := s.config.Status.External; {
	case external != nil && c.service.connected:
		text = external(addr)
	case unusable:
		text = ""
	}
	return []soapArg{{"NewExternalIPAddress", text}}, nil
}

// statusInfo returns the status of the connection (WANIPConnection:2, section 2.5.9).
func (s *upnpServer) statusInfo(c *soapCall) ([]soapArg, error) {
	if s.config.Status.Unsupported {
		return nil, soapFault(401)
	}
	state := "Connected"
	switch addr, _ := s.connectionAddr(c.service); {
	case s.config.Status.Connection != "" && c.service.connected:
		state = s.config.Status.Connection
	case addr.IsUnspecified():
		state = "Disconnected"
	}
	return []soapArg{
		{"NewConnectionStatus", state},
		{"NewLastConnectionError", "ERROR_NONE"},
		{"NewUptime", strconv.FormatInt(int64(s.g.epoch()/time.Second), 10)},
	}, nil
}

// connectionType returns the type of the connection.
func (s *upnpServer) connectionType(c *soapCall) ([]soapArg, error) {
	kind := choose(c.service.kind == wanPPP, "PPPoE_Routed", "IP_Routed") // the standard does not list PPPoE_Routed, but devices report it
	return []soapArg{{"NewConnectionType", kind}, {"NewPossibleConnectionTypes", kind}}, nil
}

// natStatus reports that NAT is enabled and that RSIP is not available.
func (s *upnpServer) natStatus(*soapCall) ([]soapArg, error) {
	return []soapArg{{"NewRSIPAvailable", "0"}, {"NewNATEnabled", "1"}}, nil
}

// defaultConnection returns the connection that outgoing traffic uses
// (Layer3Forwarding:1, section 2.4.2).
func (s *upnpServer) defaultConnection(*soapCall) ([]soapArg, error) {
	for _, d := range s.root.all() {
		for _, v := range d.services {
			if v.connected && (v.kind == wanIP || v.kind == wanPPP) {
				return []soapArg{{"NewDefaultConnectionService", d.udn + ":" + d.typ[len("urn:"):] + "," + v.id}}, nil
			}
		}
	}
	return []soapArg{{"NewDefaultConnectionService", ""}}, nil
}

// linkProperties describes the physical link (WANCommonInterfaceConfig:1, section
// 2.4.3).
func (s *upnpServer) linkProperties(c *soapCall) ([]soapArg, error) {
	return []soapArg{
		{"NewWANAccessType", "Ethernet"},
		{"NewLayer1UpstreamMaxBitRate", "100000000"},
		{"NewLayer1DownstreamMaxBitRate", "100000000"},
		{"NewPhysicalLinkStatus", choose(c.service.connected, "Up", "Down")},
	}, nil
}
