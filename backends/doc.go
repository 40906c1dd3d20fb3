// Package backends defines the interface between package forward and the protocols for
// port mapping: NAT-PMP, PCP, UPnP IGD, and protocols that you add.
//
// Most programs never import it: use package forward.
// Import it to name a protocol or an error: errors.Is(err, backends.ErrConflict).
// To add a protocol, implement [Backend] and put it into forward.Config.Backends.
//
// # Errors
//
// Every backend wraps the errors of this package in its own errors, which have the
// protocol's code and text. errors.Is therefore works in the same way for every protocol.
// [context.DeadlineExceeded] and [context.Canceled] are returned only if the
// caller's own context ended the call.
//
// # Ports
//
// In the messages of some protocols, port 0 and protocol 0 mean "all", and a deletion
// with them deletes everything. In this package they are never valid: [Request.Check]
// and [Mapping.Check] reject them with [ErrInvalid], and every Backend calls
// these methods before any I/O.
package backends
