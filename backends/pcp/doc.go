// Package pcp implements the Port Control Protocol, RFC 6887: the messages,
// a client for one server, and the backend that package forward uses.
//
// Most programs use package forward and never import this package. The standard calls a
// gateway that supports PCP a server. To use one server whose address you know:
//
//	c, err := pcp.NewClient(pcp.Config{Gateway: gw})
//	defer c.Close()
//	m, err := c.Map(ctx, pcp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, Lifetime: time.Hour})
//
// A server or a tool may need only the messages: see [ParseMapRequest] and [MapResponse.AppendBinary].
//
// # What the protocol can do
//
// It maps ports of any protocol for a lifetime, over IPv4 and through IPv6 firewalls. Each
// response to a mapping request has the external address. A request can require an exact
// port, restrict the remote peers, describe the mapping (RFC 7220), and map for another
// host if the server permits it. The protocol cannot list the server's table.
// Every mapping belongs to its [Nonce]. Without the nonce, a host can neither renew nor
// delete the mapping. It can forge a response only if it sees the traffic
// (RFC 6887, section 18.1). Servers cannot be authenticated: RFC 7652 is not implemented.
//
// # Errors
//
// If the server refuses a request, the error is a *[ResultError]. If the server supports
// another version, usually NAT-PMP, the error is a *[VersionError]. If a parser of requests
// rejects a request, the error is a *[RequestError]. All wrap the errors of package backends,
// for errors.Is.
//
// # Writing a server
//
// If a parser returns a *[RequestError], the server answers with [AppendErrorResponse] and
// the code of the error. If a parser returns any other error, the server does not answer
// (RFC 6887, section 8.2). The server must itself compare the client's address in the header
// with the source address of the packet.
//
// The directory examples/pcpclient of the repository has a complete program that uses only this client.
package pcp
