package gatewaytest

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// maxLease is the longest lease duration (WANIPConnection:2, section 2.3.16).
const maxLease = 604800 * time.Second

// addPortMapping maps the requested port, or fails (WANIPConnection:2, section 2.5.16).
func (s *upnpServer) addPortMapping(c *soapCall) ([]soapArg, error) {
	spec, err := s.parseMappingSpec(c)
	if err != nil {
		return nil, err
	}
	if spec.External.Port() == 0 {
		return nil, soapFault(716)
	}
	spec.exactPort = true
	_, err = s.grant(spec)
	return nil, err
}

// addAnyPortMapping maps the requested port, or another one (WANIPConnection:2, section
// 2.5.17).
func (s *upnpServer) addAnyPortMapping(c *soapCall) ([]soapArg, error) {
	switch {
	case s.config.Rules.NoAddAny:
		return nil, soapFault(401)
	case s.config.Rules.AddAnyResets:
		return nil, errReset
	}
	spec, err := s.parseMappingSpec(c)
	if err != nil {
		return nil, err
	}
	granted, err := s.grant(spec)
	return []soapArg{{"NewReservedPort", strconv.Itoa(int(granted.External.Port()))}}, err
}

// parseMappingSpec parses the requested mapping, and checks the rules that do not depend
// on other mappings.
func (s *upnpServer) parseMappingSpec(c *soapCall) (mappingSpec, error) {
	remote, p, enabled := s.remoteHostArg(c), s.protocolArg(c), c.flag("NewEnabled")
	external, internal := c.number16("NewExternalPort"), c.number16("NewInternalPort")
	client, err := netip.ParseAddr(strings.TrimSpace(c.args["NewInternalClient"]))
	if c.err != nil || err != nil || !client.Is4() || client.IsUnspecified() {
		return mappingSpec{}, soapFault(402)
	}
	spec := mappingSpec{Entry: Entry{
		Protocol: p, Internal: netip.AddrPortFrom(client, internal),
		External: netip.AddrPortFrom(c.service.session, external),
		Service:  serviceUPnP, Disabled: !enabled || s.config.Rules.AddDisabled, Description: c.args["NewPortMappingDescription"],
		Filters: filtersFor(remote, 0),
	}}
	if err := s.checkDescription(spec.Description); err != nil {
		return mappingSpec{}, err
	}
	if spec.Remaining, err = s.grantedLease(c); err != nil {
		return mappingSpec{}, err
	}
	return spec, s.checkRules(c, spec)
}

// checkDescription checks the quirks.Demands on descriptions.
func (s *upnpServer) checkDescription(text string) error {
	isOdd := func(r rune) bool {
		return !strings.ContainsRune(" -_.", r) && (r < '0' || '9' < r && r < 'A' || 'Z' < r && r < 'a' || 'z' < r)
	}
	demands := s.config.Demands
	switch {
	case demands.BlankDescription != 0 && strings.TrimSpace(text) == "":
		return soapFault(demands.BlankDescription)
	case demands.OddDescription != 0 && strings.ContainsFunc(text, isOdd):
		return soapFault(demands.OddDescription)
	case demands.LongDescription != 0 && len(text) > demands.MaxDescription:
		return soapFault(demands.LongDescription)
	}
	return nil
}

// grantedLease returns the lifetime that the gateway grants for the requested lease
// duration.
func (s *upnpServer) grantedLease(c *soapCall) (time.Duration, error) {
	requested, rules := time.Duration(c.number("NewLeaseDuration", 32))*time.Second, s.config.Leases
	switch {
	case c.err != nil:
		return 0, c.err
	case rules.PermanentOnly != 0 && requested != 0:
		return 0, soapFault(rules.PermanentOnly)
	case rules.NoPermanent != 0 && requested == 0:
		return 0, soapFault(rules.NoPermanent)
	case rules.NoLong != 0 && requested > maxLease:
		return 0, soapFault(rules.NoLong)
	case requested == 0 && (s.config.Version == 1 || rules.PermanentOnly != 0):
		requested = backends.Forever
	case s.config.Version == 2 && (requested == 0 || requested > maxLease):
		requested = maxLease
	}
	granted := s.g.config.lifetime(requested)
	if rules.Max != 0 {
		granted = min(granted, rules.Max)
	}
	return granted, nil
}

// checkRules checks the rules that do not depend on the table.
func (s *upnpServer) checkRules(c *soapCall, spec mappingSpec) error {
	rules, external, internal := s.config.Rules, spec.External.Port(), spec.Internal.Port()
	_, unusable := s.connectionAddr(c.service)
	switch {
	case rules.SwitchedOff:
		return soapFault(606)
	case c.service.first && s.config.Description.FirstRefuses != 0:
		return soapFault(s.config.Description.FirstRefuses)
	case rules.PortFault != 0 && external == rules.Port:
		return soapFault(rules.PortFault)
	case internal == 0:
		return soapFault(732)
	case rules.SourceNeeded && len(spec.Filters) == 0:
		return soapFault(715)
	case rules.AnySourceOnly && len(spec.Filters) != 0:
		return soapFault(726)
	case rules.AnyPortOnly && external != 0:
		return soapFault(727)
	case rules.SamePort && external != internal:
		return soapFault(724)
	case rules.LowPorts != 0 && 0 < external && external < 1024:
		return soapFault(rules.LowPorts)
	case spec.Internal.Addr() != c.client && !s.config.AnyClient:
		return s.byVersion(718, 606)
	case unusable:
		return soapFault(501)
	}
	return nil
}

