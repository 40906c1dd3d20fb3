package gethnat

import (
	"fmt"
	"strings"

	"github.com/natforward/goforward/backends"
)

// endpoint is what a mapping is known by.
type endpoint struct {
	protocol backends.Protocol
	port     uint16 // internal
}

// parse checks what a mapping is named by.
func parse(protocol string, extport, intport int) (endpoint, error) {
	var p backends.Protocol
	switch {
	case strings.EqualFold(protocol, "TCP"):
		p = backends.TCP
	case strings.EqualFold(protocol, "UDP"):
		p = backends.UDP
	default:
		return endpoint{}, invalid("protocol %q: want TCP or UDP", protocol)
	}
	switch {
	case intport < 1 || intport > 65535:
		return endpoint{}, invalid("internal port %d", intport)
	case extport < 0 || extport > 65535:
		return endpoint{}, invalid("external port %d", extport)
	}
	return endpoint{p, uint16(intport)}, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("gethnat: %w: %s", backends.ErrInvalid, fmt.Sprintf(format, args...))
}
