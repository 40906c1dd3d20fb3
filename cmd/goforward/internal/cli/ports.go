package cli

import (
	"context"
	"net"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lazyregexp"
)

// ports are the ports and protocols that one argument of map or unmap names.
type ports struct {
	external  uint16              // the first external port; 0: any
	internal  uint16              // the first internal port
	count     uint16              // number of ports, at least 1
	protocols []backends.Protocol // nil: none named
}

// maxPorts is the largest number of ports in one command line. Each of them is a mapping of
// its own, which many gateways store in a small table.
const maxPorts = 1024

// parsePorts reads the arguments of map and unmap. Each is INTERNAL or EXTERNAL:INTERNAL, with
// a port, a range of ports or the name of a service, and optionally followed by /PROTOCOL. If
// there are exactly two arguments and both are plain numbers, they are the external and the
// internal port of one mapping, as in natpmpc and py-natpmp; pair is then true.
func parsePorts(args []string) (all []ports, pair bool, err error) {
	if len(args) == 2 && isNumber(args[0]) && isNumber(args[1]) {
		p, err := parsePair(args[0], args[1], nil)
		return []ports{p}, true, err
	}
	all, err = parsePortArgs(args)
	return all, false, err
}

// parsePortArgs reads arguments that each name ports.
func parsePortArgs(args []string) (all []ports, err error) {
	total := 0
	for _, arg := range args {
		p, err := parsePortArg(arg)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
		if total += int(p.count); total > maxPorts {
			return nil, usagef("more than %d ports: use several commands", maxPorts)
		}
	}
	return all, nil
}

func parsePortArg(s string) (p ports, err error) {
	numbers, name, named := strings.Cut(s, "/")
	var protocols []backends.Protocol
	if named {
		if protocols, err = parseProtocols(name); err != nil {
			return ports{}, usagef("%v", err)
		}
	}
	external, internal, both := strings.Cut(numbers, ":")
	if !both {
		external, internal = "0", numbers
	}
	return parsePair(external, internal, protocols)
}

// parsePair reads the external and the internal ports of one argument.
func parsePair(external, internal string, protocols []backends.Protocol) (ports, error) {
	firstExternal, lastExternal, err := parseRange(external, protocols)
	if err != nil {
		return ports{}, err
	}
	first, last, err := parseRange(internal, protocols)
	switch {
	case err != nil:
		return ports{}, err
	case first == 0: // on the wire, 0 means all ports
		return ports{}, usagef("internal port 0 is not valid: name a port (map without a port uses a free one)")
	case firstExternal == 0 && lastExternal == 0:
	case firstExternal == 0:
		return ports{}, usagef("external port 0 is not valid in a range: name a port")
	case lastExternal-firstExternal != last-first:
		return ports{}, usagef("%s and %s do not have the same number of ports", external, internal)
	}
	return ports{firstExternal, first, last - first + 1, protocols}, nil
}

// parseRange reads a port, a range of ports such as 8000-8010, or the name of a service.
func parseRange(s string, protocols []backends.Protocol) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange || !isNumber(from) || !isNumber(to) { // the names of some services have a hyphen
		first, err = parsePort(s, protocols)
		return first, first, err
	}
	if first, err = parsePort(from, protocols); err != nil {
		return 0, 0, err
	}
	if last, err = parsePort(to, protocols); err != nil {
		return 0, 0, err
	}
	if last < first || last-first >= maxPorts {
		return 0, 0, usagef("%s is not a range: want a first port and a higher last port, at most %d ports in all", s, maxPorts)
	}
	return first, last, nil
}

// isNumber reports whether a text has only digits.
func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// serviceName is the syntax of the name of a service (RFC 6335, section 5.1), except that it
// does not start with a digit.
var serviceName = lazyregexp.New(`^[A-Za-z][0-9A-Za-z-]{0,14}$`)

// parsePort reads the number of a port, or the name of a service that this host knows.
func parsePort(s string, protocols []backends.Protocol) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil {
		return uint16(n), nil
	}
	if serviceName().MatchString(s) {
		return servicePort(s, protocols)
	}
	return 0, notPort(s)
}

func notPort(s string) error {
	return usagef("%q is not a port: want a number up to 65535 or the name of a service, as in 8080, 80:8080, 27015/udp, 8000-8010 or ssh", s)
}

// servicePort returns the port of a service for the protocols, or for TCP if there are none.
func servicePort(name string, protocols []backends.Protocol) (uint16, error) {
	if protocols == nil {
		protocols = []backends.Protocol{backends.TCP}
	}
	var port uint16
	for _, p := range protocols {
		n, err := net.DefaultResolver.LookupPort(context.Background(), p.String(), strings.ToLower(name))
		if err != nil {
			if _, err := net.DefaultResolver.LookupPort(context.Background(), "udp", strings.ToLower(name)); err == nil && p == backends.TCP {
				return 0, usagef("%s is a UDP service: use %s/udp", name, name)
			}
			return 0, notPort(name)
		}
		if port != 0 && port != uint16(n) {
			return 0, usagef("the service %s has different ports for TCP and UDP: use their numbers", name)
		}
		port = uint16(n)
	}
	return port, nil
}
