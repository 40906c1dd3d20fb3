// Package reflector is the server of the prober reach.Reflector: a helper on the internet that
// connects back to the host that asks. The command `goforward reflect` runs it.
//
// A host sends a list of ports with nonces. The reflector connects to these ports of the address
// from which the request came, sends the nonce, and expects another one in the answer. The client
// learns the source of each connection beforehand, and observes the arrival itself: the word of a
// reflector proves nothing.
//
// A reflector is open to the internet, so it is built for hosts that abuse it:
//
//   - The target is the TCP source of the request, or the address that a trusted proxy reports. It
//     is never a parameter, and it must be public, or in Config.Allow.
//   - Strangers learn only whether the right nonce came back. Anything else is "silent", after
//     exactly five seconds. Details require the token of the operator.
//   - A probe sends 28 bytes to a TCP port, and at most three times 28 bytes to a UDP port. A
//     request has more bytes. Ports whose services are often abused are prohibited.
//   - Each IPv4 address and each IPv6 network of 56 bits can have 30 probes in an hour and two
//     requests at once. All together can have ten probes per second and 64 at once. The memory
//     for this is bounded.
//   - Slow clients are cut, and the number of connections is bounded.
//   - Logs have addresses only at the level debug, and only their first 24 bits, or 48 bits for IPv6.
//
// The page docs/reflector.md describes the protocol, the limits, the threat model and how to run a
// reflector, also behind a reverse proxy.
package reflector
