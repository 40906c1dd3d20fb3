package gatewaytest

import "github.com/natforward/goforward/backends/natpmp"

// dispatch hands the request to the server of its version. Both share a port:
// version 0 is NAT-PMP's, all others are PCP's, and where one of the servers is
// off, the other one says that it does not know the version (RFC 6887, appendix
// A). A refuse other than 0 is the result code to answer with, doing nothing.
func (g *Gateway) dispatch(q Request, refuse int) []byte {
	old := len(q.Raw) > 0 && q.Raw[0] == natpmp.Version
	noNATPMP := g.natpmp.quirks.Off || !q.Source.Addr().Is4() // it is IPv4's
	switch {
	case g.pcp.quirks.Off && !q.Source.Addr().Is4():
		return nil
	case g.pcp.quirks.Off || old && !noNATPMP:
		return g.natpmp.handle(q, refuse)
	default:
		return g.pcp.handle(q, refuse)
	}
}

// identify reads what a datagram asks.
func identify(raw []byte) Request {
	if len(raw) > 0 && raw[0] != natpmp.Version {
		return identifyPCP(raw)
	}
	return identifyNATPMP(raw)
}
