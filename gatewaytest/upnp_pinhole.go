package gatewaytest

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// maxPinholeLease is the longest lease of a pinhole in seconds
// (WANIPv6FirewallControl:1, section 2.3.8).
const maxPinholeLease = 86400

// firewallStatus returns the status of the firewall.
func (s *upnpServer) firewallStatus(*soapCall) ([]soapArg, error) {
	rules := s.config.Firewall
	return []soapArg{
		{"FirewallEnabled", flag(!rules.Disabled)}, {"InboundPinholeAllowed", flag(!rules.NotAllowed)},
	}, nil
}

// checkFirewall returns a fault if the firewall permits no changes at all.
func (s *upnpServer) checkFirewall() error {
	switch rules := s.config.Firewall; {
	case rules.Disabled:
		return soapFault(702)
	case rules.NotAllowed:
		return soapFault(703)
	case s.config.Rules.SwitchedOff:
		return soapFault(606)
	}
	return nil
}

// addPinhole opens a pinhole to the client (WANIPv6FirewallControl:1, section 2.4.3). A
// request with the endpoints of an existing pinhole renews that pinhole.
func (s *upnpServer) addPinhole(c *soapCall) ([]soapArg, error) {
	if err := s.checkFirewall(); err != nil {
		return nil, err
	}
	spec, err := s.parsePinholeSpec(c)
	if err != nil {
		return nil, err
	}
	h, err := s.g.table.openPinhole(spec)
	if err != nil {
		return nil, soapFault(701)
	}
	return []soapArg{{"UniqueID", strconv.Itoa(int(h.id))}}, nil
}

// parsePinholeSpec parses the requested pinhole and checks it.
func (s *upnpServer) parsePinholeSpec(c *soapCall) (mappingSpec, error) {
	remotePort, internal, protocol := c.number16("RemotePort"), c.number16("InternalPort"), c.number16("Protocol")
	lease, host, p := pinholeLease(c, "LeaseTime"), strings.TrimSpace(c.args["InternalClient"]), backends.Protocol(protocol)
	switch {
	case c.err != nil:
		return mappingSpec{}, c.err
	case internal == 0:
		return mappingSpec{}, soapFault(706)
	case host == "" || host == "*" || host == "::":
		return mappingSpec{}, soapFault(708)
	case protocol == 65535:
		return mappingSpec{}, soapFault(707)
	case protocol > 255 || p != backends.TCP && p != backends.UDP:
		return mappingSpec{}, soapFault(705)
	}
	client, err := netip.ParseAddr(host)
	if err != nil {
		return mappingSpec{}, soapFault(402)
	}
	remote, err := pinholeRemote(c)
	low := s.config.Rules.LowPorts
	switch {
	case err != nil:
		return mappingSpec{}, err
	case !client.Is6() || client.Is4In6() || s.pinholeHost(c).IsValid() && client != s.pinholeHost(c):
		return mappingSpec{}, soapFault(606)
	case low != 0 && internal < 1024:
		return mappingSpec{}, soapFault(low)
	}
	at := netip.AddrPortFrom(client, internal)
	return mappingSpec{Entry: Entry{
		Protocol: p, Internal: at, External: at, Remaining: s.g.config.lifetime(lease),
		Service: serviceUPnP, Filters: filtersFor(remote, remotePort),
	}}, nil
}

// pinholeHost returns the only host whose pinholes the client may use. The zero Addr
// means that it may use those of any host.
func (s *upnpServer) pinholeHost(c *soapCall) netip.Addr {
	if s.config.Search.IPv4Only {
		return netip.Addr{}
	}
	return c.client
}

// pinholeRemote parses the remote host that a pinhole admits. The zero Addr means any
// host.
func pinholeRemote(c *soapCall) (netip.Addr, error) {
	text := strings.TrimSpace(c.args["RemoteHost"])
	if text == "" || text == "*" {
		return netip.Addr{}, nil
	}
	remote, err := netip.ParseAddr(text)
	if err != nil || !remote.Is6() || remote.Is4In6() || remote.Zone() != "" {
		return netip.Addr{}, soapFault(402)
	}
	if remote.IsUnspecified() {
		return netip.Addr{}, nil
	}
	return remote, nil
}

// pinholeLease parses the lease time of a pinhole.
func pinholeLease(c *soapCall, name string) time.Duration {
	n := c.number(name, 32)
	if n < 1 || n > maxPinholeLease {
		c.err = soapFault(402)
	}
	return time.Duration(n) * time.Second
}

// updatePinhole changes the lease of a pinhole.
func (s *upnpServer) updatePinhole(c *soapCall) ([]soapArg, error) {
	if err := s.checkFirewall(); err != nil {
		return nil, err
	}
	return nil, s.setPinholeLifetime(c, s.g.config.lifetime(pinholeLease(c, "NewLeaseTime")))
}

// deletePinhole deletes a pinhole.
func (s *upnpServer) deletePinhole(c *soapCall) ([]soapArg, error) {
	if err := s.checkFirewall(); err != nil {
		return nil, err
	}
	return nil, s.setPinholeLifetime(c, 0)
}

// setPinholeLifetime changes the lifetime of the pinhole that the arguments identify; 0
// deletes it.
func (s *upnpServer) setPinholeLifetime(c *soapCall, lease time.Duration) error {
	id := c.number16("UniqueID")
	if c.err != nil {
		return c.err
	}
	return s.pinholeFault(s.g.table.setPinholeLifetime(id, s.pinholeHost(c), lease))
}

// pinholeFault returns the fault for an error of the table.
func (s *upnpServer) pinholeFault(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errOtherOwner):
		return soapFault(606)
	case s.config.Firewall.Absent != 0:
		return soapFault(s.config.Firewall.Absent)
	}
	return soapFault(704)
}

// namedPinhole returns the pinhole that the arguments identify.
func (s *upnpServer) namedPinhole(c *soapCall) (pinhole, error) {
	id := c.number16("UniqueID")
	if c.err != nil {
		return pinhole{}, c.err
	}
	h, err := s.g.table.findPinhole(id, s.pinholeHost(c))
	return h, s.pinholeFault(err)
}

// pinholePackets returns the number of connections and datagrams through a pinhole.
func (s *upnpServer) pinholePackets(c *soapCall) ([]soapArg, error) {
	h, err := s.namedPinhole(c)
	return []soapArg{{"PinholePackets", strconv.FormatUint(h.packets, 10)}}, err
}

// checkPinhole reports the pinhole as working if it has had traffic.
func (s *upnpServer) checkPinhole(c *soapCall) ([]soapArg, error) {
	h, err := s.namedPinhole(c)
	if err == nil && (h.packets == 0 || s.config.Firewall.NeverWorking) {
		err = soapFault(709)
	}
	return []soapArg{{"IsWorking", "1"}}, err
}
