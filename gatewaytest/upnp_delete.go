package gatewaytest

import "net/netip"

// deletePortMapping ends a mapping (WANIPConnection:2, section 2.5.18).
func (s *upnpServer) deletePortMapping(c soapCall) ([]soapArg, error) {
	if s.config.Rules.SwitchedOff {
		return nil, soapFault(606)
	}
	e, err := s.named(c)
	if err != nil {
		return nil, err
	}
	if !s.may(c, e) {
		return nil, soapFault(606)
	}
	gone, stay := s.g.table.release(func(other Entry) bool {
		return other.Protocol == e.Protocol && other.External == e.External && other.Internal == e.Internal
	})
	switch {
	case stay != 0:
		return nil, soapFault(606)
	case gone == 0:
		return nil, soapFault(714)
	}
	return nil, nil
}

// may reports whether the client may delete the entry.
func (s *upnpServer) may(c soapCall, e Entry) bool {
	return s.config.AnyClient || e.Internal.Addr() == c.client
}

// deleteRange ends the mappings of a range of ports, of the client's own those
// that it may delete (WANIPConnection:2, section 2.5.19).
func (s *upnpServer) deleteRange(c soapCall) ([]soapArg, error) {
	if s.config.Rules.SwitchedOff {
		return nil, soapFault(606)
	}
	in, err := s.portRange(c)
	if err != nil {
		return nil, err
	}
	gone, stay := 0, 0
	if c.service.connected {
		gone, stay = s.g.table.release(func(e Entry) bool { return in(e) && s.may(c, e) })
	}
	switch {
	case gone == 0 && stay != 0:
		return nil, soapFault(606)
	case gone == 0:
		return nil, soapFault(730)
	}
	return nil, nil
}

// portRange reads a range of external ports of a protocol.
func (s *upnpServer) portRange(c soapCall) (contains func(Entry) bool, err error) {
	ports, err := c.numbers("NewStartPort", "NewEndPort")
	if err != nil {
		return nil, err
	}
	p, err := s.transport(c)
	if err != nil {
		return nil, err
	}
	manage, err := c.flag("NewManage")
	if err != nil {
		return nil, err
	}
	if ports[0] > ports[1] {
		return nil, soapFault(733)
	}
	return func(e Entry) bool {
		port := e.External.Port()
		return e.Protocol == p && ports[0] <= port && port <= ports[1] &&
			(manage || e.Internal.Addr() == c.client)
	}, nil
}

// named finds the entry that the arguments name: fault 714 if there is none.
func (s *upnpServer) named(c soapCall) (Entry, error) {
	remote, err := s.remote(c)
	if err != nil {
		return Entry{}, err
	}
	ports, err := c.numbers("NewExternalPort")
	if err != nil {
		return Entry{}, err
	}
	p, err := s.transport(c)
	if err != nil {
		return Entry{}, err
	}
	for _, e := range s.entries(c) {
		if e.Protocol == p && e.External.Port() == ports[0] && remoteHost(e) == remote {
			return e, nil
		}
	}
	return Entry{}, soapFault(714)
}

// entries are what a service lists.
func (s *upnpServer) entries(c soapCall) []Entry {
	if !c.service.connected {
		return nil
	}
	return s.g.table.listed()
}

// remoteHost is the only host that an entry admits; the zero Addr where that
// is not to be said in one address.
func remoteHost(e Entry) netip.Addr {
	if len(e.Filters) == 1 && e.Filters[0].Prefix.IsSingleIP() {
		return e.Filters[0].Prefix.Addr()
	}
	return netip.Addr{}
}
