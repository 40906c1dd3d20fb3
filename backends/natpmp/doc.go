// Package natpmp implements the NAT Port Mapping Protocol, RFC 6886: the messages,
// a client for one gateway, and the backend that package forward uses.
//
// Most programs use package forward and never import this package. To use one gateway
// whose address you know:
//
//	c, err := natpmp.NewClient(natpmp.Config{Gateway: gw})
//	defer c.Close()
//	m, err := c.Map(ctx, natpmp.MapRequest{Protocol: backends.TCP, InternalPort: 8080, ExternalPort: 8080})
//
// A server or a tool may need only the messages: see [ParseMapRequest] and [MapResponse.AppendBinary].
//
// # What the protocol can do
//
// It maps TCP and UDP ports of the requesting host, over IPv4, for a lifetime.
// It cannot map for another host, restrict the remote peer, describe a mapping, list
// the gateway's table, or create permanent mappings. If two programs on one host map
// the same internal port, they share one mapping without being aware of it: the protocol
// identifies a mapping only by source address, protocol and internal port
// (RFC 6886, section 3.3). A gateway cannot be authenticated: the client accepts
// any datagram that has the gateway's address and port and answers its request.
//
// # Errors
//
// If the gateway refuses a request, the error is a *[ResultError]. If the gateway supports
// another version, usually PCP, the error is a *[VersionError]. Both wrap the errors of
// package backends, for errors.Is.
//
// The directory examples/natpmpclient of the repository has a complete program that uses only this client.
package natpmp
