package cli

import (
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
)

// ports are what the arguments of map and unmap name.
type ports struct {
	external  uint16              // 0: no wish
	internal  uint16              // 0: none named
	protocols []backends.Protocol // nil: none named
}

// parsePorts reads INTERNAL, EXTERNAL:INTERNAL, either with /PROTOCOL behind it,
// or PUBLIC PRIVATE, two plain numbers as natpmpc and py-natpmp have them.
func parsePorts(args []string) (ports, error) {
	switch len(args) {
	case 0:
		return ports{}, nil
	case 1:
		return parseSpec(args[0])
	case 2:
		if strings.ContainsAny(args[0]+args[1], ":/") {
			return ports{}, usagef("%q %q: two arguments are PUBLIC PRIVATE, plain numbers", args[0], args[1])
		}
		return parsePair(args[0], args[1])
	}
	return ports{}, usagef("%d arguments: one port at a time", len(args))
}

func parseSpec(s string) (p ports, err error) {
	numbers, protocol, named := strings.Cut(s, "/")
	if named {
		if p.protocols, err = parseProtocols(protocol); err != nil {
			return ports{}, usagef("%v", err)
		}
	}
	external, internal, both := strings.Cut(numbers, ":")
	if !both {
		external, internal = "0", numbers
	}
	pair, err := parsePair(external, internal)
	pair.protocols = p.protocols
	return pair, err
}

func parsePair(external, internal string) (p ports, err error) {
	if p.external, err = parsePort(external); err != nil {
		return ports{}, err
	}
	if p.internal, err = parsePort(internal); err != nil {
		return ports{}, err
	}
	if p.internal == 0 { // means all ports on the wire
		return ports{}, usagef("internal port 0: name one, or leave the ports out for a free one")
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, usagef("%q is no port: want a number up to 65535, as in 8080, 80:8080 or 80:8080/udp", s)
	}
	return uint16(n), nil
}
