// Package natpmp has the API of github.com/jackpal/go-nat-pmp. It uses the client of package
// backends/natpmp. To migrate a program from go-nat-pmp, only change the import path: this
// package is named natpmp too.
//
//	import natpmp "github.com/natforward/goforward/adapters/natpmpcompat"
//
//	client := natpmp.NewClient(net.IPv4(192, 168, 1, 1))
//	addr, err := client.GetExternalAddress()
//	m, err := client.AddPortMapping("tcp", 8080, 8080, 3600) // for an hour
//	_, err = client.AddPortMapping("tcp", 8080, 0, 0)        // deletes the mapping
//
// New programs use package backends/natpmp, whose methods take a context, or package
// forward, which finds the gateway and renews mappings.
//
// # Differences from go-nat-pmp
//
//   - Errors have types. A refusal is a *ResultError of package backends/natpmp. If the
//     gateway supports only PCP, the error is a *VersionError. A missing reply wraps
//     backends.ErrNoReply. An argument out of range wraps backends.ErrInvalid. The error
//     texts differ from those of go-nat-pmp.
//   - A response must also come from the gateway's port, and must be for the requested
//     port. A grant without a port or a lifetime is an error.
//   - The process sends its requests to one gateway one after another.
//   - The protocol may be in upper or lower case: "tcp" or "TCP".
//   - A deletion always names external port 0, as RFC 6886, section 3.4, requires.
//   - A duration of less than a second becomes one second; it does not delete the mapping.
//   - A gateway with an IPv6 address is an error, because NAT-PMP does not support IPv6.
package natpmp
