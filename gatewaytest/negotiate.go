package gatewaytest

import "github.com/natforward/goforward/backends/natpmp"

// dispatch hands the request to the server of its version. Both share a port:
// version 0 is NAT-PMP's, all others are PCP's, and if the gateway speaks only one
// of them, that one says that it does not know the version (RFC 6887, appendix
// A). A refuse other than 0 is the result code to answer with, doing nothing.
func (g *Gateway) dispatch(q Request, refuse int) []byte {
	old := len(q.Raw) > 0 && q.Raw[0] == natpmp.Version
	newer := !g.speaks(serviceNATPMP) || !q.Source.Addr().Is4() // NAT-PMP is IPv4's
	switch {
	case !g.speaks(servicePCP) && !q.Source.Addr().Is4():
		return nil
	case !g.speaks(servicePCP) || old && !newer:
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
