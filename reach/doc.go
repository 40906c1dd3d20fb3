// Package reach proves that a forwarded port is reachable.
//
// A gateway that grants a mapping only claims to forward the port. The grant says nothing about
// whether a program listens, whether the firewall of this host admits connections, whether the
// router really forwards them, and whether the provider lets them in. Each [Prober] measures a part
// of that:
//
//   - the table of sockets shows whether a program listens, and on which address;
//   - [Router] makes the router connect to this host, which shows what this host's firewall does;
//   - [Hairpin] connects to the external port from inside;
//   - [Path] connects to the external port through another uplink of this host;
//   - [Reflector] makes a host of the internet connect to the external port;
//   - [SSH] connects to the external port from a host on which the user has an account;
//   - [Phone] asks a person to open a URL;
//   - [STUN] lets a STUN server answer to the external port, from a second address;
//   - a connection that a forward.Listener accepted from the internet is a proof too.
//
// [Verify] combines them. Only what this host observes counts: a nonce that arrives at the
// internal port, or a connection whose source the prober knew beforehand. "Reachable" means that
// such a connection came from the internet. "Unreachable" means that a measurement failed twice.
// Everything else is "unknown". The page docs/reachability.md says what each prober proves, and
// how it can be wrong.
//
// Most programs use the method Verify of forward.Mapping, or Config.Verify of package forward.
package reach