// byVersion returns code1 if the device has version 1, and code2 otherwise.
func (s *upnpServer) byVersion(code1, code2 soapFault) soapFault {
	return choose(s.config.Version == 1, code1, code2)
}

// grant creates the mapping. With some quirks, it only pretends to.
func (s *upnpServer) grant(spec mappingSpec) (Entry, error) {
	rules := s.config.Rules
	if rules.Unlisted {
		return spec.Entry, nil
	}
	if rules.ListedClient.IsValid() {
		spec.Internal = netip.AddrPortFrom(rules.ListedClient, spec.Internal.Port())
	}
	granted, err := s.g.table.grantUPnP(spec, upnpGrantRules{
		refuseReAdd: rules.NoReAdd != 0, keepLifetime: s.config.Leases.NoRefresh, oneExternalPort: rules.OnePort,
	})
	switch {
	case err == nil:
		return granted, nil
	case errors.Is(err, errTableFull) && rules.FullSilent:
		return spec.Entry, nil
	case errors.Is(err, errTableFull) && rules.Full != 0:
		return Entry{}, soapFault(rules.Full)
	case errors.Is(err, errTableFull):
		return Entry{}, s.byVersion(501, 728)
	case errors.Is(err, errReAdd):
		return Entry{}, soapFault(rules.NoReAdd)
	case rules.OtherMechanism != 0 && granted.Service != "" && granted.Service != serviceUPnP:
		return Entry{}, soapFault(rules.OtherMechanism)
	}
	return Entry{}, soapFault(718)
}

// deletePortMapping deletes a mapping (WANIPConnection:2, section 2.5.18).
func (s *upnpServer) deletePortMapping(c *soapCall) ([]soapArg, error) {
	rules := s.config.Rules
	switch {
	case rules.SwitchedOff:
		return nil, soapFault(606)
	case rules.DeleteFault != 0:
		return nil, soapFault(rules.DeleteFault)
	case s.deletions.Add(1) <= int64(rules.DeleteFailures):
		return nil, soapFault(501)
	}
	e, err := s.namedEntry(c)
	switch {
	case errors.Is(err, soapFault(714)) && rules.DeleteAbsent != 0:
		return nil, soapFault(rules.DeleteAbsent)
	case err != nil:
		return nil, err
	case !s.mayDelete(c, e):
		return nil, soapFault(606)
	case rules.DeleteIgnored:
		return nil, nil
	}
	deleted, kept := s.g.table.deleteListed(func(other Entry) bool {
		return other.Protocol == e.Protocol && other.External == e.External && other.Internal == e.Internal
	})
	switch {
	case kept != 0:
		return nil, soapFault(606)
	case deleted == 0:
		return nil, soapFault(714)
	}
	return nil, nil
}

// mayDelete reports whether the client may delete the entry.
func (s *upnpServer) mayDelete(c *soapCall, e Entry) bool {
	return s.config.AnyClient || e.Internal.Addr() == c.client
}

// deleteRange deletes the mappings of a range of ports that the client may delete
// (WANIPConnection:2, section 2.5.19).
func (s *upnpServer) deleteRange(c *soapCall) ([]soapArg, error) {
	if s.config.Rules.SwitchedOff {
		return nil, soapFault(606)
	}
	inRange, err := s.portRange(c)
	if err != nil {
		return nil, err
	}
	deleted, kept := 0, 0
	if c.service.connected {
		deleted, kept = s.g.table.deleteListed(func(e Entry) bool { return inRange(e) && s.mayDelete(c, e) })
	}
	switch {
	case deleted == 0 && kept != 0:
		return nil, soapFault(606)
	case deleted == 0:
		return nil, soapFault(730)
	}
	return nil, nil
}

// portRange parses a range of external ports of a protocol, and returns a function that
// reports whether an entry is in it.
func (s *upnpServer) portRange(c *soapCall) (contains func(Entry) bool, err error) {
	first, last, p, manage := c.number16("NewStartPort"), c.number16("NewEndPort"), s.protocolArg(c), c.flag("NewManage")
	switch {
	case c.err != nil:
		return nil, c.err
	case first > last:
		return nil, soapFault(733)
	}
	return func(e Entry) bool {
		port := e.External.Port()
		return e.Protocol == p && e.External.Addr() == c.service.session && first <= port && port <= last &&
			(manage || e.Internal.Addr() == c.client)
	}, nil
}

// namedEntry returns the entry that the arguments identify. It fails with fault 714 if
// there is none.
func (s *upnpServer) namedEntry(c *soapCall) (Entry, error) {
	remote, port, p := s.remoteHostArg(c), c.number16("NewExternalPort"), s.protocolArg(c)
	if c.err != nil {
		return Entry{}, c.err
	}
	for _, e := range s.entries(c) {
		if e.Protocol == p && e.External.Port() == port && remoteHost(e) == remote {
			return e, nil
		}
	}
	return Entry{}, soapFault(714)
}

// entries returns the entries that a service lists.
func (s *upnpServer) entries(c *soapCall) []Entry {
	if !c.service.connected {
		return nil
	}
	return s.g.table.listed(c.service.session)
}

// remoteHost returns the only host that an entry admits. It returns the zero Addr if the
// entry admits any host, or hosts that one address cannot describe.
func remoteHost(e Entry) netip.Addr {
	if len(e.Filters) == 1 && e.Filters[0].Prefix.IsSingleIP() {
		return e.Filters[0].Prefix.Addr()
	}
	return netip.Addr{}
}
