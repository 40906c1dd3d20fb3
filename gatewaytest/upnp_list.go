package gatewaytest

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// specificEntry returns one mapping (WANIPConnection:2, section 2.5.15).
func (s *upnpServer) specificEntry(c *soapCall) ([]soapArg, error) {
	rules := s.config.Listing
	if rules.NoSpecific {
		return nil, soapFault(401)
	}
	e, err := s.namedEntry(c)
	switch {
	case errors.Is(err, soapFault(714)) && rules.Absent != 0:
		return nil, soapFault(rules.Absent)
	case err != nil:
		return nil, err
	}
	return s.entryArgs(e)[3:], nil // without the three arguments that identify the mapping
}

// genericEntry returns the mapping at an index (WANIPConnection:2, section 2.5.14).
func (s *upnpServer) genericEntry(c *soapCall) ([]soapArg, error) {
	rules := s.config.Listing
	index, all := c.number("NewPortMappingIndex", 32), s.entries(c)
	switch {
	case c.err != nil:
		return nil, c.err
	case rules.IndexFails != 0:
		return nil, soapFault(rules.IndexFails)
	case index < uint64(len(all)):
		args := s.entryArgs(all[index])
		if rules.MalformedRow && index == 0 {
			args[1].value = "abc"
		}
		return args, nil
	case rules.Endless && len(all) == 0:
		all = []Entry{{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(c.client, 9),
			External: netip.AddrPortFrom(netip.Addr{}, 9), Remaining: backends.Forever,
		}}
		fallthrough
	case rules.Endless:
		return s.entryArgs(all[index%uint64(len(all))]), nil
	case rules.EndOfList != 0:
		return nil, soapFault(rules.EndOfList)
	}
	return nil, soapFault(713)
}

// entryArgs returns the arguments of a listed mapping, in the order of
// GetGenericPortMappingEntry.
func (s *upnpServer) entryArgs(e Entry) []soapArg {
	remote := ""
	if a := remoteHost(e); a.IsValid() {
		remote = a.String()
	}
	client := e.Internal.Addr().String()
	if written := s.config.Listing.Client; written != nil {
		client = written(e.Internal.Addr())
	}
	return []soapArg{
		{"NewRemoteHost", remote},
		{"NewExternalPort", strconv.Itoa(int(e.External.Port()))},
		{"NewProtocol", strings.ToUpper(e.Protocol.String())},
		{"NewInternalPort", strconv.Itoa(int(e.Internal.Port()))},
		{"NewInternalClient", client},
		{"NewEnabled", flag(!e.Disabled)},
		{"NewPortMappingDescription", e.Description},
		{"NewLeaseDuration", s.reportedLease(e.Remaining)},
	}
}

// flag returns the text of a boolean argument.
func flag(on bool) string { return choose(on, "1", "0") }

// reportedLease returns the lease duration that listings report, in seconds.
func (s *upnpServer) reportedLease(remaining time.Duration) string {
	rules := s.config.Leases
	switch {
	case rules.ReportedZero || rules.Reported == 0 && remaining == backends.Forever:
		remaining = 0
	case rules.Reported != 0:
		remaining = rules.Reported
	}
	return strconv.FormatInt(int64((remaining+time.Second-1)/time.Second), 10)
}

// maxRange is the number of entries in a range above which miniupnpd 2.3.1 crashes.
const maxRange = 128

// listRange returns the mappings of a range of ports (WANIPConnection:2, section
// 2.5.21). If NewNumberOfPorts is 0, it returns all of them.
func (s *upnpServer) listRange(c *soapCall) ([]soapArg, error) {
	rules := s.config.Listing
	switch {
	case rules.NoRange:
		return nil, soapFault(401)
	case rules.RangeResets:
		return nil, errReset
	}
	limit := c.number("NewNumberOfPorts", 16)
	inRange, err := s.portRange(c)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, e := range s.entries(c) {
		if inRange(e) {
			all = append(all, e)
		}
	}
	switch {
	case rules.RangeCrashes && len(all) > maxRange:
		return nil, errSimulatedCrash
	case len(all) == 0:
		return nil, soapFault(730)
	case limit != 0 && limit < uint64(len(all)):
		all = all[:limit]
	}
	return []soapArg{{"NewPortListing", s.portListing(all)}}, nil
}

// portListing returns the XML document of GetListOfPortMappings (WANIPConnection:2,
// section 2.3.25).
func (s *upnpServer) portListing(all []Entry) string {
	renamed := map[string]string{
		"NewPortMappingDescription": "NewDescription", "NewLeaseDuration": "NewLeaseTime",
	}
	d := document{prefix: "p:"}
	d.open("PortMappingList", ` xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection"`)
	for _, e := range all {
		d.open("PortMappingEntry", "")
		for _, a := range s.entryArgs(e) {
			if name, ok := renamed[a.name]; ok {
				a.name = name
			}
			d.element(a.name, a.value)
		}
		d.close("PortMappingEntry")
	}
	d.close("PortMappingList")
	return d.b.String()
}
