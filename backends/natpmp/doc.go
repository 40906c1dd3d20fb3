// Package natpmp speaks the NAT Port Mapping Protocol, RFC 6886: the messages,
// a client for one gateway, and the backend that package forward uses.
//
// Most programs never import it: use package forward.
// For one gateway that you name yourself: c, err := natpmp.NewClient(natpmp.Config{Gateway: gw}).
// For the messages alone, as a server or a tool needs them: [ParseMapRequest], [MapResponse.AppendBinary].
//
// # What the protocol can do
//
// It maps TCP and UDP ports of the host that asks, over IPv4, for a lifetime.
// It cannot map for another host, restrict the peer, describe a mapping, list
// the gateway's table, or map for ever. Two programs on one host that map one
// internal port share one mapping without knowing of each other: the protocol
// tells mappings apart by source address, protocol and internal port only
// (RFC 6886, section 3.3). A gateway cannot be authenticated: a client accepts
// what comes from the gateway's address and port and answers its question.
//
// # Errors
//
// What a gateway refuses is a *[ResultError]; a gateway that speaks another
// version, usually PCP, is a *[VersionError]. Both wrap the errors of package
// backends, for errors.Is.
//
// A whole program with this client alone is examples/natpmpclient of the repository.
package natpmp
