package upnp

import (
	"net/netip"
	"strconv"

	"github.com/natforward/goforward/backends"
)

// A token says which service granted something, and which number a pinhole had
// then: mappings outlive the process that made them.
const (
	serviceToken = "service "
	pinholeToken = "pinhole "
)

func tokenOf(s Service) backends.Token {
	return backends.NewToken([]byte(serviceToken + s.UDN + " " + s.Type))
}

func pinholeTokenOf(id uint16) backends.Token {
	return backends.NewToken([]byte(pinholeToken + strconv.Itoa(int(id))))
}

// clientFor returns the service that granted something, or the preferred one
// where that is not known any more.
func (g *gateway) clientFor(token backends.Token) *Client {
	for _, c := range g.others {
		if tokenOf(c.Service()) == token {
			return c
		}
	}
	return g.client
}

// addr is where the service is asked.
func (g *gateway) addr() netip.AddrPort { return g.client.endpoints[g.client.current.Load()].addr }
