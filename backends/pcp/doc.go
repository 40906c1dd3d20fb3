// Package pcp speaks the Port Control Protocol, RFC 6887: the messages,
// a client for one server, and the backend that package forward uses.
//
// Most programs never import it: use package forward.
// For one server that you name yourself: c, err := pcp.NewClient(pcp.Config{Gateway: gw}).
// For the messages alone, as a server or a tool needs them: [ParseMapRequest], [MapResponse.AppendBinary].
//
// # What the protocol can do
//
// It maps ports of any protocol, over IPv4 and through IPv6 firewalls, for a
// lifetime, and tells the external address with each mapping. It can insist on
// a port, admit chosen peers only, describe a mapping (RFC 7220), and map for
// another host, where the server lets it. It cannot list the server's table.
// Every mapping belongs to its [Nonce]: who does not know it can neither renew
// nor delete the mapping, nor answer in the server's place without seeing the
// traffic (RFC 6887, section 18.1). Servers cannot be authenticated; RFC 7652
// is not implemented.
//
// # Errors
//
// What a server refuses is a *[ResultError]; one that speaks another version,
// usually NAT-PMP, is a *[VersionError]. What is wrong with a request that a
// server reads is a *[RequestError]. All wrap the errors of package backends,
// for errors.Is.
//
// # Serving
//
// A request that a parser refuses with a *[RequestError] is to be answered by
// [AppendErrorResponse] with its code; any other error, by nothing at all
// (RFC 6887, section 8.2). That the client's address in the header is the one
// the packet came from is for the server to check.
//
// A whole program with this client alone is examples/pcpclient of the repository.
package pcp
