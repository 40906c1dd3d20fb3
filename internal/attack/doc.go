// Package attack tests the library against hostile hosts on the LAN and against
// faulty or hostile gateways.
//
// Most tests have two steps. First, a naive client of a few lines, without checks,
// receives the packets, and the attack succeeds. Then the library receives the same
// packets. It must do what the caller requested, within its limits, and must send
// packets only to the gateway. SECURITY.md lists the attacks.
//
// The package itself has the code that the fuzz targets of the clients share. A
// [Mutator] changes correct responses, [Exercise] calls all methods of a backend,
// and [Check] reports what is wrong with a mapping.
package attack
