// Package natpmp has the API of github.com/jackpal/go-nat-pmp, over the client of
// package backends/natpmp. For a program that uses go-nat-pmp, changing the import
// path is the whole migration: the package is called natpmp as well.
//
//	import natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
//
//	client := natpmp.NewClient(net.IPv4(192, 168, 1, 1))
//	addr, err := client.GetExternalAddress()
//	m, err := client.AddPortMapping("tcp", 8080, 8080, 3600) // for an hour
//	_, err = client.AddPortMapping("tcp", 8080, 0, 0)        // and deleted
//
// New programs use package backends/natpmp, whose calls take a context, or package
// forward, which finds the gateway and keeps mappings alive.
//
// # What is different
//
//   - Errors can be told apart: a refusal is a *ResultError of package
//     backends/natpmp, a gateway that speaks PCP instead a *VersionError, silence
//     wraps backends.ErrNoReply, and arguments out of range wrap
//     backends.ErrInvalid. Their texts are others.
//   - Answers have to come from the gateway's port, too, and to be about the port
//     that was asked for. A grant without a port or a lifetime is an error.
//   - Requests of the whole process to one gateway go out one after another.
//   - The protocol is taken in any case: "tcp" and "TCP".
//   - A deletion always names external port 0, as the standard wants it
//     (RFC 6886, section 3.4).
//   - A duration of less than a second is one second, rather than a deletion.
//   - A gateway with an IPv6 address is an error: NAT-PMP has none.
package natpmp
