// Package port5351 implements what NAT-PMP (RFC 6886) and PCP (RFC 6887) share: the
// UDP port 5351 of a gateway, one outstanding request at a time, the check of the
// gateway's epoch, and the multicast announcements of restarts. The version byte of a
// message distinguishes the two protocols.
//
// A [Conn] sends requests to one gateway. All callers in the process that open the same
// [Config] share one socket. All Conns to the same gateway share one queue. The package
// does not parse the messages of either protocol, except for the fields that identify an
// announcement. A [Transaction] has the request and a function that reports which
// datagrams answer it.
package port5351
