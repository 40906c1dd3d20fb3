// Package backends is the contract that every way of asking a gateway for a
// port meets: NAT-PMP, PCP, UPnP IGD, and whatever you add yourself.
//
// Most programs never import it: use package forward.
// Import it to name a protocol or an error: errors.Is(err, backends.ErrConflict).
// Implement [Backend] to add a protocol, and hand it to forward.Config.Backends.
//
// # Errors
//
// Every backend wraps its own errors, with their code and text, around the
// errors of this package, so that errors.Is works whatever the protocol was.
// [context.DeadlineExceeded] and [context.Canceled] appear only where the
// caller's own context ended the call.
//
// # Ports
//
// Port 0 and protocol 0 mean "everything" on the wire of some protocols, and a
// deletion of everything with them. Here they are never a wish: [Request.Check]
// and [Mapping.Check] refuse them with [ErrInvalid], and every Backend calls
// these before any I/O.
package backends
